"""The noise levels along a path, and the times at which a process has them (Karras et al., 2022, eq. 5 and table 1)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Literal, NamedTuple

Discretization = Literal["edm", "vp", "ve", "iddpm"]
ScheduleName = Literal["linear", "vp", "ve"]
Scaling = Literal["none", "vp"]

VP_EPSILON = 1e-3
"""The time at which sampling with VP's discretization ends; at 1 it begins."""

LEAST_STEP = 1e-9
"""By how much of itself a noise level must be above the next one: solvers divide by such differences."""

IDDPM_M, IDDPM_C_1, IDDPM_C_2 = 1000, 0.001, 0.008


class LevelsError(ArithmeticError):
    """A path would need more noise levels than there are."""


class Range(NamedTuple):
    """The noise levels between which a path runs."""

    sigma_min: float
    sigma_max: float


def noise_levels(steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> list[float]:
    """The noise levels sigma_0 = sigma_max > ... > sigma_{n-1} = sigma_min, then 0 (EDM, eq. 5): n + 1 numbers.

    Raises ValueError for steps < 2, for which the formula divides by zero, and for a range that is not one.
    """
    check(steps, sigma_min, sigma_max)
    start, end = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return [*((start + i / (steps - 1) * (end - start)) ** rho for i in range(steps)), 0.0]


def check(steps: int, sigma_min: float, sigma_max: float) -> None:
    """Raise ValueError unless there are two steps or more, and a range."""
    if steps < 2:
        raise ValueError(f"steps must be at least 2, not {steps}")
    if not 0 < sigma_min < sigma_max < math.inf:
        raise ValueError(f"noise levels need 0 < sigma_min < sigma_max < inf, not {sigma_min} and {sigma_max}")


def discretized(kind: Discretization, steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> list[float]:
    """The noise levels of a method, falling, then 0 (EDM, table 1, "time steps"): n + 1 numbers.

    `rho` shapes those of EDM alone. Raises ValueError as `noise_levels` does, and LevelsError when iDDPM's table has
    fewer in the range, or the formula gives levels that do not fall, or leave it.
    """
    try:
        levels = _discretized(kind, steps, sigma_min, sigma_max, rho)
    except OverflowError:
        levels = [math.inf]
    falls = all(high > low * (1 + LEAST_STEP) for high, low in pairwise(levels))
    if not falls or levels[0] > sigma_max * (1 + 1e-9):
        raise LevelsError(f"{kind} has no {steps} falling noise levels from {sigma_max:g} to {sigma_min:g}")
    return levels


def _discretized(kind: Discretization, steps: int, sigma_min: float, sigma_max: float, rho: float) -> list[float]:
    """The levels by the formula of the method."""
    if kind == "edm":
        return noise_levels(steps, sigma_min, sigma_max, rho)
    check(steps, sigma_min, sigma_max)
    ramp = [i / (steps - 1) for i in range(steps)]
    if kind == "vp":
        schedule = vp_schedule(Range(sigma_min, sigma_max))
        return [*(schedule.sigma(1 + at * (VP_EPSILON - 1)) for at in ramp), 0.0]
    if kind == "ve":
        return [*(sigma_max * (sigma_min / sigma_max) ** at for at in ramp), 0.0]
    table = [level for level in iddpm_levels() if sigma_min <= level <= sigma_max]
    if len(table) < steps:
        raise LevelsError(f"iddpm has {len(table)} noise levels from {sigma_min:g} to {sigma_max:g}, and not {steps}")
    return [*(table[round((len(table) - 1) * at)] for at in ramp), 0.0]


def rounded(levels: list[float], table: Sequence[float]) -> list[float]:
    """The levels nearest to these in the table of a network that was trained at no others; an empty one has all.

    Raises LevelsError when two of them are the same.
    """
    if not table:
        return levels
    nearest = [min(table, key=lambda known: abs(known - level)) if level else 0.0 for level in levels]
    if len(set(nearest)) < len(nearest):
        raise LevelsError(f"{len(levels) - 1} steps are too many: the network was not trained at so many noise levels")
    return nearest


@cache
def iddpm_levels(M: int = IDDPM_M, C_1: float = IDDPM_C_1, C_2: float = IDDPM_C_2) -> tuple[float, ...]:
    """u_0 > ... > u_M = 0: the noise levels at which iDDPM's networks are trained (EDM, table 1)."""

    def alpha_bar(j: int) -> float:
        return math.sin(0.5 * math.pi * j / (M * (C_2 + 1))) ** 2

    u = [0.0]
    for j in range(M, 0, -1):
        u.append(math.sqrt((u[-1] ** 2 + 1) / max(alpha_bar(j - 1) / alpha_bar(j), C_1) - 1))
    return tuple(u[::-1])


@dataclass(frozen=True)
class Schedule:
    """How noise grows with the time of a process: sigma(t), its slope, and the time at which it has a level."""

    sigma: Callable[[float], float]
    slope: Callable[[float], float]
    time: Callable[[float], float]


LINEAR = Schedule(sigma=lambda t: t, slope=lambda t: 1.0, time=lambda sigma: sigma)
VE = Schedule(sigma=math.sqrt, slope=lambda t: 0.5 / math.sqrt(t), time=lambda sigma: sigma**2)


def vp_schedule(ends: Range) -> Schedule:
    """VP's, with the beta(t) that has these noise levels at VP_EPSILON and at 1."""
    low, high = math.log1p(ends.sigma_min**2), math.log1p(ends.sigma_max**2)
    beta_d = 2 * (low / VP_EPSILON - high) / (VP_EPSILON - 1)
    beta_min = high - 0.5 * beta_d

    def sigma(t: float) -> float:
        return math.sqrt(math.expm1(0.5 * beta_d * t**2 + beta_min * t))

    def slope(t: float) -> float:
        level = sigma(t)
        return 0.5 * (beta_min + beta_d * t) * (level + 1 / level)

    def time(level: float) -> float:
        return (math.sqrt(beta_min**2 + 2 * beta_d * math.log1p(level**2)) - beta_min) / beta_d

    return Schedule(sigma, slope, time)


def schedule_of(name: ScheduleName, ends: Range) -> Schedule:
    """The schedule of that name, for a path between these noise levels."""
    return vp_schedule(ends) if name == "vp" else VE if name == "ve" else LINEAR


def default_range(kind: Discretization) -> Range:
    """The noise levels between which a method samples if nothing else is said (EDM, table 1)."""
    if kind == "vp":

        def sigma(t: float) -> float:
            return math.sqrt(math.expm1(0.5 * 19.1 * t**2 + 0.1 * t))

        return Range(sigma(VP_EPSILON), sigma(1.0))
    return {"edm": Range(0.002, 80.0), "ve": Range(0.02, 100.0), "iddpm": Range(0.002, 81.0)}[kind]
