"""Augmentation: each change as its labels say, and none where they say none."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

from models.augment import SCALE_DEVIATION, SHIFT_DEVIATION, Changes
from models.kernel import FloatArray
from tests.models.helpers import follows, in_proportion

IMAGES = torch.rand(400, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
U = np.random.default_rng(0).random((400, Changes.DRAWS))


def only(**places: float) -> FloatArray:
    """Uniform numbers for one image of which nothing is changed but what these of them decide."""
    u = np.full((1, Changes.DRAWS), 0.999)
    for name, value in places.items():
        u[0, int(name[1:])] = value
    return u


def test_with_no_probability_images_are_flipped_left_and_right_alone() -> None:
    changes = Changes.of(U, 0.0)
    changed = changes.apply(IMAGES)
    flipped = changes.labels[:, 0] == 1
    assert torch.equal(changed[~flipped], IMAGES[~flipped])
    assert torch.equal(changed[flipped], IMAGES[flipped].flip(3))
    assert in_proportion(np.array([float(flipped.sum()), float((~flipped).sum())]), np.ones(2))
    assert not changes.labels[:, 1:].any()


@pytest.mark.parametrize("p", [0.12, 1.0])
def test_each_kind_comes_as_often_as_the_recipe_says_and_is_told(p: float) -> None:
    u = np.random.default_rng(1).random((20_000, Changes.DRAWS))
    changes = Changes.of(u, p)
    labels = changes.labels.numpy().astype(np.float64)
    assert labels.shape == (20_000, 9)
    assert abs(labels[:, 1].mean() - p / 2) < 0.01
    for column in (2, 7, 8):
        changed = labels[labels[:, column] != 0, column]
        assert abs(len(changed) / len(labels) - p) < 0.01
        assert follows(changed, norm.cdf)
    turned = np.arctan2(labels[:, 4], labels[:, 3] + 1)
    assert abs((turned != 0).mean() - p) < 0.01
    unchanged = ~changes.labels[:, 2:].any(1)
    assert torch.equal(changes.is_warped, ~unchanged)


def test_a_quarter_turn_is_one() -> None:
    changes = Changes.of(only(u2=0.0, u15=0.75), 0.5)
    assert changes.labels[0, 3:5].tolist() == pytest.approx([-1, 1], abs=1e-6)
    turned = changes.apply(IMAGES[:1])
    torch.testing.assert_close(turned, IMAGES[:1].rot90(-1, (2, 3)), atol=1e-4, rtol=0)


def test_a_shift_moves_by_eighths_of_the_width() -> None:
    """Of one deviation to the right: two of sixteen pixels; what comes in is a reflection."""
    radius = 1 - math.exp(-0.5)
    changes = Changes.of(only(u4=0.0, u11=radius, u12=0.0, u13=0.0), 0.5)
    assert changes.labels[0].tolist() == pytest.approx([0] * 7 + [1, 0], abs=1e-6)
    assert SHIFT_DEVIATION * 16 == 2
    moved = changes.apply(IMAGES[:1])
    torch.testing.assert_close(moved[..., 2:], IMAGES[:1, ..., :-2], atol=1e-4, rtol=0)
    torch.testing.assert_close(moved[..., :2], IMAGES[:1, ..., :2].flip(3), atol=1e-4, rtol=0)


def test_scaling_enlarges_by_powers_of_two() -> None:
    """Of five deviations, by two: on a ramp four pixels differ as two did, as well as bicubic filters can."""
    changes = Changes.of(only(u1=0.0, u7=1 - math.exp(-12.5), u8=0.0), 0.5)
    assert changes.labels[0, 2].item() == pytest.approx(1 / SCALE_DEVIATION)
    ramp = torch.linspace(-1, 1, 16).expand(1, 1, 16, 16)
    steps = changes.apply(ramp)[0, 0, 8].diff()
    assert steps[4:12].view(2, 4).sum(1).tolist() == pytest.approx([4 / 15] * 2, rel=0.02)


def test_stretching_keeps_the_area() -> None:
    changes = Changes.of(U, 1.0)
    scale = 2 ** (-SCALE_DEVIATION * changes.labels[:, 2])
    torch.testing.assert_close(torch.linalg.det(changes.warp[:, :, :2]), scale**2, rtol=1e-4, atol=0)
