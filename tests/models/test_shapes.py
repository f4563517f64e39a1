"""Batch sizes: cut at the least cost, and steady where the bits agree."""

from itertools import combinations_with_replacement
from pathlib import Path

import pytest
import torch

from models import checkpoint
from models.card import ExactOptions
from models.checkpoint import Model
from models.shapes import Shapes, filled, random_batch, steady_shapes, timed_shapes
from tests.models.helpers import card, random_tensors, shapes

DIGITS = Shapes((1, 2, 4, 8, 64), (6.0, 9.0, 10.0, 12.0, 37.0))


def cost(pieces: list[int], shapes: Shapes) -> float:
    return sum(dict(zip(shapes.sizes, shapes.seconds, strict=True))[size] for size in pieces)


@pytest.mark.parametrize(
    ("count", "pieces"),
    [(0, []), (1, [1]), (3, [4]), (5, [8]), (8, [8]), (9, [8, 1]), (16, [8, 8]), (25, [64]), (65, [64, 1])],
)
def test_a_cut_takes_the_cheapest_sizes(count: int, pieces: list[int]) -> None:
    assert DIGITS.cut(count) == pieces


@pytest.mark.parametrize("known", [shapes(8), shapes(1, 2, 4), shapes(3, 7), DIGITS])
def test_no_other_choice_of_sizes_costs_less(known: Shapes) -> None:
    for count in range(1, 20):
        pieces = known.cut(count)
        assert sum(pieces) >= count
        assert pieces == sorted(pieces, reverse=True)
        for length in range(1, 5):
            for other in combinations_with_replacement(known.sizes, length):
                if sum(other) >= count:
                    assert cost(pieces, known) <= cost(list(other), known)


def test_of_equal_costs_the_one_with_less_padding_is_taken() -> None:
    assert Shapes((2, 4), (1.0, 1.0)).cut(2) == [2]


@pytest.mark.parametrize(
    ("seconds", "width"), [((1, 1, 1), 4), ((1, 2, 4), 1), ((1, 1.92, 3.9), 1), ((1, 1.8, 3.5), 2)]
)
def test_the_width_is_where_wider_brings_nothing(seconds: tuple[float, ...], width: int) -> None:
    assert Shapes((1, 2, 4), seconds).width == width


def test_filled_repeats_the_first_row() -> None:
    rows = torch.arange(6.0).view(3, 2)
    assert filled(rows, 3) is rows
    assert filled(rows, 5).tolist() == [[0, 1], [2, 3], [4, 5], [0, 1], [0, 1]]


@pytest.mark.parametrize(("largest", "most"), [(1, 8), (8, 8), (15, 8), (16, 16), (100, 64)])
def test_sizes_are_powers_of_two(tiny: Model, largest: int, most: int) -> None:
    every = tuple(size for size in (1, 2, 4, 8, 16, 32, 64) if size <= most)
    assert timed_shapes(tiny, largest, tiny.network).sizes == every
    steady = steady_shapes(tiny, largest)
    assert set(steady.sizes) <= set(every)
    assert 8 in steady.sizes
    assert all(0 < seconds < 60 for seconds in steady.seconds)


@pytest.fixture
def perfect(tmp_path: Path) -> Model:
    own = card(architecture=ExactOptions(examples=24))
    tensors = random_tensors(own) | {"data_class": torch.arange(24) % 3}
    checkpoint.save(tmp_path / "exact.safetensors", own, tensors)
    return checkpoint.load(tmp_path / "exact.safetensors")


@pytest.mark.parametrize("name", ["tiny", "digits", "perfect"])
def test_every_size_is_steady_on_a_cpu(name: str, request: pytest.FixtureRequest) -> None:
    """Not promised, but what makes a single image cost a single image: no library's choice by batch size shows."""
    model: Model = request.getfixturevalue(name)
    assert steady_shapes(model, 64).sizes == (1, 2, 4, 8, 16, 32, 64)


def test_a_size_whose_bits_differ_is_not_steady(tiny: Model) -> None:
    def network(x: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        return x + 1e-7 * (len(x) == 4)

    assert steady_shapes(tiny, 8, network).sizes == (1, 2, 8)


def test_a_neighbour_that_shows_is_noticed(tiny: Model) -> None:
    def network(x: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        return x + x[0] * 1e-7

    assert steady_shapes(tiny, 16, network).sizes == (8,)


def test_inputs_to_try_out_are_all_different(tiny: Model) -> None:
    x, sigma, labels = random_batch(tiny, 8)
    assert len(set(map(tuple, x.flatten(1).tolist()))) == len(set(sigma.tolist())) == 8
    assert labels.argmax(1).tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
