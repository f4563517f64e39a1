"""Data sets to train on and to judge by."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

HELD_OUT = 500
"""How many of the 1,797 digits no model ever sees."""


@dataclass(frozen=True)
class Dataset:
    """Images [M, C, H, W] in [-1, 1] in float32 with their class indices [M]."""

    name: str
    classes: tuple[str, ...]
    images: Tensor
    labels: Tensor
    license: str


def load_digits(held_out: bool = False) -> Dataset:
    """Handwritten digits, 8x8 grey: 1,297 images to train on, or the 500 held out.

    They come with scikit-learn (UCI Optical Recognition of Handwritten Digits, Alpaydin and Kaynak, 1998; CC BY 4.0).
    """
    from sklearn.datasets import load_digits as bundled

    digits = bundled()
    order = np.random.Generator(np.random.Philox(key=0)).permutation(len(digits.images))
    chosen = order[-HELD_OUT:] if held_out else order[:-HELD_OUT]
    return Dataset(
        name="digits",
        classes=tuple(str(name) for name in digits.target_names),
        images=torch.from_numpy(digits.images[chosen]).to(torch.float32)[:, None] / 8 - 1,
        labels=torch.from_numpy(digits.target[chosen]).to(torch.int64),
        license="Apache-2.0 (data: UCI handwritten digits, CC BY 4.0)",
    )
