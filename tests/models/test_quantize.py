"""Weights of few bits: how many values are left, how far off they are, and which stay as they are."""

import pytest
import torch

from models.checkpoint import Model
from models.precond import Denoiser
from models.quantize import quantized, rounded_weight
from models.shapes import random_batch
from tests.models.helpers import relative_error


@pytest.mark.parametrize("bits", [2, 5, 8])
def test_a_weight_has_so_many_values_and_is_nearly_what_it_was(bits: int) -> None:
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    rounded = rounded_weight(weight, bits)
    assert len(set(rounded.flatten().tolist())) <= 2**bits
    step = (weight.max() - weight.min()) / (2**bits - 1)
    assert (rounded - weight).abs().max() <= step * 1.001


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_a_weight_of_one_value_stays_as_it_is(value: float) -> None:
    assert (rounded_weight(torch.full((2, 2), value), 4) == value).all()


def test_all_weights_or_those_of_the_official_code(tiny: Model) -> None:
    """The official code leaves the mappings, the norms and the affine layers as they are; we need not."""
    changed = {}
    for which in ("all", "official"):
        network = quantized(tiny.network, 4, which)
        changed[which] = {
            name
            for name, weight in network.named_parameters()
            if not torch.equal(weight, tiny.network.get_parameter(name))
        }
    assert changed["official"] < changed["all"]
    assert {name for name in changed["all"] if "affine" in name}
    assert not {name for name in changed["official"] if "affine" in name or "map" in name}
    assert all(tiny.network.get_parameter(name).dim() > 1 for name in changed["all"])


def test_fewer_bits_move_the_estimates_more(tiny: Model) -> None:
    assert isinstance(tiny.network, Denoiser)
    batch = random_batch(tiny, 4)
    with torch.inference_mode():
        exact = tiny.network(*batch)
        errors = [relative_error(quantized(tiny.network, bits, "all")(*batch), exact) for bits in (12, 8, 4)]
    assert 0 < errors[0] < errors[1] < errors[2]
