"""The samplers of EDM (Karras et al., 2022), one network evaluation at a time.

The ODE is dx/dsigma = (x - D_theta(x, sigma)) / sigma for every D of PFGM++ (Xu et al., 2023, section 4).
"""

import math
from collections.abc import Callable, Generator
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor

from models.levels import Scaling, Schedule


class Query(NamedTuple):
    """What a solver wants to know next: the denoised estimate at (x, sigma)."""

    x: Tensor
    sigma: float


Solver = Generator[Query, Tensor, Tensor]
"""Yields a Query, is sent the estimate in float64, and returns the image."""

Noise = Callable[[], Tensor]
"""The next standard Gaussian noise, of the images' shape."""

Disturbance = Callable[[Tensor, float], tuple[Tensor, float]]
"""(x, sigma) -> x with some noise added, and the noise level at which it then is."""


def undisturbed(x: Tensor, sigma: float) -> tuple[Tensor, float]:
    """Nothing happens."""
    return x, sigma


def euler(x: Tensor, sigmas: list[float], disturb: Disturbance = undisturbed) -> Solver:
    """The image at the end of the path from x [..., C, H, W] (float64), by steps of first order.

    n evaluations for n steps; `disturb` acts before each of them.
    """
    for at, sigma_next in pairwise(sigmas):
        x, sigma = disturb(x, at)
        slope = (x - (yield Query(x, sigma))) / sigma
        x = x.add(slope, alpha=sigma_next - sigma)
    return x


def heun(x: Tensor, sigmas: list[float], disturb: Disturbance = undisturbed) -> Solver:
    """The image at the end of the path from x [..., C, H, W] (float64) through the falling noise levels.

    Euler to the next level, then the mean of the slopes at both ends (EDM, algorithm 1 with gamma = 0); the last
    step, to 0, is Euler alone: 2n - 1 evaluations for n steps. Yields every point at which it needs an estimate;
    `disturb` acts before each step, and with `churned` makes it EDM's algorithm 2.
    """
    for at, sigma_next in pairwise(sigmas):
        x, sigma = disturb(x, at)
        slope = (x - (yield Query(x, sigma))) / sigma
        x_next = x.add(slope, alpha=sigma_next - sigma)
        if sigma_next > 0:
            slope_next = (x_next - (yield Query(x_next, sigma_next))) / sigma_next
            x_next = x.add(slope + slope_next, alpha=(sigma_next - sigma) / 2)
        x = x_next
    return x


class Churn(NamedTuple):
    """How much fresh noise the stochastic sampler adds (EDM, algorithm 2)."""

    S_churn: float = 40.0
    S_min: float = 0.0
    S_max: float = math.inf
    S_noise: float = 1.0


def churned(churn: Churn, steps: int, noise: Noise) -> Disturbance:
    """Noise added before a step that starts between S_min and S_max, which then starts from a higher level.

    The noise is Gaussian for every D, as in the official code; for finite D that is an approximation of the kernel.
    """
    gamma = min(churn.S_churn / steps, math.sqrt(2) - 1)

    def disturb(x: Tensor, sigma: float) -> tuple[Tensor, float]:
        if gamma == 0 or not churn.S_min <= sigma <= churn.S_max:
            return x, sigma
        higher = sigma + gamma * sigma
        return x.add(noise(), alpha=math.sqrt(higher**2 - sigma**2) * churn.S_noise), higher

    return disturb


def injected(alpha: float, noise: Noise) -> Disturbance:
    """x + alpha sigma z before each step, at the same level: errors put in on purpose (PFGM++, section 5)."""
    return lambda x, sigma: (x.add(noise(), alpha=alpha * sigma), sigma)


def ablation(x: Tensor, sigmas: list[float], schedule: Schedule, scaling: Scaling, alpha: float | None) -> Solver:
    """The path in the time of another process, for images scaled by s(t) (EDM, algorithm 3 and eq. 4).

    dx/dt = (sigma'/sigma + s'/s) x - (sigma' s / sigma) D_theta(x / s, sigma). Of second order with the second slope at
    t + alpha h (1: Heun; 0.5: the midpoint), 2n - 1 evaluations; of first order with alpha None, n. `x` is not scaled.
    """

    def slope(x: Tensor, t: float) -> Solver:
        sigma, growth = schedule.sigma(t), schedule.slope(t)
        s, s_slope = _scale(scaling, sigma, growth)
        denoised = yield Query(x / s, sigma)
        return (growth / sigma + s_slope / s) * x - growth * s / sigma * denoised

    times = [*(schedule.time(sigma) for sigma in sigmas[:-1]), 0.0]
    x = x * _scale(scaling, sigmas[0], 0.0)[0]
    for t, t_next in pairwise(times):
        h = t_next - t
        first = yield from slope(x, t)
        if alpha is None or t_next == 0:
            x = x.add(first, alpha=h)
        else:
            second = yield from slope(x.add(first, alpha=alpha * h), t + alpha * h)
            x = x + h * ((1 - 1 / (2 * alpha)) * first + 1 / (2 * alpha) * second)
    return x


def _scale(scaling: Scaling, sigma: float, growth: float) -> tuple[float, float]:
    """s(t) and its slope, where the noise level is sigma and grows by `growth`."""
    if scaling == "none":
        return 1.0, 0.0
    s = 1 / math.hypot(1, sigma)
    return s, -sigma * growth * s**3
