"""Pictures: uint8 images laid out, enlarged and encoded as PNG. Needs numpy and Pillow, not torch."""

import errno
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]

GAP = 1
"""Pixels between the images of a grid: without them, digits run together."""

LINE = 48
"""Their grey: seen beside black and beside white."""


def grid_shape(count: int, columns: int, resolution: int) -> tuple[int, int]:
    """Height and width of a grid of square images, before it is enlarged."""
    rows = -(-count // columns)
    return rows * (resolution + GAP) + GAP, columns * (resolution + GAP) + GAP


def grid(images: Pixels, columns: int) -> Pixels:
    """Square images [n, R, R, C] row by row as one picture [H, W, C], with lines between and around them."""
    count, resolution, _, channels = images.shape
    picture = np.full((*grid_shape(count, columns, resolution), channels), LINE, dtype=np.uint8)
    for k, image in enumerate(images):
        top, left = (GAP + (resolution + GAP) * place for place in divmod(k, columns))
        picture[top : top + resolution, left : left + resolution] = image
    return picture


def png(pixels: Pixels, scale: int = 1, text: Mapping[str, str] | None = None) -> bytes:
    """A picture [H, W, 1 or 3] as a PNG, enlarged by nearest neighbour, with text chunks of the given names."""
    large = pixels.repeat(scale, axis=0).repeat(scale, axis=1)
    info = PngInfo()
    for name, value in (text or {}).items():
        info.add_text(name, value)
    picture = Image.fromarray(large[..., 0] if large.shape[-1] == 1 else large)
    encoded = BytesIO()
    picture.save(encoded, "PNG", pnginfo=info, compress_level=6)
    return encoded.getvalue()


def read_array(path: Path, is_mapped: bool = False) -> np.ndarray[Any, Any]:
    """The array in a .npy file, mapped or read. Raises OSError when it is not there or not whole."""
    try:
        array: np.ndarray[Any, Any] = np.load(path, "r" if is_mapped else None, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise OSError(errno.EIO, f"{path.name} is damaged") from error
    return array


def array_bytes(array: np.ndarray[Any, Any]) -> bytes:
    """An array as a .npy file."""
    encoded = BytesIO()
    np.save(encoded, array, allow_pickle=False)
    return encoded.getvalue()
