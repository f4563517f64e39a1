"""Data sets to train on and to judge by: images of one size with their classes, decoded once and then mapped."""

import hashlib
import io
import json
import math
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

HELD_OUT = 500
"""How many of the 1,797 digits no model ever sees."""

SUFFIXES = {".png", ".jpg", ".jpeg"}
LABELS = "dataset.json"
MAX_PIXELS = 2**24
"""Of one image: more is a mistake, or meant to fill the memory."""

UInt8Array = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
IntArray = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


class DataError(ValueError):
    """A data set cannot be used; the message names the file and the reason."""


@dataclass(frozen=True)
class Dataset:
    """Images [M, H, W, C] of bytes with their class indices [M], which are all 0 without classes."""

    name: str
    classes: tuple[str, ...]
    images: UInt8Array
    labels: IntArray
    license: str

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """[C, H, W] of one image."""
        height, width, channels = self.images.shape[1:]
        return channels, height, width

    def take(self, chosen: IntArray) -> Tensor:
        """Some images, [B, C, H, W] in [-1, 1] in float32."""
        return in_unit(self.images[chosen])

    def crops(self, chosen: IntArray, corners: IntArray, size: int) -> Tensor:
        """Square parts of some images, from their corners [B, 2] across and down: [B, C, size, size] in [-1, 1]."""
        places = zip(chosen, corners, strict=True)
        return in_unit(
            np.stack([self.images[k, down : down + size, across : across + size] for k, (across, down) in places])
        )

    def one_hot(self, chosen: IntArray) -> Tensor | None:
        """Their classes, [B, classes] in float32; None without classes."""
        return torch.eye(len(self.classes))[self.labels[chosen]] if self.classes else None

    def fingerprint(self) -> str:
        """The SHA-256 of all images and labels, in hexadecimal."""
        digest = hashlib.sha256(repr((self.images.shape, self.classes)).encode())
        digest.update(np.ascontiguousarray(self.images).data)
        digest.update(np.ascontiguousarray(self.labels).data)
        return digest.hexdigest()

    def first(self, count: int) -> "Dataset":
        """The first images alone."""
        return replace(self, images=self.images[:count], labels=self.labels[:count])


def in_unit(images: UInt8Array) -> Tensor:
    """Images [B, H, W, C] of bytes as [B, C, H, W] in [-1, 1] in float32."""
    return torch.from_numpy(np.ascontiguousarray(images)).movedim(-1, 1).to(torch.float32) / 127.5 - 1


def load_digits(held_out: bool = False) -> Dataset:
    """Handwritten digits, 8x8 grey: 1,297 images to train on, or the 500 held out.

    They come with scikit-learn (UCI Optical Recognition of Handwritten Digits, Alpaydin and Kaynak, 1998; CC BY 4.0).
    """
    # Its file alone, for to import scikit-learn takes 2 s of the start of a training.
    spec = find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("No module named 'sklearn'", name="sklearn")
    rows = np.loadtxt(Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz", np.int64, delimiter=",")
    order = np.random.Generator(np.random.Philox(key=0)).permutation(len(rows))
    chosen = rows[order[-HELD_OUT:] if held_out else order[:-HELD_OUT]]
    return Dataset(
        name="digits",
        classes=tuple("0123456789"),
        images=np.rint(chosen[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)[..., None],
        labels=chosen[:, -1],
        license="Apache-2.0 (data: UCI handwritten digits, CC BY 4.0)",
    )


def cache_folder() -> Path:
    """Where decoded images are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pfgmpp"


def load_images(
    path: Path,
    cache: Path,
    name: str | None = None,
    terms: str = "that of its data",
    report: Callable[[int, int], object] = lambda done, total: None,
) -> Dataset:
    """The images of a ZIP or folder in the layout of StyleGAN and EDM, with the classes of its `dataset.json`.

    They are decoded once into a file in `cache`, from which they are then mapped. The name is that of the ZIP or folder
    unless one is given, the licence that of `terms`. `report` is told how many of them are decoded.

    Raises DataError naming the file that is missing, no image, of another size than the first, or without a label.
    """
    source = source_of(path)
    if not source.names:
        raise DataError(f"{path}: holds no PNG or JPEG files")
    classes, labels = source.classes()
    decoded = cache / f"images-{source.fingerprint()}.npy"
    if not decoded.exists():
        _decode(source, decoded, report)
    images: UInt8Array = np.lib.format.open_memmap(decoded, "r")
    return Dataset(name or _as_name(path), classes, images, labels, terms)


class Files:
    """Image files of a source, in the order of their names."""

    path: Path
    names: list[str]

    def read(self, name: str) -> bytes | None:
        """The contents of a file; None when it is not there. Raises DataError when it is damaged."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """Changes with any of the files."""
        raise NotImplementedError

    def classes(self) -> tuple[tuple[str, ...], IntArray]:
        """The names of the classes and every image's; none without labels."""
        none: IntArray = np.zeros(len(self.names), dtype=np.int64)
        text = self.read(LABELS)
        if text is None:
            return (), none
        where = f"{self.path}: {LABELS}"
        try:
            noted: Any = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: not JSON ({error})") from error
        pairs = noted.get("labels") if isinstance(noted, dict) else None
        if pairs is None:
            return (), none
        if not isinstance(pairs, list) or not all(_is_label(each) for each in pairs):
            raise DataError(f'{where}: "labels" must be a list of [file, class index], or null')
        of_file = {name.replace("\\", "/"): label for name, label in pairs}
        unlabelled = next((name for name in self.names if name not in of_file), None)
        if unlabelled:
            raise DataError(f"{where}: has no label for {unlabelled}")
        labels: IntArray = np.array([of_file[name] for name in self.names], dtype=np.int64)
        names = noted.get("classes") or [str(k) for k in range(int(labels.max()) + 1)]
        if (
            not isinstance(names, list)
            or not all(isinstance(each, str) for each in names)
            or labels.max() >= len(names)
        ):
            raise DataError(f'{where}: "classes" must be a list of a name for every class, {labels.max() + 1} or more')
        return tuple(names), labels


class _Folder(Files):
    """Image files anywhere below a directory."""

    def __init__(self, path: Path):
        self.path = path
        files = (each for each in path.rglob("*") if each.suffix.lower() in SUFFIXES and each.is_file())
        self.names = sorted(each.relative_to(path).as_posix() for each in files)

    def read(self, name: str) -> bytes | None:
        with suppress(FileNotFoundError):
            return (self.path / name).read_bytes()
        return None

    def fingerprint(self) -> str:
        about = ((name, (self.path / name).stat()) for name in self.names)
        return _fingerprint([str(self.path.resolve()), *(f"{n} {s.st_size} {s.st_mtime_ns}" for n, s in about)])


class _Archive(Files):
    """Image files in a ZIP."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except FileNotFoundError as error:
            raise DataError(f"{path}: there is no such file or folder") from error
        except (OSError, zipfile.BadZipFile) as error:
            raise DataError(f"{path}: neither a folder nor a ZIP file ({error})") from error
        self.names = sorted(name for name in self._zip.namelist() if Path(name).suffix.lower() in SUFFIXES)

    def read(self, name: str) -> bytes | None:
        try:
            return self._zip.read(name)
        except KeyError:
            return None
        except (OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError, zlib.error) as error:
            raise DataError(f"{self.path}: {name}: cannot be read ({error})") from error

    def fingerprint(self) -> str:
        status = self.path.stat()
        return _fingerprint([str(self.path.resolve()), f"{status.st_size} {status.st_mtime_ns}"])


def source_of(path: Path) -> Files:
    """The image files of a folder or ZIP. Raises DataError when it is neither."""
    return _Folder(path) if path.is_dir() else _Archive(path)


def _fingerprint(lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _is_label(pair: object) -> bool:
    match pair:
        case [str(), int(label)] if not isinstance(label, bool):
            return 0 <= label < 2**31
    return False


def _decode(source: Files, to: Path, report: Callable[[int, int], object]) -> None:
    """Write all images as one array; it appears under its name only when it is complete."""
    to.parent.mkdir(parents=True, exist_ok=True)
    temporary = to.with_suffix(f".{os.getpid()}.partial")
    try:
        array: UInt8Array | None = None
        for k, image in enumerate(_decoded(source)):
            if array is None:
                array = np.lib.format.open_memmap(
                    temporary, "w+", dtype=np.uint8, shape=(len(source.names), *image.shape)
                )
            if image.shape != array.shape[1:]:
                first, found = (
                    f"{width}x{height}x{channels}" for height, width, channels in (array.shape[1:], image.shape)
                )
                raise DataError(
                    f"{source.path}: {source.names[k]} is {found}, but {source.names[0]} is {first}; "
                    "`pfgmpp dataset` makes them of one size"
                )
            array[k] = image
            report(k + 1, len(source.names))
        if array is not None:
            array.flush()  # type: ignore[attr-defined]
        os.replace(temporary, to)
    finally:
        temporary.unlink(missing_ok=True)


def _decoded(source: Files) -> Iterator[UInt8Array]:
    """Image after image, [H, W, C]."""
    for name in source.names:
        image = opened(f"{source.path}: {name}", source.read(name) or b"")
        if image.mode not in {"L", "RGB"}:
            raise DataError(f"{source.path}: {name} is {image.mode}; `pfgmpp dataset` makes it grey (L) or RGB")
        if image.width != image.height:
            raise DataError(f"{source.path}: {name} is {image.width}x{image.height}; `pfgmpp dataset` makes it square")
        yield np.asarray(image).reshape(image.height, image.width, -1)


def opened(where: str, data: bytes) -> Image.Image:
    """An image, decoded. Raises DataError naming where it is from when it is none, or damaged, or huge."""
    try:
        image = Image.open(io.BytesIO(data))
        if math.prod(image.size) > MAX_PIXELS:
            raise DataError(f"{where}: {image.width}x{image.height} is more than {MAX_PIXELS:,} pixels")
        image.load()
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        reason = "no image" if isinstance(error, UnidentifiedImageError) else str(error)
        raise DataError(f"{where}: cannot be decoded ({reason})") from error
    return image


def _as_name(path: Path) -> str:
    """The name of a data set as its file suggests it."""
    return re.sub(r"[^a-z0-9_-]+", "-", path.resolve().stem.lower()).strip("-_") or "images"
