"""Augmentation that does not leak: the network is told how an image was changed (EDM, appendix F.2, after ADA).

Flips, scaling, rotation, stretching along an axis, and translation: nine numbers tell of them, all 0 for no change.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from models.kernel import FloatArray

SCALE_DEVIATION = 0.2
"""Of the logarithm, to the base 2, of how an image is scaled or stretched."""

SHIFT_DEVIATION = 0.125
"""Of how far it is moved, in its width."""


@dataclass(frozen=True)
class Changes:
    """What is done to each of n images."""

    flips: Tensor
    """[n, 2] bool: left and right, top and bottom."""
    warp: Tensor
    """[n, 2, 3]: the point of the image, in -1..1, that is seen at each point of the changed one."""
    is_warped: Tensor
    """[n] bool: whether that is more than the identity."""
    labels: Tensor
    """[n, 9]: flips (2), log2 scale, cos - 1 and sin of the rotation, stretch (2), shift (2); the deviations are 1."""

    DRAWS: ClassVar[int] = 17
    """Uniform numbers that decide on the changes of an image."""

    @classmethod
    def of(cls, u: FloatArray, p: float) -> "Changes":
        """What uniform numbers [n, DRAWS] decide on: each kind but the left-right flip with probability p."""
        on = (u[:, :5] < p).astype(np.float64)
        flips = np.stack([u[:, 5] < 0.5, (u[:, 6] < 0.5) & (on[:, 0] > 0)], axis=1)
        scale, along, right, down = (on[:, k] * z for k, z in zip((1, 3, 4, 4), _normal(u[:, 7:15]), strict=True))
        angle, axis = (on[:, k] * (2 * u[:, 15 + j] - 1) * math.pi for j, k in ((0, 2), (1, 3)))
        labels = [*flips.T, scale, np.cos(angle) - 1, np.sin(angle), along * np.cos(axis), along * np.sin(axis)]
        # The inverse of: scale, rotate, stretch, shift.
        warp = _scaling(2 ** (-SCALE_DEVIATION * scale)) @ _rotation(-angle)
        stretching = _scaling(2 ** (-SCALE_DEVIATION * along), 2 ** (SCALE_DEVIATION * along))
        warp = warp @ _rotation(axis) @ stretching @ _rotation(-axis)
        shift = np.stack([right, down], axis=1)[..., None] * (2 * SHIFT_DEVIATION)
        return cls(
            torch.from_numpy(flips),
            torch.from_numpy(np.concatenate([warp, -warp @ shift], axis=2)).to(torch.float32),
            torch.from_numpy(on[:, 1:].any(1)),
            torch.from_numpy(np.stack([*labels, right, down], axis=1)).to(torch.float32),
        )

    def to(self, device: torch.device, non_blocking: bool = False) -> "Changes":
        """The same on a device."""
        parts = (self.flips, self.warp, self.is_warped, self.labels)
        return Changes(*(each.to(device, non_blocking=non_blocking) for each in parts))

    def apply(self, images: Tensor) -> Tensor:
        """The images [n, C, H, W], changed; one that is only flipped, or not changed, keeps its very pixels."""
        for k, axis in ((0, 3), (1, 2)):
            images = torch.where(self.flips[:, k, None, None, None], images.flip(axis), images)
        grid = affine_grid(self.warp, list(images.shape), align_corners=False)
        warped = grid_sample(images, grid, mode="bicubic", padding_mode="reflection", align_corners=False)
        return torch.where(self.is_warped[:, None, None, None], warped.clamp(-1, 1), images)


def _normal(u: FloatArray) -> list[FloatArray]:
    """Standard normal numbers from pairs of uniform ones [n, 2m] (Box and Muller): m times [n]."""
    radius = np.sqrt(-2 * np.log1p(-u[:, 0::2]))
    return list((radius * np.cos(2 * math.pi * u[:, 1::2])).T)


def _scaling(x: FloatArray, y: FloatArray | None = None) -> FloatArray:
    zero = np.zeros_like(x)
    return _matrix(x, zero, zero, x if y is None else y)


def _rotation(angle: FloatArray) -> FloatArray:
    return _matrix(np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle))


def _matrix(a: FloatArray, b: FloatArray, c: FloatArray, d: FloatArray) -> FloatArray:
    matrix: FloatArray = np.stack([np.stack([a, b], axis=1), np.stack([c, d], axis=1)], axis=1)
    return matrix
