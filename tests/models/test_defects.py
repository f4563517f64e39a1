"""What the official code gets wrong in sampling, and what happens here instead; the churn's are in test_solvers."""

import numpy as np
import pytest
import torch

from models.checkpoint import Model
from models.generate import Generator, Walk
from models.kernel import stretch
from models.layers import Filter
from models.sampling import Sampling
from tests.models.helpers import shapes


@pytest.fixture
def generator(tiny: Model) -> Generator:
    return Generator(tiny, shapes(8))


def walked(generator: Generator, sampling: Sampling) -> Walk:
    walk = generator.walk(range(4), [0] * 4, sampling)
    while not walk.is_finished:
        generator.evaluate([walk])
    return walk


@pytest.mark.parametrize("sigma_max", [10.0, 40.0])
def test_the_prior_follows_sigma_max(generator: Generator, sigma_max: float) -> None:
    """There it is drawn at 80 whatever was asked, and the path starts elsewhere."""
    usual = generator.walk(range(4), [0] * 4, Sampling(steps=4)).query
    asked = generator.walk(range(4), [0] * 4, Sampling(steps=4, sigma_max=sigma_max)).query
    assert asked.sigma == pytest.approx(sigma_max)
    torch.testing.assert_close(asked.x, usual.x * sigma_max / 80)


def test_no_two_images_share_a_radius() -> None:
    """There the radius is drawn in float32: 1,329 different ones in 200,000 draws for D = 2 and 256x256 pixels."""
    draws = stretch(np.random.default_rng(0), 200_000, 2)
    assert len(np.unique(draws)) == 200_000


@pytest.mark.parametrize("sampling", [Sampling(steps=3), Sampling(steps=3, solver="churn", alpha=0.1)])
def test_nobody_elses_random_numbers_are_touched(generator: Generator, sampling: Sampling) -> None:
    """There every image seeds the generator of the whole process."""
    torch.manual_seed(1)
    before = torch.get_rng_state()
    walked(generator, sampling)
    assert torch.equal(torch.get_rng_state(), before)


def test_estimates_are_kept_only_if_they_are_asked_for(generator: Generator) -> None:
    """There the states of all steps are kept always, in float64."""
    assert walked(generator, Sampling(steps=3)).trajectory() is None
    kept = walked(generator, Sampling(steps=3, trajectory=True)).trajectory()
    assert kept is not None
    assert kept.shape == (4, 3, 8, 8, 3)
    assert kept.dtype == np.uint8


@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1), (1, 2, 2, 1)])
def test_up_sampling_doubles(taps: tuple[int, ...]) -> None:
    """There a changed layer makes 12 pixels of 8."""
    own = Filter(taps)
    assert own.double(torch.ones(1, 2, 8, 8), own.kernel()).shape[2:] == (16, 16)
    assert own.halve(torch.ones(1, 2, 8, 8), own.kernel()).shape[2:] == (4, 4)


def test_a_single_step_is_refused() -> None:
    """There it divides by zero, and the image is not a number."""
    with pytest.raises(ValueError, match="greater than or equal to 2"):
        Sampling(steps=1)
