"""Every solver: recorded images, paths known in closed form, and the exact denoiser of a finite data set."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from models.exact import ExactDenoiser
from models.levels import (
    LINEAR,
    Discretization,
    LevelsError,
    Range,
    Scaling,
    ScheduleName,
    default_range,
    discretized,
    noise_levels,
)
from models.sampler import Churn, Noise, ablation, churned, heun
from models.sampling import SOLVER_FACTS, Sampling, SolverName
from models.solvers import SOLVERS, solver_of
from tests.models.helpers import FIXTURES, Denoiser, relative_error, solve
from tests.models.test_networks import network
from tests.models.test_sampler import SIGMA_DATA, gaussian

RECORDED = load_file(FIXTURES / "samplers.safetensors")
USUAL = Range(0.002, 80.0)
ANY = Range(1e-9, 1e9)
"""That of the recorded network: EDM's have none."""

EVERY_SOLVER = pytest.mark.parametrize("solver", [name for name in SOLVERS if name != "churn"])


def recorded_network(x: Tensor, sigma: Tensor) -> Tensor:
    return network("ddpmpp-edm-cond")(x, sigma, RECORDED["labels"]).to(torch.float64)  # type: ignore[no-any-return]


def sampled(
    sampling: Sampling, start: Tensor, denoiser: Denoiser, ends: Range = USUAL, noise: Noise | None = None
) -> Tensor:
    """The images that a choice of sampling makes of standard noise, with a network of that range."""
    ends = sampling.range(*ends)
    levels = sampling.levels(ends)
    return solve(solver_of(sampling, levels[0] * start, levels, ends, noise), denoiser)


@pytest.mark.parametrize("scaling", ["vp", "none"])
@pytest.mark.parametrize("schedule", ["vp", "ve", "linear"])
@pytest.mark.parametrize("discretization", ["vp", "ve", "iddpm", "edm"])
@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_the_ablation_family_gives_the_recorded_images(
    solver: SolverName, discretization: Discretization, schedule: ScheduleName, scaling: Scaling
) -> None:
    """Where iDDPM's table was recorded in float32, which one path magnifies to 2e-4; with such a table it is 1e-5."""
    ends = default_range(discretization)
    sampling = Sampling(
        steps=8,
        solver=solver,
        sigma_min=ends.sigma_min,
        sigma_max=ends.sigma_max,
        discretization=discretization,
        schedule=schedule,
        scaling=scaling,
    )
    found = sampled(sampling, RECORDED["edm.latents"], recorded_network, ANY)
    expected = RECORDED[f"ablation.{solver}.{discretization}.{schedule}.{scaling}.x"]
    assert relative_error(found, expected) < (5e-4 if discretization == "iddpm" else 1e-4)


def test_the_stochastic_sampler_gives_the_recorded_images() -> None:
    """Of the recorded noise, one tensor a step, it takes those of the steps that it disturbs."""
    steps, levels = 18, noise_levels(18)
    churn = Churn(S_churn=30, S_min=0.01, S_max=1, S_noise=1.007)
    of_step = dict(zip(levels, RECORDED["edm.churn.noise"], strict=False))
    used = [of_step[level] for level in levels[:-1] if churn.S_min <= level <= churn.S_max]
    assert 0 < len(used) < steps
    disturb = churned(churn, steps, iter(used).__next__)
    found = solve(heun(80 * RECORDED["edm.latents"], levels, disturb), recorded_network)
    assert relative_error(found, RECORDED["edm.churn.x"]) < 1e-4


def test_churn_is_on_by_default_and_raises_the_level_with_its_noise() -> None:
    """The official code turns it off unless told, or raises the level without the noise."""
    disturb = churned(Churn(), 18, lambda: torch.ones(1, 1, 1, 1, dtype=torch.float64))
    x, level = disturb(torch.zeros(1, 1, 1, 1, dtype=torch.float64), 2.0)
    assert level == pytest.approx(2 * math.sqrt(2))
    assert float(x) == pytest.approx(math.sqrt(level**2 - 4))


@EVERY_SOLVER
def test_its_evaluations_and_noise_levels(solver: SolverName) -> None:
    asked: list[float] = []

    def noting(x: Tensor, sigma: Tensor) -> Tensor:
        asked.append(sigma[0].item())
        return gaussian(x, sigma)

    sampled(Sampling(steps=9, solver=solver), torch.ones(1, 1, 1, 1, dtype=torch.float64), noting)
    assert list(dict.fromkeys(asked)) == pytest.approx(noise_levels(9)[:-1])
    assert len(asked) == Sampling(steps=9, solver=solver).evaluations == (17 if solver == "heun" else 9)


@pytest.mark.parametrize(
    ("solver", "order"), [("euler", 1), ("heun", 2), ("dpmpp-2m", 2), ("dpmpp-3m", 2), ("unipc", 2), ("ipndm", 2)]
)
def test_the_error_on_gaussian_data_falls_with_the_steps(solver: SolverName, order: int) -> None:
    """At least by this order: the first steps of those that remember are of lower orders than the rest.

    Over a path from 8 to 0.1, for on a long one those of third order reach rounding before they show it.
    """
    start = torch.tensor([1.0, -0.3], dtype=torch.float64).view(2, 1, 1, 1)

    def error(steps: int) -> float:
        levels = noise_levels(steps, 0.1, 8)[:-1]
        exact = 8 * start * math.hypot(SIGMA_DATA, 0.1) / math.hypot(SIGMA_DATA, 8)
        return relative_error(up_to_the_last_level(solver, 8 * start, levels), exact)

    errors = [error(steps) for steps in (32, 64, 128)]
    orders = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert all(found > order - 0.2 for found in orders), orders


def up_to_the_last_level(solver: SolverName, x: Tensor, levels: list[float]) -> Tensor:
    """Where a path is at its last level: what the solver asks about last, when 0 follows."""
    asked = [x]

    def noting(x: Tensor, sigma: Tensor) -> Tensor:
        asked.append(x)
        return gaussian(x, sigma)

    solve(SOLVERS[solver](x, [*levels, 0.0], lambda x, sigma: (x, sigma)), noting)
    return asked[-1]


@pytest.mark.parametrize("solver", ["dpmpp-2m", "dpmpp-3m", "unipc", "ipndm"])
def test_a_few_step_solver_is_worth_its_name(solver: SolverName) -> None:
    """With 12 evaluations nearer to the end of the path than Heun's with 13."""
    start = torch.tensor([1.0, -0.3], dtype=torch.float64).view(2, 1, 1, 1)
    exact = 80 * start * SIGMA_DATA / math.hypot(SIGMA_DATA, 80)
    ours = relative_error(sampled(Sampling(steps=12, solver=solver), start, gaussian), exact)
    heuns = relative_error(sampled(Sampling(steps=7), start, gaussian), exact)
    assert ours < heuns / 2


@EVERY_SOLVER
def test_towards_a_single_point_every_solver_is_exact(solver: SolverName) -> None:
    rng = torch.Generator().manual_seed(0)
    point, direction = torch.randn(2, 2, 3, 4, 4, generator=rng, dtype=torch.float64)
    found = sampled(Sampling(steps=6, solver=solver), direction, lambda x, sigma: point)
    torch.testing.assert_close(found, point, rtol=0, atol=1e-9)


@pytest.mark.parametrize("D", [2, 128, math.inf])
@pytest.mark.parametrize("solver", SOLVERS)
def test_with_the_exact_denoiser_every_image_is_one_of_the_data(solver: SolverName, D: float) -> None:
    rng = torch.Generator().manual_seed(0)
    exact = ExactDenoiser((1, 3, 3), 6, D)
    exact.data = torch.rand(6, 1, 3, 3, generator=rng) * 2 - 1
    start = torch.randn(40, 1, 3, 3, generator=rng, dtype=torch.float64)
    noise = lambda: torch.randn(start.shape, generator=rng, dtype=torch.float64)  # noqa: E731
    images = sampled(Sampling(steps=30, solver=solver), start, exact, noise=noise if solver == "churn" else None)
    nearest = (images[:, None] - exact.data).flatten(2).norm(dim=-1).min(1)
    assert float(nearest.values.max()) < 0.02
    assert len(set(nearest.indices.tolist())) > 3


def test_a_linear_schedule_unscaled_is_the_plain_path() -> None:
    start = RECORDED["edm.latents"]
    for solver in ("euler", "heun"):
        plain = sampled(Sampling(steps=8, solver=solver), start, gaussian)
        second = None if solver == "euler" else 1.0
        general = solve(ablation(80 * start, noise_levels(8), LINEAR, "none", second), gaussian)
        assert relative_error(general, plain) < 1e-12


def test_the_second_slope_may_be_taken_in_the_middle() -> None:
    """The midpoint rule is of second order as well."""
    start = torch.tensor([1.0], dtype=torch.float64).view(1, 1, 1, 1)
    exact = 80 * start * SIGMA_DATA / math.hypot(SIGMA_DATA, 80)
    errors = [
        relative_error(sampled(Sampling(steps=n, second_order=0.5), start, gaussian), exact) for n in (32, 64, 128)
    ]
    assert all(coarse / fine > 3 for coarse, fine in pairwise(errors)), errors


@pytest.mark.parametrize("solver", SOLVERS)
def test_injected_noise_moves_the_image_and_more_of_it_more(solver: SolverName) -> None:
    rng = torch.Generator().manual_seed(0)
    start = torch.randn(50, 1, 2, 2, generator=rng, dtype=torch.float64)
    plain = sampled(Sampling(steps=12, solver="heun" if solver == "churn" else solver), start, gaussian)
    moved = []
    for alpha in (0.05, 0.4):
        noise = lambda: torch.randn(start.shape, generator=rng, dtype=torch.float64)  # noqa: E731
        images = sampled(Sampling(steps=12, solver=solver, alpha=alpha, S_churn=0), start, gaussian, noise=noise)
        moved.append(relative_error(images, plain))
    assert 0 < moved[0] < moved[1] / 2


@pytest.mark.parametrize("kind", ["vp", "ve", "iddpm", "edm"])
def test_the_levels_of_a_discretization_fall_within_its_range(kind: Discretization) -> None:
    ends = default_range(kind)
    levels = discretized(kind, 10, *ends)
    assert len(levels) == 11
    assert levels[-1] == 0
    assert all(high > low for high, low in pairwise(levels))
    assert levels[0] <= ends.sigma_max * (1 + 1e-12)
    assert levels[-2] >= ends.sigma_min * (1 - 1e-12)


def test_a_range_with_too_few_levels_of_iddpm_is_refused() -> None:
    with pytest.raises(LevelsError, match=r"iddpm has .* and not 18"):
        discretized("iddpm", 18, 30.0, 80.0)


def test_the_range_of_a_path_is_within_that_of_its_model() -> None:
    assert Sampling(steps=8, discretization="vp").range(0.002, 80).sigma_min == pytest.approx(0.0105, rel=0.01)
    assert Sampling(steps=8, discretization="vp").range(0.002, 80).sigma_max == 80
    assert Sampling(steps=8).range(0.004, 80) == (0.004, 80)
    assert Sampling(steps=8, sigma_min=0.01, sigma_max=20).range(0.002, 80) == (0.01, 20)


def test_what_is_known_of_the_solvers_is_of_all() -> None:
    assert SOLVERS.keys() == SOLVER_FACTS.keys()


@pytest.mark.parametrize(
    ("choice", "field"),
    [
        ({"solver": "ipndm", "steps": 3}, "steps"),
        ({"sigma_min": 0.001}, "sigma_min"),
        ({"sigma_max": 81}, "sigma_max"),
        ({"sigma_min": 3, "sigma_max": 2}, "sigma_min"),
        ({"discretization": "iddpm", "sigma_min": 40}, "sigma_min"),
        ({"discretization": "ve", "rho": 5}, "rho"),
        ({"solver": "euler", "S_churn": 10}, "S_churn"),
        ({"solver": "unipc", "scaling": "vp"}, "scaling"),
        ({"solver": "euler", "second_order": 0.5}, "second_order"),
        ({"schedule": "vp", "alpha": 0.1}, "alpha"),
        ({"solver": "churn", "S_min": 3, "S_max": 2}, "S_min"),
        ({"solver": "churn", "S_min": 81}, "S_min"),
        ({"solver": "churn", "S_max": 0.001}, "S_max"),
        ({"solver": "churn", "S_churn": 0}, "S_churn"),
        ({"solver": "churn", "S_min": 50, "S_max": 51}, "S_max"),
        ({"discretization": "vp", "sigma_min": 0.5}, "sigma_min"),
        ({"discretization": "vp", "sigma_min": 79, "sigma_max": 80}, "sigma_min"),
        ({"sigma_min": 1, "sigma_max": 1.0000000000000002, "solver": "dpmpp-2m"}, "sigma_min"),
        ({"sigma_min": 1, "sigma_max": 1.0000000001, "solver": "dpmpp-3m"}, "sigma_min"),
        ({"guide": "worse-d128"}, "guide"),
        ({"guide": "worse-d128", "guidance": 2, "bits": 4}, "guide"),
    ],
)
def test_what_cannot_be_or_would_do_nothing_is_named(choice: dict[str, Any], field: str) -> None:
    assert [name for name, _ in Sampling(**{"steps": 18} | choice).faults(0.002, 80)] == [field]


@pytest.mark.parametrize("solver", SOLVERS)
def test_an_ordinary_choice_has_no_faults(solver: SolverName) -> None:
    assert not list(Sampling(steps=5, solver=solver, sigma_min=0.004).faults(0.002, 80))
