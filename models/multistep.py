"""Solvers of few steps, which remember earlier estimates: n evaluations for n steps, on the same noise levels.

In lambda = -ln sigma the ODE is dx/dlambda = D - x, and a step of length h leaves x e^(-h) + (1 - e^(-h)) D for an
estimate D that stays as it is. How D changes is guessed from what it was. The last step, to sigma = 0, takes D itself.
"""

import math
from collections import deque
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from models.sampler import Disturbance, Query, Solver, undisturbed

UNIPC_ORDER = 3


class Known(NamedTuple):
    """An estimate, and the lambda at which it was made."""

    denoised: Tensor
    at: float


def dpmpp_2m(x: Tensor, sigmas: list[float], disturb: Disturbance = undisturbed) -> Solver:
    """DPM-Solver++(2M) (Lu et al., 2022, algorithm 2)."""
    return _dpmpp(x, sigmas, disturb, 2)


def dpmpp_3m(x: Tensor, sigmas: list[float], disturb: Disturbance = undisturbed) -> Solver:
    """DPM-Solver++(3M): the same with two earlier estimates (Lu et al., 2022, section 4)."""
    return _dpmpp(x, sigmas, disturb, 3)


def _dpmpp(x: Tensor, sigmas: list[float], disturb: Disturbance, order: int) -> Solver:
    known = deque[Known](maxlen=order)  # the newest first
    for sigma, sigma_next in pairwise(sigmas):
        x, _ = disturb(x, sigma)
        known.appendleft(Known((yield Query(x, sigma)), -math.log(sigma)))
        if sigma_next == 0:
            return known[0].denoised
        h = -math.log(sigma_next) - known[0].at
        x = sigma_next / sigma * x - math.expm1(-h) * known[0].denoised + _trend(known, h)
    return x


def _trend(known: Sequence[Known], h: float) -> Tensor | float:
    """What the change of the estimates adds to a step of length h."""
    if len(known) == 1:
        return 0.0
    r0 = (known[0].at - known[1].at) / h
    first = (known[0].denoised - known[1].denoised) / r0
    if len(known) == 2:
        return -0.5 * math.expm1(-h) * first
    r1 = (known[1].at - known[2].at) / h
    change = first - (known[1].denoised - known[2].denoised) / r1
    phi_2 = math.expm1(-h) / h + 1
    phi_3 = phi_2 / h - 0.5
    return phi_2 * (first + r0 / (r0 + r1) * change) - phi_3 / (r0 + r1) * change


def ipndm(x: Tensor, sigmas: list[float], disturb: Disturbance = undisturbed) -> Solver:
    """iPNDM (Zhang and Chen, 2022): Adams and Bashforth's steps of up to fourth order, as if all were of one length."""
    weights = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))
    slopes = deque[Tensor](maxlen=len(weights))  # the newest first
    for sigma, sigma_next in pairwise(sigmas):
        x, _ = disturb(x, sigma)
        denoised = yield Query(x, sigma)
        if sigma_next == 0:
            return denoised
        slopes.appendleft((x - denoised) / sigma)
        for weight, slope in zip(weights[len(slopes) - 1], slopes, strict=True):
            x = x.add(slope, alpha=weight * (sigma_next - sigma))
    return x


def unipc(x: Tensor, sigmas: list[float], disturb: Disturbance = undisturbed) -> Solver:
    """UniPC of third order, B(h) = e^h - 1 (Zhao et al., 2023, algorithms 1 and 2, on estimates of the data).

    Each estimate also corrects the step that led to it, so that a correction costs none.
    """
    known = deque[Known](maxlen=UNIPC_ORDER)  # the newest first
    before, h = x, 0.0
    for sigma, sigma_next in pairwise(sigmas):
        moved, _ = disturb(x, sigma)
        estimate = yield Query(moved, sigma)
        if sigma_next == 0:
            return estimate
        newest = Known(estimate, -math.log(sigma))
        corrected = _uni_step(before, known, h, [*list(known)[1:], newest]) if known else x
        x = corrected + (moved - x)  # what was disturbed stays so
        known.appendleft(newest)
        before, h = x, math.log(sigma / sigma_next)
        x = _uni_step(x, known, h, list(known)[1:])
    return x


def _uni_step(x: Tensor, known: Sequence[Known], h: float, others: Sequence[Known]) -> Tensor:
    """A step of length h from x at the newest estimate, by its differences from the others."""
    base = known[0]
    x = math.exp(-h) * x - math.expm1(-h) * base.denoised
    if not others:
        return x
    places = [(other.at - base.at) / h for other in others]
    for weight, place, other in zip(_uni_weights(places, h), places, others, strict=True):
        x = x - math.expm1(-h) * weight / place * (other.denoised - base.denoised)
    return x


def _uni_weights(places: Sequence[float], h: float) -> list[float]:
    """The weights of the differences at places r_m, in steps: sum_m a_m r_m^(k-1) = k! phi_{k+1} h / B(h).

    A single one weighs 1/2, as published.
    """
    if len(places) == 1:
        return [0.5]
    rows, targets = [], []
    phi, factorial = math.expm1(-h) / -h - 1, 1.0
    for k in range(len(places)):
        rows.append([place**k for place in places])
        targets.append(phi * factorial / math.expm1(-h))
        factorial *= k + 2
        phi = phi / -h - 1 / factorial
    solved: list[float] = torch.linalg.solve(
        torch.tensor(rows, dtype=torch.float64), torch.tensor(targets, dtype=torch.float64)
    ).tolist()
    return solved
