"""The exact denoiser against its definition, and as the perfect network to test sampling with."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from models import checkpoint
from models.card import ExactOptions
from models.exact import ExactDenoiser
from models.generate import Generator, UInt8Array, to_uint8
from tests.models.helpers import FIXTURES, Array, card, in_proportion, relative_error, shapes

LOSS = load_file(FIXTURES / "loss.safetensors")
EVERY_D = pytest.mark.parametrize("D", [1, 128, math.inf])


def denoiser(data: Tensor, D: float, data_class: Tensor | None = None) -> ExactDenoiser:
    network = ExactDenoiser((data.shape[1], data.shape[2], data.shape[3]), len(data), D)
    network.data = data
    network.data_class = torch.zeros(len(data), dtype=torch.int64) if data_class is None else data_class
    return network


def posterior_mean(x: Array, sigma: float, data: Array, D: float) -> Array:
    """Of one image x [N] over data [M, N], by the kernel's formula, each weight relative to the largest."""
    squared = np.square(x - data).sum(1)
    if math.isinf(D):
        weights = np.exp((squared.min() - squared) / (2 * sigma**2))
    else:
        r_squared = sigma**2 * D
        weights = ((squared.min() + r_squared) / (squared + r_squared)) ** ((len(x) + D) / 2)
    mean: Array = weights @ data / weights.sum()
    return mean


@EVERY_D
@pytest.mark.parametrize("sigma", [0.002, 0.3, 2.0, 80.0])
def test_it_is_the_posterior_mean(D: float, sigma: float) -> None:
    rng = torch.Generator().manual_seed(0)
    data = torch.randn(12, 3, 4, 4, generator=rng)
    x = data[:5] + sigma * torch.randn(5, 3, 4, 4, generator=rng, dtype=torch.float64)
    found = denoiser(data, D)(x, torch.full((5,), sigma, dtype=torch.float64))
    for image, estimate in zip(x, found, strict=True):
        expected = posterior_mean(image.flatten().numpy(), sigma, data.flatten(1).to(torch.float64).numpy(), D)
        assert estimate.flatten().numpy() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("D", ["1", "128", "2048", "inf"])
def test_it_is_the_recorded_posterior_mean(D: str) -> None:
    sigma = LOSS["stf.Dinf.sigma"] if D == "inf" else LOSS[f"stf.D{D}.r"] / math.sqrt(float(D))
    found = denoiser(LOSS["stf.reference"], float(D))(LOSS[f"stf.D{D}.perturbed"].to(torch.float64), sigma)
    assert relative_error(found, LOSS[f"stf.D{D}.target"]) < 2e-6


@EVERY_D
def test_a_label_narrows_it_to_the_data_of_that_class(D: float) -> None:
    rng = torch.Generator().manual_seed(0)
    data, data_class = torch.randn(9, 1, 2, 2, generator=rng), torch.arange(9) % 3
    x, sigma = torch.randn(3, 1, 2, 2, generator=rng), torch.tensor([0.1, 1.0, 10.0])
    conditional = denoiser(data, D, data_class)
    for label in range(3):
        one_hot = torch.eye(3)[[label] * 3]
        alone = denoiser(data[data_class == label], D)
        torch.testing.assert_close(conditional(x, sigma, one_hot), alone(x, sigma))
    torch.testing.assert_close(conditional(x, sigma), denoiser(data, D)(x, sigma))


POINTS: UInt8Array = np.array([[0, 0, 255, 255], [255, 0, 255, 0], [150, 255, 40, 0]], dtype=np.uint8)
"""Three images of 2x2 pixels, of which the data set holds one, two and three copies."""


def sampled(folder: Path, D: float, classes: int, labels: list[int], count: int = 3000) -> Array:
    """How often the service's sampler gives each of the three points; every image must be one of them."""
    examples = POINTS[[0, 1, 1, 2, 2, 2]]
    tensors = {
        "data": torch.from_numpy(examples).view(6, 1, 2, 2) / 127.5 - 1,
        "data_class": torch.tensor([0, 0, 1, 1, 1, 1]) if classes else torch.zeros(6, dtype=torch.int64),
    }
    assert (to_uint8(tensors["data"]).reshape(6, -1) == examples).all()
    names = ("first", "second")[:classes]
    own = card(D=D, resolution=2, channels=1, classes=names, architecture=ExactOptions(examples=6))
    checkpoint.save(folder / "exact.safetensors", own, tensors)
    generator = Generator(checkpoint.load(folder / "exact.safetensors"), shapes(8, 512))
    images = generator.images(range(count), labels * (count if classes else 0), steps=18).reshape(count, -1)
    hits = (images[:, None] == POINTS).all(-1)
    assert hits.any(1).all()
    counts: Array = hits.sum(0).astype(np.float64)
    return counts


@pytest.mark.parametrize("D", [2, 128, math.inf])
def test_sampling_lands_on_the_data_as_often_as_it_is_there(tmp_path: Path, D: float) -> None:
    assert in_proportion(sampled(tmp_path, D, 0, []), np.array([1.0, 2.0, 3.0]))


@pytest.mark.parametrize("D", [2, 128, math.inf])
def test_sampling_a_class_lands_on_its_data_alone(tmp_path: Path, D: float) -> None:
    first, second = (sampled(tmp_path, D, 2, [label], 1000) for label in (0, 1))
    assert first[2] == second[0] == 0
    assert in_proportion(first[:2], np.array([1.0, 1.0]))
    assert in_proportion(second[1:], np.array([1.0, 3.0]))
