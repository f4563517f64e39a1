"""The toy: its data, its measure, and that it learns."""

import math

import numpy as np
import pytest
import torch

from models import toy


def test_the_data_lie_on_a_plane_around_two_centres() -> None:
    points = toy.Plane(np.random.default_rng(0)).draw(400).flatten(1).to(torch.float64)
    spread = torch.linalg.svdvals(points - points.mean(0))
    assert spread[toy.DIMENSIONS - 1] > 5
    assert spread[toy.DIMENSIONS] < 1e-2
    # Along the diagonal of the plane: two centres, sqrt(10) CENTRE from 0.
    along = (points @ torch.linalg.svd(points, full_matrices=False).Vh[0]).abs()
    assert float(along.mean()) == pytest.approx(math.sqrt(toy.DIMENSIONS) * toy.CENTRE, rel=0.02)
    assert float(along.std()) == pytest.approx(toy.DEVIATION, rel=0.1)


def test_the_discrepancy_is_nothing_for_the_same_points_and_most_for_points_far_apart() -> None:
    """Five kernels; the data are as many points at 0 as 1 from it, of a mean squared distance near 1/2."""
    points = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    assert toy.discrepancy(points, points) == pytest.approx(0, abs=1e-12)
    n = 200
    data = torch.tensor([[0.0, 0.0], [0.6, 0.8]]).repeat(n // 2, 1)
    mean = n / (2 * (n - 1))
    expected = sum(1 + 0.5 + 0.5 * math.exp(-1 / (mean * factor)) for factor in (0.25, 0.5, 1, 2, 4))
    for far in (1e3, 1e6):
        assert toy.discrepancy(torch.full((n, 2), far), data) == pytest.approx(expected)


def test_a_network_learns_the_data() -> None:
    plane = toy.Plane(np.random.default_rng(0))
    real, points = plane.draw(200), toy.sampled(toy.trained(plane, 100.0, 150), 100.0, 200)
    noise = plane.deviation * torch.randn(real.shape, generator=torch.Generator().manual_seed(0))
    assert toy.discrepancy(points, real) < 0.8 * toy.discrepancy(noise, real)
