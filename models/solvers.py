"""From a choice of sampling to a solver on its way."""

import math
from collections.abc import Callable

from torch import Tensor

from models.levels import Range, schedule_of
from models.multistep import dpmpp_2m, dpmpp_3m, ipndm, unipc
from models.sampler import Churn, Disturbance, Noise, Solver, ablation, churned, euler, heun, injected, undisturbed
from models.sampling import Sampling, SolverName

SOLVERS: dict[SolverName, Callable[[Tensor, list[float], Disturbance], Solver]] = {
    "heun": heun,
    "euler": euler,
    "churn": heun,
    "dpmpp-2m": dpmpp_2m,
    "dpmpp-3m": dpmpp_3m,
    "unipc": unipc,
    "ipndm": ipndm,
}
"""Solvers by the names that requests use; `churn` is `heun`, disturbed."""


def solver_of(sampling: Sampling, x: Tensor, levels: list[float], ends: Range, noise: Noise | None = None) -> Solver:
    """The solver of a path from x along the levels between these ends; `noise` is needed if the path is noisy."""
    if sampling.is_ablation:
        second = None if sampling.solver == "euler" else sampling.second_order
        return ablation(x, levels, schedule_of(sampling.schedule, ends), sampling.scaling, second)
    return SOLVERS[sampling.solver](x, levels, _disturbance(sampling, noise))


def _disturbance(sampling: Sampling, noise: Noise | None) -> Disturbance:
    """What acts before each step: injected noise first, then churn."""
    if noise is None:
        return undisturbed
    acts = [injected(sampling.alpha, noise)] if sampling.alpha else []
    if sampling.solver == "churn":
        S_max = math.inf if sampling.S_max is None else sampling.S_max
        churn = Churn(sampling.S_churn, sampling.S_min, S_max, sampling.S_noise)
        acts.append(churned(churn, sampling.steps, noise))

    def disturb(x: Tensor, sigma: float) -> tuple[Tensor, float]:
        for act in acts:
            x, sigma = act(x, sigma)
        return x, sigma

    return disturb
