"""Guidance: what a guided path asks, what it makes of the answers, and where that leads."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.checkpoint import Model
from models.exact import ExactDenoiser
from models.generate import Generator, Walk
from models.sampling import SOLVER_FACTS, Sampling, SolverName
from tests.models.helpers import card, shapes

CPU = torch.device("cpu")
STRENGTHS = pytest.mark.parametrize("guidance", [0.0, 0.7, 1.0, 2.5])


class Gaussian(nn.Module):
    """The perfect denoiser of pixels that are Gaussian around 0, of one deviation with a class and another without."""

    def __init__(self, deviation: float, without: float):
        super().__init__()
        self.variances = torch.tensor([without, deviation], dtype=torch.float64).square()

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        known = torch.ones(len(x), dtype=torch.int64) if labels is None else labels.any(1).long()
        variance = self.variances[known]
        return x * (variance / (variance + sigma.square()))[:, None, None, None]


def gaussian(deviation: float, without: float = math.nan, classes: tuple[str, ...] = ("a", "b")) -> Generator:
    about = card(resolution=2, channels=1, classes=classes, D=math.inf)
    return Generator(Model(about, Gaussian(deviation, without), "", CPU), shapes(8))


def exact(data: Tensor, D: float) -> Generator:
    network = ExactDenoiser((1, 2, 2), len(data), D)
    network.data, network.data_class = data, torch.arange(len(data)) % 2
    about = card(resolution=2, channels=1, classes=("a", "b"), D=D)
    return Generator(Model(about, network, "", CPU), shapes(8))


def finish(walk: Walk, model: Generator, guide: Generator | None = None) -> int:
    """Take a walk to its end, each evaluation made by whom it asks; how many there were."""
    evaluations = 0
    while not walk.is_finished:
        (guide if guide and walk.asks_guide else model).evaluate([walk])
        evaluations += 1
    return evaluations


def end_of(walk: Walk) -> Tensor:
    assert walk.end is not None
    return walk.end


def scale_of_path(guidance: float, deviation: float, guides: float, sigma_max: float) -> float:
    """By what the prior is multiplied on its way, from the integral of sigma [w / (s^2 + sigma^2) + (1 - w) / ...]."""

    def shrunk(s: float) -> float:
        return s / math.hypot(s, sigma_max)

    return math.pow(shrunk(deviation), guidance) * math.pow(shrunk(guides), 1 - guidance)


@STRENGTHS
@pytest.mark.parametrize("has_own_guide", [True, False], ids=["classifier-free", "autoguidance"])
def test_a_guided_path_ends_where_the_closed_form_says(guidance: float, has_own_guide: bool) -> None:
    """The error falls with the square of the steps, as heun's should."""
    model = gaussian(0.5, without=1.5 if has_own_guide else math.nan)
    guide = None if has_own_guide else gaussian(1.5, classes=())
    errors = []
    for steps in (32, 64, 128):
        choice = Sampling(steps=steps, guidance=guidance, sigma_max=10.0)
        walk = model.walk(range(3), [0, 1, None], choice, guide.model.card if guide else None)
        start = walk.query.x
        assert finish(walk, model, guide) == choice.evaluations
        expected = start * scale_of_path(guidance, 0.5, 1.5, 10.0)
        errors.append(float((end_of(walk) - expected).norm() / expected.norm()))
    assert errors[2] < 3e-3
    assert errors[0] / errors[1] > 3.5 < errors[1] / errors[2] < 4.6


@pytest.mark.parametrize("solver", SOLVER_FACTS)
def test_a_guide_that_agrees_changes_nothing(solver: SolverName) -> None:
    """Whatever its weight, with every solver, and its path takes two evaluations for every one."""
    model, plain = gaussian(0.5), Sampling(steps=8, solver=solver)
    guided = plain.model_copy(update={"guidance": 3.0})
    usual, walk = (
        model.walk(range(4), [0] * 4, sampling, model.model.card if sampling.is_guided else None)
        for sampling in (plain, guided)
    )
    assert finish(walk, model, model) == 2 * finish(usual, model) == guided.evaluations
    torch.testing.assert_close(end_of(walk), end_of(usual), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("D", [1.0, 128.0, math.inf])
def test_without_a_class_the_exact_denoiser_is_that_of_all_data(D: float) -> None:
    data = torch.rand(6, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    network = exact(data, D).model.network
    x, sigma = torch.randn(3, 1, 2, 2, dtype=torch.float64), torch.tensor([0.1, 1.0, 10.0])
    labels = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    together = network(x, sigma, labels)
    torch.testing.assert_close(together[1:2], network(x[1:2], sigma[1:2]))
    assert not torch.allclose(together[2:], network(x[2:], sigma[2:]))


@pytest.mark.parametrize("D", [1.0, 128.0, math.inf])
def test_guidance_pushes_away_from_what_the_classes_share(D: float) -> None:
    """Three images of each class, one of them in both: the stronger the guidance, the rarer that one."""
    rng = torch.Generator().manual_seed(0)
    shared, left, right = torch.rand(3, 1, 2, 2, generator=rng) * 2 - 1
    model = exact(torch.stack([shared, shared, left, right, left, right]), D)

    def share(guidance: float) -> float:
        walk = model.walk(range(400), [0] * 400, Sampling(steps=12, guidance=guidance))
        finish(walk, model)
        distances = [(end_of(walk) - each).flatten(1).norm(dim=1) for each in (shared, left, right)]
        return float((torch.stack(distances).argmin(0) == 0).double().mean())

    none, some, much = (share(guidance) for guidance in (1.0, 1.5, 3.0))
    assert none == pytest.approx(1 / 3, abs=0.08)
    assert none > some + 0.05 > much + 0.1


def test_the_trajectory_shows_what_guidance_makes_of_the_estimates() -> None:
    model = gaussian(0.5, without=1.5)
    walk = model.walk([1], [0], Sampling(steps=5, guidance=2.0, trajectory=True))
    finish(walk, model)
    trajectory = walk.trajectory()
    assert trajectory is not None
    assert trajectory.shape == (1, 5, 2, 2, 1)
    assert np.array_equal(trajectory[0, -1], walk.images()[0])


@pytest.mark.parametrize(
    ("choice", "field"),
    [({"guide": "other-d128"}, "guide"), ({"guide": "other-d128", "guidance": 2.0, "bits": 4}, "guide")],
)
def test_a_guide_that_would_do_nothing_is_refused(choice: dict[str, object], field: str) -> None:
    sampling = Sampling.model_validate({"steps": 4} | choice)
    assert [name for name, _ in sampling.faults(0.002, 80)] == [field]
