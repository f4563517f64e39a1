"""Data sets in ZIPs and folders: what is read, and how what cannot be is named."""

import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from models.data import DataError, load_images

RNG = np.random.default_rng(0)
PIXELS = [RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8) for _ in range(4)]


def png(pixels: Any, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


NAMES = ["00000/img0.png", "00000/img1.png", "00001/img2.png", "00001/img3.png"]
LABELS = {"labels": [[name, k % 2] for k, name in enumerate(NAMES)], "classes": ["cat", "dog"]}
FILES = {name: png(pixels) for name, pixels in zip(NAMES, PIXELS, strict=True)}


def written(path: Path, files: dict[str, bytes]) -> Path:
    """A ZIP if the path says so, else a folder."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    else:
        for name, data in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
    return path


@pytest.fixture(params=["set.zip", "set"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / str(request.param)


def described(labels: object) -> dict[str, bytes]:
    return {"dataset.json": json.dumps(labels).encode()}


def test_images_and_classes_are_read_and_decoded_once(path: Path, tmp_path: Path) -> None:
    written(path, FILES | described(LABELS))
    seen: list[tuple[int, int]] = []
    data = load_images(path, tmp_path / "cache", report=lambda done, total: seen.append((done, total)))
    assert (data.name, data.classes, data.shape, len(data)) == ("set", ("cat", "dog"), (3, 8, 8), 4)
    assert all((found == pixels).all() for found, pixels in zip(data.images, PIXELS, strict=True))
    assert data.labels.tolist() == [0, 1, 0, 1]
    assert seen[-1] == (4, 4)
    taken = data.take(np.array([2, 0]))
    assert (taken[0].numpy() == PIXELS[2].transpose(2, 0, 1).astype(np.float32) / np.float32(127.5) - 1).all()
    assert data.one_hot(np.array([1, 0])).tolist() == [[0, 1], [1, 0]]  # type: ignore[union-attr]
    load_images(path, tmp_path / "cache", report=lambda done, total: pytest.fail("decoded again"))
    assert len(list((tmp_path / "cache").iterdir())) == 1


@pytest.mark.parametrize("labels", [None, {"labels": None}])
def test_without_labels_there_are_no_classes(path: Path, tmp_path: Path, labels: object) -> None:
    written(path, FILES | (described(labels) if labels else {}))
    data = load_images(path, tmp_path / "cache", "things", "CC0")
    assert (data.name, data.classes, data.license) == ("things", (), "CC0")
    assert data.one_hot(np.arange(2)) is None


def test_classes_without_names_are_numbers(path: Path, tmp_path: Path) -> None:
    written(path, FILES | described({"labels": [[name, 2] for name in NAMES]}))
    assert load_images(path, tmp_path / "cache").classes == ("0", "1", "2")


def test_a_file_that_changes_is_decoded_again(path: Path, tmp_path: Path) -> None:
    written(path, FILES)
    load_images(path, tmp_path / "cache")
    written(path, FILES | {NAMES[0]: png(PIXELS[3])})
    changed = path if path.is_file() else path / NAMES[0]
    os.utime(changed, ns=(0, 1))
    assert (load_images(path, tmp_path / "cache").images[0] == PIXELS[3]).all()


def test_jpeg_is_decoded_as_its_library_does(path: Path, tmp_path: Path) -> None:
    jpeg = png(PIXELS[0], "JPEG")
    written(path, {"a.jpg": jpeg})
    assert (load_images(path, tmp_path / "cache").images[0] == np.asarray(Image.open(io.BytesIO(jpeg)))).all()


GREY = np.zeros((8, 8), np.uint8)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({}, "holds no PNG or JPEG files"),
        ({NAMES[1]: b"no image"}, "00000/img1.png: cannot be decoded (no image)"),
        ({NAMES[1]: FILES[NAMES[1]][:90]}, "00000/img1.png: cannot be decoded"),
        ({NAMES[1]: b""}, "00000/img1.png: cannot be decoded"),
        ({NAMES[1]: png(np.zeros((4, 4, 3), np.uint8))}, "00000/img1.png is 4x4x3, but 00000/img0.png is 8x8x3"),
        ({NAMES[1]: png(np.zeros((4, 8, 3), np.uint8))}, "00000/img1.png is 8x4; `pfgmpp dataset` makes it square"),
        ({NAMES[1]: png(GREY)}, "00000/img1.png is 8x8x1, but 00000/img0.png is 8x8x3"),
        ({NAMES[1]: png(np.zeros((8, 8, 4), np.uint8))}, "00000/img1.png is RGBA; `pfgmpp dataset` makes it"),
        ({"dataset.json": b"{"}, "dataset.json: not JSON"),
        (described({"labels": [["a.png", 0]]}), "dataset.json: has no label for 00000/img0.png"),
        (described({"labels": [[NAMES[0], -1]]}), 'dataset.json: "labels" must be a list of [file, class index]'),
        (described({"labels": [[NAMES[0], True]]}), 'dataset.json: "labels" must be a list of [file, class index]'),
        (described({"labels": 3}), 'dataset.json: "labels" must be a list of [file, class index]'),
        (described(LABELS | {"classes": ["cat"]}), '"classes" must be a list of a name for every class, 2 or more'),
    ],
)
def test_what_cannot_be_used_is_named(path: Path, tmp_path: Path, files: dict[str, bytes], reason: str) -> None:
    written(path, (FILES if files else {"readme.txt": b""}) | files)
    with pytest.raises(DataError) as refused:
        load_images(path, tmp_path / "cache")
    assert str(refused.value).startswith(f"{path}: ")
    assert reason in str(refused.value)
    cache = tmp_path / "cache"
    assert not cache.exists() or not list(cache.iterdir()), "nothing half done is left"


def test_what_is_no_data_set_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such file or folder"):
        load_images(tmp_path / "none.zip", tmp_path)
    (tmp_path / "text.zip").write_text("text")
    with pytest.raises(DataError, match="neither a folder nor a ZIP file"):
        load_images(tmp_path / "text.zip", tmp_path)


def test_an_image_of_too_many_pixels_is_not_decoded(tmp_path: Path) -> None:
    bomb = png(np.zeros((8192, 4096), np.uint8))
    with pytest.raises(DataError, match="4096x8192 is more than 16,777,216 pixels"):
        load_images(written(tmp_path / "bomb.zip", {"a.png": bomb}), tmp_path / "cache")
