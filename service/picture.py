"""Pictures: uint8 images laid out, enlarged and encoded as PNG. Needs numpy and Pillow, not torch."""

from collections.abc import Mapping
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]


def grid(images: Pixels, columns: int) -> Pixels:
    """Images [n, H, W, C] row by row as one picture [rows H, columns W, C]; places left over are black."""
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    places = np.zeros((rows * columns, height, width, channels), dtype=np.uint8)
    places[:count] = images
    table = places.reshape(rows, columns, height, width, channels)
    return table.swapaxes(1, 2).reshape(rows * height, columns * width, channels)


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


def array_bytes(array: np.ndarray[Any, Any]) -> bytes:
    """An array as a .npy file."""
    encoded = BytesIO()
    np.save(encoded, array, allow_pickle=False)
    return encoded.getvalue()
