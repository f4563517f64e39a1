"""What `pfgmpp dataset` does: pictures of many kinds of sources, made of one size and packed into a ZIP to train on."""

import gzip
import io
import json
import math
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from models.card import CheckpointError
from models.data import LABELS, DataError, UInt8Array, opened, source_of
from models.pickles import Array, Record, read

Crop = Literal["none", "center", "center-wide"]
Colour = Literal["kept", "grey", "rgb"]

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MNIST_MAGIC = 2051


class Picture(NamedTuple):
    """An image of a source, where it is from, and its class, if it has one."""

    where: str
    image: Image.Image
    label: int | None


@dataclass(frozen=True)
class Source:
    """All pictures of a source, and the names of their classes."""

    classes: tuple[str, ...]
    count: int
    pictures: Iterator[Picture]


def pack(
    source: Path,
    to: Path,
    size: tuple[int, int] | None,
    crop: Crop,
    most: int | None,
    colour: Colour = "kept",
    report: Callable[[int, int], object] = lambda done, total: None,
) -> str:
    """Write a ZIP of PNG files with `dataset.json`; what it holds, in words. It appears only when it is complete.

    Each is cropped and resized to `size` (width, height), if given; all must then be square, of one size and alike in
    colour. Raises DataError naming the file that is in the way, OSError when the ZIP cannot be written.
    """
    if to.exists() and (not to.is_file() or to.samefile(source)):
        raise DataError(f"{to}: cannot be written; name another file")
    found, shape, labels = open_source(source), None, list[tuple[str, int]]()
    total = min(found.count, most or found.count)
    to.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".pfgmpp-", dir=to.parent) as folder:
        written = Path(folder) / to.name
        with zipfile.ZipFile(written, "w", zipfile.ZIP_STORED) as archive:
            for k, picture in zip(range(total), found.pictures, strict=False):
                image = _fitted(picture, size, crop, colour)
                shape = shape or (image.size, image.mode)
                if (image.size, image.mode) != shape:
                    way = (
                        "--resolution makes them of one size" if image.size != shape[0] else "--colour makes them alike"
                    )
                    raise DataError(
                        f"{picture.where}: is {_described(image.size, image.mode)}, but the first is "
                        f"{_described(*shape)}; {way}"
                    )
                name = f"{k // 1000:05d}/img{k:08d}.png"
                buffer = io.BytesIO()
                image.save(buffer, "PNG", compress_level=1)
                archive.writestr(name, buffer.getvalue())
                if picture.label is not None:
                    labels.append((name, picture.label))
                report(k + 1, total)
            about = {"labels": labels or None, "classes": list(found.classes) if labels else None}
            archive.writestr(LABELS, json.dumps(about))
        written.replace(to)
    kinds = f"{len(found.classes)} classes ({', '.join(found.classes[:10])}{', ...' * (len(found.classes) > 10)})"
    return f"{total:,} images of {_described(*shape) if shape else 'no size'}, {kinds if labels else 'without classes'}"


def open_source(path: Path) -> Source:
    """The pictures of a folder or ZIP of images, CIFAR-10's batches for Python, MNIST's IDX files, or LSUN's LMDB.

    Raises DataError when it is none of them.
    """
    if path.name.endswith((".tar.gz", ".tgz")) or (path / "data_batch_1").is_file():
        return _cifar10(path)
    if path.name.endswith("-ubyte.gz"):
        return _mnist(path)
    if (path / "data.mdb").is_file():
        return _lmdb(path)
    return _images(path)


def _images(path: Path) -> Source:
    """Image files, with the classes of `dataset.json`, or else of their folders."""
    source = source_of(path)
    if not source.names:
        raise DataError(f"{path}: holds no images (PNG, JPEG), and is no source of another known kind")
    classes, labels = source.classes()
    folders = sorted({name.partition("/")[0] for name in source.names if "/" in name})
    if not classes and folders and all("/" in name for name in source.names) and source.read(LABELS) is None:
        classes = tuple(folders)
        labels = np.array([folders.index(name.partition("/")[0]) for name in source.names], dtype=np.int64)

    def pictures() -> Iterator[Picture]:
        for name, label in zip(source.names, labels.tolist(), strict=True):
            where = f"{path}: {name}"
            yield Picture(where, opened(where, source.read(name) or b""), label if classes else None)

    return Source(classes, len(source.names), pictures())


def _cifar10(path: Path) -> Source:
    """The 50,000 training images in CIFAR-10's batches for Python, which are read as data."""
    names = [f"data_batch_{k}" for k in range(1, 6)]

    def batches() -> Iterator[tuple[str, UInt8Array, list[int]]]:
        if path.is_dir():
            for name in names:
                yield str(path / name), *_cifar10_batch(path / name)
            return
        try:
            with TemporaryDirectory(prefix="pfgmpp-") as folder, tarfile.open(path) as archive:
                for member in archive:
                    name = Path(member.name).name
                    if name in names and member.isfile() and (content := archive.extractfile(member)):
                        file = Path(folder) / name
                        file.write_bytes(content.read())
                        yield f"{path}: {name}", *_cifar10_batch(file)
        except (tarfile.TarError, OSError, EOFError) as error:
            raise DataError(f"{path}: cannot be read ({error})") from error

    def pictures() -> Iterator[Picture]:
        for where, images, labels in batches():
            for k, (pixels, label) in enumerate(zip(images, labels, strict=True)):
                yield Picture(f"{where}: {k}", Image.fromarray(pixels), label)

    return Source(CIFAR10, 50_000, pictures())


def _cifar10_batch(file: Path) -> tuple[UInt8Array, list[int]]:
    """Images [M, 32, 32, 3] and classes of a batch. Raises DataError."""
    try:
        batch = read(file).root
    except CheckpointError as error:
        raise DataError(str(error)) from error
    fields = {_text(key): value for key, value in batch.items()} if isinstance(batch, dict) else {}
    match fields.get("data"), fields.get("labels"):
        case Record("numpy.ndarray", {"array": Array() as array}), list(labels) if all(
            type(each) is int and 0 <= each < len(CIFAR10) for each in labels
        ):
            if array.shape == (len(labels), 3072) and array.storage.dtype == np.uint8:
                rows = np.array(array.values(), dtype=np.uint8)
                return np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), labels
    raise DataError(f"{file}: is no batch of CIFAR-10")


def _text(key: object) -> str:
    return bytes(key).decode("latin1") if isinstance(key, memoryview) else str(key)


def _mnist(path: Path) -> Source:
    """The images of an IDX file, with the labels in the one beside it, if there is one."""
    beside = path.with_name(path.name.replace("images-idx3", "labels-idx1"))
    try:
        content = gzip.decompress(path.read_bytes())
        labels = gzip.decompress(beside.read_bytes())[8:] if beside != path and beside.exists() else None
        magic, count, height, width = np.frombuffer(content[:16], ">i4").tolist()
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    if magic != MNIST_MAGIC or len(content) != 16 + count * height * width:
        raise DataError(f"{path}: is no IDX file of images")
    if labels is not None and len(labels) != count:
        raise DataError(f"{beside}: has {len(labels)} labels for {count} images")
    images = np.frombuffer(content, np.uint8, offset=16).reshape(count, height, width)
    pictures = (
        Picture(f"{path}: {k}", Image.fromarray(pixels), None if labels is None else labels[k])
        for k, pixels in enumerate(images)
    )
    return Source(tuple(map(str, range(max(labels) + 1))) if labels else (), count, pictures)


def _lmdb(path: Path) -> Source:
    """The images in an LMDB, as LSUN has them."""
    import lmdb

    try:
        database = lmdb.open(str(path), readonly=True, lock=False)
        count = database.stat()["entries"]
    except lmdb.Error as error:
        raise DataError(f"{path}: cannot be read ({error})") from error

    def pictures() -> Iterator[Picture]:
        with database.begin(buffers=True) as transaction:
            for key, value in transaction.cursor():
                where = f"{path}: {bytes(key).decode('latin1')}"
                yield Picture(where, opened(where, bytes(value)), None)

    return Source((), count, pictures())


def _fitted(picture: Picture, size: tuple[int, int] | None, crop: Crop, colour: Colour) -> Image.Image:
    """The picture, grey or RGB, cropped and resized. Raises DataError when it is not square then."""
    image = picture.image
    if image.mode.startswith("I"):  # 16 bits, which Pillow would cut off at 255
        image = Image.fromarray(np.rint(np.asarray(image) / 257).clip(0, 255).astype(np.uint8))
    is_grey = image.mode in {"L", "1", "F", "LA"} if colour == "kept" else colour == "grey"
    image = image.convert("L" if is_grey else "RGB")
    if crop == "center":
        image = _cut(image, 1.0)
    if crop == "center-wide" and size:
        image = _cut(image, size[0] / size[1])
    if size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    if crop == "center-wide":
        padded = Image.new(image.mode, (image.width, image.width))
        padded.paste(image, (0, (image.width - image.height) // 2))
        image = padded
    if image.width != image.height:
        raise DataError(f"{picture.where}: is {_described(image.size, image.mode)}, not square; --crop center cuts it")
    return image


def _cut(image: Image.Image, ratio: float) -> Image.Image:
    """The largest part around the middle that is so many times as wide as high."""
    width = min(image.width, round(image.height * ratio))
    height = min(image.height, round(image.width / ratio))
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _described(size: tuple[int, int], mode: str) -> str:
    return f"{size[0]}x{size[1]} {'grey' if mode == 'L' else mode}"


def parse_size(text: str | None) -> tuple[int, int] | None:
    """A width and height from `32` or `512x384`. Raises ValueError."""
    if text is None:
        return None
    numbers = [int(each) if each.isdecimal() else 0 for each in text.split("x")]
    if not 1 <= len(numbers) <= 2 or not all(1 <= each <= math.isqrt(2**24) for each in numbers):
        raise ValueError(f"--resolution {text}: must be a number of pixels, or WIDTHxHEIGHT")
    return numbers[0], numbers[-1]
