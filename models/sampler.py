"""The deterministic 2nd-order sampler (Karras et al., 2022, algorithm 1), one network evaluation at a time.

The ODE is dx/dsigma = (x - D_theta(x, sigma)) / sigma for every D of PFGM++ (Xu et al., 2023, section 4).
"""

import math
from collections.abc import Callable, Generator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor


class Query(NamedTuple):
    """What a solver wants to know next: the denoised estimate at (x, sigma)."""

    x: Tensor
    sigma: float


Solver = Generator[Query, Tensor, Tensor]
"""Yields a Query, is sent the estimate in float64, and returns the image."""


def noise_levels(steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> list[float]:
    """The noise levels sigma_0 = sigma_max > ... > sigma_{n-1} = sigma_min, then 0 (EDM, eq. 5): n + 1 numbers.

    Raises ValueError for steps < 2, for which the formula divides by zero, and for a range that is not one.
    """
    if steps < 2:
        raise ValueError(f"steps must be at least 2, not {steps}")
    if not 0 < sigma_min < sigma_max < math.inf:
        raise ValueError(f"noise levels need 0 < sigma_min < sigma_max < inf, not {sigma_min} and {sigma_max}")
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    start, end = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    levels: list[float] = ((start + ramp * (end - start)) ** rho).tolist()
    return [*levels, 0.0]


def heun(x: Tensor, sigmas: list[float]) -> Solver:
    """The image at the end of the path from x [..., C, H, W] (float64) through the falling noise levels.

    Euler to the next level, then the mean of the slopes at both ends (EDM, algorithm 1 with gamma = 0); the last
    step, to 0, is Euler alone: 2n - 1 evaluations for n steps. Yields every point at which it needs an estimate.
    """
    for sigma, sigma_next in pairwise(sigmas):
        slope = (x - (yield Query(x, sigma))) / sigma
        x_next = x.add(slope, alpha=sigma_next - sigma)
        if sigma_next > 0:
            slope_next = (x_next - (yield Query(x_next, sigma_next))) / sigma_next
            x_next = x.add(slope + slope_next, alpha=(sigma_next - sigma) / 2)
        x = x_next
    return x


SOLVERS: dict[str, Callable[[Tensor, list[float]], Solver]] = {"heun": heun}
"""Solvers by the names that requests use: (x, falling noise levels) -> its queries, and the image."""
