"""The perturbation kernel and the prior against their laws, which scipy knows in closed form."""

import math

import numpy as np
import pytest
from scipy.stats import beta, betaprime, chi, chi2, t

from models.kernel import kernel_noise, prior, stretch
from tests.models.helpers import FALSE_ALARM, Array, follows, p_value

EVERY_D = pytest.mark.parametrize("D", [0.5, 1, 2, 128, 2048, 1e6])
EVERY_N = pytest.mark.parametrize("N", [64, 3072])


def noise(shape: tuple[int, ...], D: float, count: int = 2000, seed: int = 1) -> Array:
    """Many draws of the kernel at sigma = 1, one by one as the service makes them: [count, N]."""
    rng = np.random.default_rng(seed)
    return np.stack([kernel_noise(rng, shape, D).ravel() for _ in range(count)])


def squared_radius(x: Array, D: float) -> Array:
    """(R / r)^2 of draws [count, N] at sigma = 1, where r = sqrt(D)."""
    squared: Array = np.square(x).sum(1) / D
    return squared


@EVERY_N
@EVERY_D
def test_the_radius_of_an_image_is_beta_prime(N: int, D: float) -> None:
    assert follows(squared_radius(noise((N,), D), D), betaprime(N / 2, D / 2).cdf)


@EVERY_N
@EVERY_D
def test_the_quantiles_of_many_radii_are_those_of_beta_prime(N: int, D: float) -> None:
    rng, count = np.random.default_rng(2), 200_000
    squared = stretch(rng, count, D) ** 2 * rng.chisquare(N, count) / D
    for q in (0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999):
        below = np.mean(squared < betaprime.ppf(q, N / 2, D / 2))
        assert abs(below - q) < 4 * math.sqrt(q * (1 - q) / count), q


@EVERY_N
def test_at_infinite_D_the_kernel_is_gaussian(N: int) -> None:
    x = noise((N,), math.inf)
    assert follows(np.linalg.norm(x, axis=1), chi(N).cdf)
    assert follows(x[:, 0], t(math.inf).cdf)
    assert (stretch(np.random.default_rng(0), 5, math.inf) == 1).all()


@EVERY_D
def test_one_coordinate_is_student_t(D: float) -> None:
    assert follows(noise((64,), D)[:, 5], t(D).cdf)


@EVERY_D
def test_directions_are_uniform(D: float) -> None:
    x = noise((64,), D)
    directions = x / np.linalg.norm(x, axis=1, keepdims=True)
    count, N = directions.shape
    assert chi2(N).sf(count * N * np.square(directions.mean(0)).sum()) > FALSE_ALARM
    assert follows(directions[:, 5] ** 2, beta(1 / 2, (N - 1) / 2).cdf)


@pytest.mark.parametrize("D", [1, 128, 2048])
def test_a_crop_follows_the_law_of_its_own_size(D: float) -> None:
    images = noise((3, 32, 32), D).reshape(-1, 3, 32, 32)
    crops = images[:, :, 4:12, 20:28].reshape(len(images), -1)
    crop_N, image_N = crops.shape[1], 3 * 32 * 32
    assert follows(squared_radius(crops, D), betaprime(crop_N / 2, D / 2).cdf)
    assert p_value(squared_radius(crops, D), betaprime(image_N / 2, D / 2).cdf) < 1e-12


@pytest.mark.parametrize("D", [1, 128, 2048])
def test_the_beta_form_with_the_whole_image_s_N_is_wrong_on_a_crop(D: float) -> None:
    share = np.random.default_rng(3).beta(3072 / 2, D / 2, 2000)
    assert p_value(share / (1 - share), betaprime(192 / 2, D / 2).cdf) < 1e-12


def test_nothing_is_clipped() -> None:
    """A beta draw kept within [1e-3, 1 - 1e-3] would never let (R / r)^2 exceed 999."""
    N, D, count = 64, 1, 100_000
    rng = np.random.default_rng(4)
    squared = stretch(rng, count, D) ** 2 * rng.chisquare(N, count) / D
    expected = betaprime.sf(999, N / 2, D / 2)
    assert expected > 0.1
    assert np.mean(squared > 999) == pytest.approx(expected, abs=4 * math.sqrt(expected / count))
    assert squared.max() > 1e9


def test_a_wide_image_at_D_128_is_not_clipped_either() -> None:
    N, D, count = 3 * 256 * 256, 128, 10_000
    rng = np.random.default_rng(5)
    squared = stretch(rng, count, D) ** 2 * rng.chisquare(N, count) / D
    assert np.mean(squared > 999) > 0.999
    assert follows(squared, betaprime(N / 2, D / 2).cdf)


def test_radii_have_the_resolution_of_float64() -> None:
    N, D, count = 3 * 256 * 256, 2, 200_000
    assert len(np.unique(stretch(np.random.default_rng(6), count, D))) > 100_000
    coarse = np.random.default_rng(6).beta(N / 2, D / 2, count).astype(np.float32)
    assert len(np.unique(coarse)) < 2_000


@pytest.mark.parametrize("D", [0.1, 0.5, 1e12, math.inf])
def test_extreme_D_gives_finite_noise(D: float) -> None:
    scale = stretch(np.random.default_rng(7), 10_000, D)
    assert np.isfinite(scale).all()
    assert (scale > 0).all()


@pytest.mark.parametrize("sigma_max", [80.0, 380.0])
def test_the_prior_is_the_kernel_at_sigma_max(sigma_max: float) -> None:
    D = 128
    x = np.stack([prior(seed, (1, 8, 8), D, sigma_max).ravel() for seed in range(2000)])
    assert follows(squared_radius(x / sigma_max, D), betaprime(64 / 2, D / 2).cdf)


def test_the_prior_grows_with_sigma_max() -> None:
    small, large = (prior(3, (3, 8, 8), 2048, sigma_max) for sigma_max in (80, 380))
    assert large == pytest.approx(small * 380 / 80, rel=1e-14)
