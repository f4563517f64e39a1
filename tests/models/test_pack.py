"""Packing: every kind of source, cropped and resized, into a ZIP that training reads."""

import gzip
import io
import json
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import lmdb
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from models.data import DataError, load_images
from models.pack import CIFAR10, Crop, pack, parse_size
from service.cli import app
from tests.models.test_data import FILES, LABELS, NAMES, PIXELS, described, png, written

RNG = np.random.default_rng(0)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["dataset", *map(str, arguments)])


def test_a_packed_data_set_is_that_of_its_source(tmp_path: Path) -> None:
    source = written(tmp_path / "source", FILES | described(LABELS))
    done = run(source, tmp_path / "new" / "packed.zip")
    assert done.exit_code == 0, done.output
    assert "packed.zip: 4 images of 8x8 RGB, 2 classes (cat, dog)" in done.output
    before, after = (load_images(path, tmp_path / "cache") for path in (source, tmp_path / "new" / "packed.zip"))
    assert (after.images == before.images).all()
    assert (after.labels == before.labels).all()
    assert after.classes == before.classes == ("cat", "dog")
    with zipfile.ZipFile(tmp_path / "new" / "packed.zip") as archive:
        assert archive.namelist() == [*(f"00000/img0000000{k}.png" for k in range(4)), "dataset.json"]
        assert {each.compress_type for each in archive.infolist()} == {zipfile.ZIP_STORED}


def test_folders_are_classes_where_nothing_else_says(tmp_path: Path) -> None:
    source = written(tmp_path / "source", {f"{name}/{k}.png": FILES[NAMES[k]] for k, name in enumerate("abba")})
    pack(source, tmp_path / "packed.zip", None, "none", None)
    data = load_images(tmp_path / "packed.zip", tmp_path / "cache")
    assert data.classes == ("a", "b")
    assert data.labels.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("crop", "size", "shape"), [("center", (8, 8), (8, 8, 3)), ("center-wide", (16, 8), (16, 16, 3))]
)
def test_pictures_are_cropped_around_the_middle(
    tmp_path: Path, crop: Crop, size: tuple[int, int], shape: tuple[int, ...]
) -> None:
    wide = np.zeros((16, 64, 3), np.uint8)
    wide[:, 16:48] = 255
    source = written(tmp_path / "source", {"a.png": png(wide), "b.png": png(wide[:, 8:56])})
    pack(source, tmp_path / "packed.zip", size, crop, None)
    images = load_images(tmp_path / "packed.zip", tmp_path / "cache").images
    assert images.shape[1:] == shape
    middle = images[:, 4:12] if crop == "center-wide" else images
    assert (middle == 255).all()
    assert crop == "center" or (images[:, [0, 3, 12, 15]] == 0).all()


def test_pictures_of_any_mode_become_grey_or_rgb(tmp_path: Path) -> None:
    pixels = PIXELS[0]
    with io.BytesIO() as palette:
        Image.fromarray(pixels).quantize(200).save(palette, "PNG")
        files = {"a.png": png(np.dstack([pixels, pixels[..., :1]])), "b.png": palette.getvalue()}
    pack(written(tmp_path / "source", files), tmp_path / "packed.zip", None, "none", None)
    assert load_images(tmp_path / "packed.zip", tmp_path / "cache").shape == (3, 8, 8)


def test_pictures_of_16_bits_keep_their_greys(tmp_path: Path) -> None:
    grey = PIXELS[0][..., 0]
    source = written(tmp_path / "source", {"a.png": png(grey.astype(np.uint16) * 257)})
    assert run(source, tmp_path / "packed.zip").exit_code == 0
    assert (load_images(tmp_path / "packed.zip", tmp_path / "cache").images[0, ..., 0] == grey).all()


def test_grey_pictures_among_others_need_a_word(tmp_path: Path) -> None:
    files = {"a.png": png(PIXELS[0]), "b.png": png(PIXELS[0][..., 0])}
    source, packed = written(tmp_path / "source", files), tmp_path / "packed.zip"
    done = run(source, packed)
    assert done.exit_code == 2
    assert "b.png: is 8x8 grey, but the first is 8x8 RGB; --colour makes them alike" in done.output
    for colour, channels in (("rgb", 3), ("grey", 1)):
        assert run(source, packed, "--colour", colour).exit_code == 0
        assert load_images(packed, tmp_path / "cache").shape == (channels, 8, 8)


def cifar10_batch(images: "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]", labels: list[int]) -> bytes:
    """A batch as Python 2 has written them."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    data = images.transpose(0, 3, 1, 2).tobytes()
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + text(b"b") + b"tR"
        + b"(K\x01(J" + struct.pack("<i", len(images)) + b"J" + struct.pack("<i", 3072) + b"t"
        + b"cnumpy\ndtype\n(" + text(b"u1") + b"K\x00K\x01tR(K\x03" + text(b"|") + b"NNN"
        + b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        + b"\x89T" + struct.pack("<i", len(data)) + data + b"tb"
    )  # fmt: skip
    listed = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(" + text(b"data") + array + text(b"labels") + listed + text(b"batch_label") + text(b"1") + b"u."


def test_a_batch_of_the_test_is_what_python_reads() -> None:
    images = RNG.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    batch = pickle.loads(cifar10_batch(images, [1, 2, 3]), encoding="bytes")
    assert batch[b"labels"] == [1, 2, 3]
    assert (batch[b"data"].reshape(3, 3, 32, 32).transpose(0, 2, 3, 1) == images).all()


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_the_batches_of_cifar10_are_read_as_data(tmp_path: Path, kind: str) -> None:
    images, labels = RNG.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8), [k % 10 for k in range(20)]
    folder = tmp_path / "cifar-10-batches-py"
    batches = {
        f"data_batch_{k}": cifar10_batch(images[4 * (k - 1) : 4 * k], labels[4 * (k - 1) : 4 * k]) for k in range(1, 6)
    }
    source = written(folder, batches | {"batches.meta": b"not read"})
    if kind == "tar":
        source = tmp_path / "cifar-10-python.tar.gz"
        with tarfile.open(source, "w:gz") as archive:
            archive.add(folder, folder.name)
    pack(source, tmp_path / "packed.zip", None, "none", None)
    data = load_images(tmp_path / "packed.zip", tmp_path / "cache")
    assert (data.images == images).all()
    assert data.labels.tolist() == labels
    assert data.classes == CIFAR10


def test_a_batch_that_would_run_code_is_refused(tmp_path: Path) -> None:
    evil = b"\x80\x02cos\nsystem\nU\x04true\x85R."
    source = written(tmp_path / "source", {f"data_batch_{k}": evil for k in range(1, 6)})
    done = run(source, tmp_path / "packed.zip")
    assert done.exit_code == 2
    assert "refers to 'os.system', which no checkpoint needs" in done.stderr
    assert [each.name for each in tmp_path.iterdir()] == ["source"]


def test_mnist_is_read_with_its_labels(tmp_path: Path) -> None:
    images, labels = RNG.integers(0, 256, (5, 28, 28), dtype=np.uint8), bytes([3, 1, 4, 1, 5])
    content = np.array([2051, 5, 28, 28], ">i4").tobytes() + images.tobytes()
    source = tmp_path / "train-images-idx3-ubyte.gz"
    source.write_bytes(gzip.compress(content))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(np.array([2049, 5], ">i4").tobytes() + labels))
    pack(source, tmp_path / "packed.zip", None, "none", 4)
    data = load_images(tmp_path / "packed.zip", tmp_path / "cache")
    assert (data.images[..., 0] == images[:4]).all()
    assert data.labels.tolist() == list(labels[:4])
    source.write_bytes(gzip.compress(content[:-1]))
    with pytest.raises(DataError, match="no IDX file of images"):
        pack(source, tmp_path / "packed.zip", None, "none", None)


def test_an_lmdb_is_read(tmp_path: Path) -> None:
    with lmdb.open(str(tmp_path / "lsun"), map_size=2**20) as database, database.begin(write=True) as transaction:
        for k, pixels in enumerate(PIXELS):
            transaction.put(str(k).encode(), png(pixels))
    pack(tmp_path / "lsun", tmp_path / "packed.zip", None, "none", None)
    data = load_images(tmp_path / "packed.zip", tmp_path / "cache")
    assert (data.images == np.stack(PIXELS)).all()
    assert data.classes == ()


@pytest.mark.parametrize(
    ("files", "arguments", "reason"),
    [
        ({}, (), "holds no images (PNG, JPEG)"),
        ({"a.png": b"none"}, (), "a.png: cannot be decoded (no image)"),
        ({"a.png": png(np.zeros((4, 8), np.uint8))}, (), "a.png: is 8x4 grey, not square; --crop center cuts it"),
        (
            {"a.png": png(np.zeros((8, 8), np.uint8)), "b.png": png(np.zeros((4, 4), np.uint8))},
            (),
            "b.png: is 4x4 grey, but the first is 8x8 grey; --resolution makes them of one size",
        ),
        (FILES, ("--resolution", "many"), "many"),
        (FILES, ("--resolution", "0"), "--resolution 0: must be a number of pixels"),
        (FILES | {"dataset.json": b"{"}, (), "dataset.json: not JSON"),
    ],
)
def test_what_cannot_be_packed_is_named_and_nothing_written(
    tmp_path: Path, files: dict[str, bytes], arguments: tuple[str, ...], reason: str
) -> None:
    source = written(tmp_path / "source", files or {"readme.txt": b""})
    done = run(source, tmp_path / "packed.zip", *arguments)
    assert done.exit_code == 2
    assert reason in done.stderr
    assert [each.name for each in tmp_path.iterdir()] == ["source"]


def test_the_source_is_never_written_over(tmp_path: Path) -> None:
    source = written(tmp_path / "source.zip", FILES)
    before = source.read_bytes()
    assert run(source, source).exit_code == 2
    assert source.read_bytes() == before
    assert run(tmp_path / "none.zip", tmp_path / "packed.zip").exit_code == 2


@pytest.mark.parametrize(("text", "size"), [(None, None), ("32", (32, 32)), ("512x384", (512, 384))])
def test_a_size_is_one_number_or_two(text: str | None, size: tuple[int, int] | None) -> None:
    assert parse_size(text) == size


def test_what_is_packed_says_so_in_json(tmp_path: Path) -> None:
    pack(written(tmp_path / "source.zip", {"a.png": FILES[NAMES[0]]}), tmp_path / "packed.zip", None, "none", None)
    with zipfile.ZipFile(tmp_path / "packed.zip") as archive:
        assert json.loads(archive.read("dataset.json")) == {"labels": None, "classes": None}
