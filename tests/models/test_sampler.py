"""The sampler against paths known in closed form, an implementation of its own, and recorded images."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from models.levels import noise_levels
from models.sampler import Query, heun
from tests.models.helpers import FIXTURES, Array, Denoiser, recorded, relative_error, solve
from tests.models.test_networks import network

SIGMA_DATA = 0.5
NET_SIGMAS = recorded("net_sigmas")
LATENTS = load_file(FIXTURES / "samplers.safetensors")
START = {f"pfgmpp.D{D}": LATENTS[f"pfgmpp.D{D}.latents"] for D in (1, 128, 2048)} | {"edm": 80 * LATENTS["edm.latents"]}


def per_image(sigma: Tensor) -> Tensor:
    return sigma[:, None, None, None]


def gaussian(x: Tensor, sigma: Tensor) -> Tensor:
    """The exact denoiser of Gaussian data at D = infinity."""
    return x * SIGMA_DATA**2 / (SIGMA_DATA**2 + per_image(sigma).square())


def smooth(x: Tensor, sigma: Tensor) -> Tensor:
    """A smooth denoiser that is not linear and in which neighbouring pixels meet."""
    return torch.tanh((x + x.roll(1, -1) / 2) / (1 + per_image(sigma)))


@pytest.mark.parametrize("key", NET_SIGMAS)
def test_the_network_is_evaluated_at_the_recorded_noise_levels(key: str) -> None:
    steps, sigma_min, sigma_max, rho = key.split("/")
    levels = noise_levels(int(steps), float(sigma_min), float(sigma_max), float(rho))
    asked: list[float] = []

    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        asked.extend(set(sigma.tolist()))
        return gaussian(x, sigma)

    solve(heun(torch.ones(2, 1, 1, 1, dtype=torch.float64), levels), denoiser)
    assert asked == pytest.approx(NET_SIGMAS[key]["net_sigmas"], rel=1e-14)
    assert len(asked) == NET_SIGMAS[key]["nfe"] == 2 * int(steps) - 1


def test_noise_levels_fall_from_sigma_max_to_sigma_min_and_then_to_0() -> None:
    levels = noise_levels(18)
    assert len(levels) == 19
    assert levels[0] == pytest.approx(80, rel=1e-14)
    assert levels[-2:] == [pytest.approx(0.002, rel=1e-14), 0.0]
    assert all(high > low for high, low in pairwise(levels))


@pytest.mark.parametrize("steps", [1, 0, -3])
def test_fewer_than_two_steps_are_refused(steps: int) -> None:
    with pytest.raises(ValueError, match=f"at least 2, not {steps}"):
        noise_levels(steps)


@pytest.mark.parametrize(
    ("sigma_min", "sigma_max"), [(0, 80), (-1, 80), (80, 80), (80, 0.002), (math.nan, 80), (0.002, math.nan)]
)
def test_a_range_that_is_none_is_refused(sigma_min: float, sigma_max: float) -> None:
    with pytest.raises(ValueError, match="0 < sigma_min < sigma_max"):
        noise_levels(5, sigma_min, sigma_max)


def test_a_range_without_end_is_refused() -> None:
    with pytest.raises(ValueError, match="inf"):
        noise_levels(5, 0.002, math.inf)


def test_on_gaussian_data_the_error_falls_as_the_square_of_the_steps() -> None:
    """The exact path is x(sigma) ~ sqrt(s^2 + sigma^2); measured down to sigma_min, before the step to 0."""

    def error(steps: int) -> float:
        levels = noise_levels(steps)[:-1]
        x = torch.tensor([80.0, -3.0], dtype=torch.float64).view(2, 1, 1, 1)
        exact = x * math.hypot(SIGMA_DATA, levels[-1]) / math.hypot(SIGMA_DATA, levels[0])
        return relative_error(solve(heun(x, levels), gaussian), exact)

    errors = [error(steps) for steps in (32, 64, 128, 256)]
    orders = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert all(1.8 < order < 2.2 for order in orders), orders


def test_the_last_step_leaves_what_sigma_min_explains() -> None:
    """From sigma_min to 0 Euler errs by sigma_min^2 / (2 s^2), 8e-6 here, however many steps come before."""
    x = torch.full((1, 1, 1, 1), 80.0, dtype=torch.float64)
    exact = x * SIGMA_DATA / math.hypot(SIGMA_DATA, 80)
    assert relative_error(solve(heun(x, noise_levels(2000)), gaussian), exact) == pytest.approx(8e-6, rel=0.5)


def walk(start: Tensor, steps: int, denoiser: Denoiser) -> tuple[list[Query], Tensor]:
    """The queries of a solver, in order, and the image it returns."""
    queries: list[Query] = []

    def noting(x: Tensor, sigma: Tensor) -> Tensor:
        queries.append(Query(x, sigma[0].item()))
        return denoiser(x, sigma)

    return queries, solve(heun(start, noise_levels(steps)), noting)


@pytest.mark.parametrize("steps", [2, 5, 18])
def test_towards_a_single_point_the_path_is_a_straight_line(steps: int) -> None:
    """Exact but for rounding, which the correction magnifies by the ratio of its two noise levels."""
    levels = noise_levels(steps)
    tolerance = 1e-12 * levels[0] / levels[1]
    rng = torch.Generator().manual_seed(0)
    point, direction = torch.randn(2, 2, 3, 4, 4, generator=rng, dtype=torch.float64)
    queries, image = walk(point + 80 * direction, steps, lambda x, sigma: point)
    for query in queries:
        torch.testing.assert_close(query.x, point + query.sigma * direction, rtol=0, atol=tolerance)
    torch.testing.assert_close(image, point, rtol=0, atol=tolerance)


def independent_path(x: Array, steps: int) -> Array:
    """EDM's algorithm 1 in numpy: each Euler step as a blend of x and its estimate, the correction as a mean of two."""
    roots = [80 ** (1 / 7), 0.002 ** (1 / 7)]
    times = [(roots[0] * (steps - 1 - i) / (steps - 1) + roots[1] * i / (steps - 1)) ** 7 for i in range(steps)]

    def estimate(x: Array, time: float) -> Array:
        shifted = np.concatenate([x[..., -1:], x[..., :-1]], axis=-1)
        return np.asarray(np.tanh((x + 0.5 * shifted) / (1 + time)))

    for now, then in pairwise(times):
        left = then / now
        euler = left * x + (1 - left) * estimate(x, now)
        backwards = x + (1 - 1 / left) * (euler - estimate(euler, then))
        x = (euler + backwards) / 2
    return estimate(x, times[-1])


@pytest.mark.parametrize("steps", [2, 5, 18, 40])
@pytest.mark.parametrize("start", START)
def test_an_independent_implementation_agrees(start: str, steps: int) -> None:
    found = solve(heun(START[start], noise_levels(steps)), smooth)
    assert relative_error(found, torch.from_numpy(independent_path(START[start].numpy(), steps))) < 1e-10


def test_solvers_at_different_places_may_share_one_evaluation() -> None:
    """Five paths of different lengths and starting times, answered in one batch with a sigma for each image."""

    def rational(x: Tensor, sigma: Tensor) -> Tensor:
        return x / (1 + x.square() + per_image(sigma))

    rng = torch.Generator().manual_seed(0)
    steps = [18, 2, 9, 5, 18]
    starts = [80 * torch.randn(1, 3, 4, 4, generator=rng, dtype=torch.float64) for _ in steps]
    solvers = [heun(x, noise_levels(n)) for x, n in zip(starts, steps, strict=True)]
    queries: dict[int, Query] = {}
    images: dict[int, Tensor] = {}
    waiting = list(range(len(solvers)))
    while waiting or queries:
        if waiting:
            newcomer = waiting.pop(0)
            queries[newcomer] = next(solvers[newcomer])
        x = torch.cat([query.x for query in queries.values()])
        sigma = torch.tensor([query.sigma for query in queries.values()], dtype=torch.float64)
        answers = dict(zip(queries, rational(x, sigma)[:, None], strict=True))
        for index, answer in answers.items():
            try:
                queries[index] = solvers[index].send(answer)
            except StopIteration as end:
                images[index] = end.value
                del queries[index]
    for index, (start, n) in enumerate(zip(starts, steps, strict=True)):
        assert torch.equal(images[index], solve(heun(start, noise_levels(n)), rational))


@pytest.mark.parametrize("steps", [5, 18])
@pytest.mark.parametrize("start", START)
def test_recorded_images_are_reproduced_as_closely_as_float32_allows(start: str, steps: int) -> None:
    """The estimates agree within 7e-7 (see test_networks), and the path magnifies that.

    How much is measured here: estimates shaken by 1e-7 move the image by 5e-6 (5 steps) or 4e-7 (18 steps). Five
    such shakes bound the difference, which is 9e-7 and 2e-7 where this was written.
    """
    model, labels = network("ddpmpp-edm-cond"), LATENTS["labels"]
    rng = torch.Generator().manual_seed(0)

    def estimate(x: Tensor, sigma: Tensor) -> Tensor:
        return model(x, sigma, labels).to(torch.float64)  # type: ignore[no-any-return]

    def shaken(x: Tensor, sigma: Tensor) -> Tensor:
        return estimate(x, sigma) * (1 + 1e-7 * torch.randn(x.shape, generator=rng, dtype=torch.float64))

    queries, image = walk(START[start], steps, estimate)
    spread = relative_error(walk(START[start], steps, shaken)[1], image)
    assert spread < 1e-5
    states = [*(query.x for query in queries[2::2]), image]
    recorded_path = LATENTS[f"{start}.steps{steps}.trajectory"]
    assert torch.equal(recorded_path[-1], LATENTS[f"{start}.steps{steps}.x"])
    for state, expected in zip(states, recorded_path, strict=True):
        assert relative_error(state, expected) < 5 * spread
