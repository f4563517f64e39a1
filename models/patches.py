"""Patch-wise training (Patch Diffusion, Wang et al., 2023): most steps see patches, and where in the frame they lie.

It composes with every D as it is: a part of the kernel's noise follows that law with the same sigma and D, and N of the
part, which the Student-t form never mentions.
"""

from collections.abc import Iterator
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

LEAST = 8
"""Pixels of the smallest patches that are chosen without being asked for."""

FALL = 2 / 3
"""How often a size of patches comes, in that of the next larger one: .6 and .4 for two."""


class Patches(BaseModel):
    """How patches are chosen: a step sees those of one size, and the smaller they are, the more of them."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    real_p: Annotated[float, Field(ge=0, le=1)] = 0.5
    """How often a step sees whole images."""
    sizes: tuple[int, ...] | Literal["auto"] = "auto"
    """In pixels; auto: a half and a quarter of the frame, LEAST or more, where the network can halve them."""

    def shares(self, resolution: int, unit: int) -> dict[int, float]:
        """How likely each size is, that of the frame among them, for a network that needs multiples of `unit`.

        Raises ValueError for sizes that do not fit.
        """
        sizes = sorted(set(self._auto(resolution, unit) if self.sizes == "auto" else self.sizes), reverse=True)
        if not sizes:
            raise ValueError(f"patch.sizes: must be given, for half of {resolution} pixels is too small")
        for size in sizes:
            if not 0 < size < resolution or size % unit:
                raise ValueError(f"patch.sizes: must be multiples of {unit} below {resolution}, not {size}")
        weights = {size: FALL**k for k, size in enumerate(sizes)}
        total = sum(weights.values())
        return {resolution: self.real_p} | {
            size: (1 - self.real_p) * weight / total for size, weight in weights.items()
        }

    def _auto(self, resolution: int, unit: int) -> Iterator[int]:
        """A half and a quarter of the frame, if they fit."""
        for parts in (2, 4):
            size = resolution // parts
            if size * parts == resolution and size >= LEAST and size % unit == 0:
                yield size


def coordinates(corner: Tensor | None, like: Tensor, resolution: int) -> Tensor:
    """Where in its frame each pixel of images [B, C, H, W] lies: [B, 2, H, W], across and down, -1..1 in the frame.

    `corner` [B, 2] is that of the upper left pixels, across and down; (0, 0) if left out. Beyond the frame they go on.
    """
    height, width = like.shape[2:]
    across = torch.arange(width, dtype=like.dtype, device=like.device).expand(height, width)
    down = torch.arange(height, dtype=like.dtype, device=like.device)[:, None].expand(height, width)
    place = torch.stack([across, down]).expand(len(like), 2, height, width)
    if corner is not None:
        place = place + corner.to(like)[:, :, None, None]
    return place * (2 / max(1, resolution - 1)) - 1
