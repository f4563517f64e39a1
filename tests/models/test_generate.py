"""Images from seeds: the same bytes in any company, in batches cut into shapes."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from models import checkpoint
from models.checkpoint import Model
from models.generate import Generator, UInt8Array, chosen_labels, to_uint8
from models.seeds import drawn_label
from models.shapes import steady_shapes
from tests.models.helpers import card, random_tensors, shapes, torch_threads

STEPS = 3
SEEDS = [2**62 + 977 * i for i in range(64)]


@pytest.fixture(scope="module", params=["tiny", "digits"])
def generator(request: pytest.FixtureRequest) -> Generator:
    model: Model = request.getfixturevalue(request.param)
    return Generator(model, steady_shapes(model, 64))


def images(generator: Generator, seeds: list[int]) -> UInt8Array:
    return generator.images(seeds, chosen_labels(seeds, [None] * len(seeds), len(generator.model.card.classes)), STEPS)


@pytest.fixture(scope="module")
def together(generator: Generator) -> UInt8Array:
    """The images of all seeds, made in one batch."""
    return images(generator, SEEDS)


def test_the_images_of_the_seeds_are_all_different(together: UInt8Array, generator: Generator) -> None:
    channels, height, width = generator.model.card.shape
    assert together.shape == (64, height, width, channels)
    assert len(np.unique(together.reshape(64, -1), axis=0)) == 64


@pytest.mark.parametrize("size", [1, 7, 8, 9, 64])
def test_an_image_is_the_same_in_any_batch_and_order(generator: Generator, together: UInt8Array, size: int) -> None:
    order = np.random.default_rng(size).permutation(64)
    for start in (0, 27):
        chosen = np.take(order, range(start, start + size), mode="wrap")
        assert (images(generator, [SEEDS[i] for i in chosen]) == together[chosen]).all()


def test_an_image_is_the_same_next_to_any_others(generator: Generator, together: UInt8Array) -> None:
    for place in range(8):
        seeds = [7 * i for i in range(8)]
        seeds[place] = SEEDS[5]
        assert (images(generator, seeds)[place] == together[5]).all()


def test_an_image_is_the_same_in_batches_of_the_reference_shape_alone(
    generator: Generator, together: UInt8Array
) -> None:
    assert (images(Generator(generator.model, shapes(8)), SEEDS[:20]) == together[:20]).all()


def test_an_image_is_the_same_with_another_number_of_threads(generator: Generator, together: UInt8Array) -> None:
    with torch_threads(2):
        assert (images(generator, SEEDS[:16]) == together[:16]).all()


@pytest.mark.parametrize("size", [1, 7, 9, 40])
def test_the_network_sees_no_batch_but_the_steady_sizes(generator: Generator, size: int) -> None:
    seen: set[int] = set()
    hook = generator.model.network.register_forward_pre_hook(lambda network, inputs: seen.update(map(len, inputs)))
    try:
        images(generator, SEEDS[:size])
    finally:
        hook.remove()
    assert seen == set(generator.shapes.cut(size))


@pytest.mark.parametrize("size", [1, 7, 9, 33])
def test_estimates_agree_to_the_last_bit(generator: Generator, size: int) -> None:
    """Bytes could hide a difference that a longer path would show."""
    model = generator.model
    classes = len(model.card.classes)
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(64, *model.card.shape, generator=rng, dtype=torch.float64)
    sigma = 80 * torch.rand(64, generator=rng, dtype=torch.float64)
    labels = torch.eye(classes)[torch.arange(64) % classes]
    with torch.inference_mode():
        whole = generator.denoise(x, sigma, labels)
        for part in (slice(0, size), slice(13, 13 + size)):
            assert torch.equal(generator.denoise(x[part], sigma[part], labels[part]), whole[part])


def test_a_drawn_label_gives_the_image_of_the_same_label_asked_for(generator: Generator, together: UInt8Array) -> None:
    classes = len(generator.model.card.classes)
    asked = [drawn_label(seed, classes) for seed in SEEDS[:8]]
    assert chosen_labels(SEEDS[:8], [None] * 8, classes) == asked
    assert (generator.images(SEEDS[:8], asked, STEPS) == together[:8]).all()


def test_another_label_gives_another_image(generator: Generator, together: UInt8Array) -> None:
    classes = len(generator.model.card.classes)
    others = [(drawn_label(seed, classes) + 1) % classes for seed in SEEDS[:8]]
    assert (generator.images(SEEDS[:8], others, STEPS) != together[:8]).any((1, 2, 3)).all()


def test_labels_are_drawn_only_where_none_is_asked_for() -> None:
    assert chosen_labels([1, 2, 3], [4, None, 0], 10) == [4, drawn_label(2, 10), 0]
    assert chosen_labels([1, 2], [None, None], 0) == []


def test_a_model_without_classes_needs_no_labels(tmp_path: Path) -> None:
    own = card(classes=())
    checkpoint.save(tmp_path / "m.safetensors", own, random_tensors(own))
    model = checkpoint.load(tmp_path / "m.safetensors")
    generator = Generator(model, steady_shapes(model, 16))
    assert (generator.images([3], [], STEPS) == generator.images([1, 2, 3], [], STEPS)[2:]).all()


@pytest.mark.parametrize("count", [1, 9])
def test_a_batch_is_evaluated_2n_minus_1_times(tiny: Model, count: int) -> None:
    evaluations: list[None] = []
    Generator(tiny, shapes(8)).images(range(count), [0] * count, 4, lambda: evaluations.append(None))
    assert len(evaluations) == 7


def test_an_error_in_on_evaluation_ends_the_sampling(tiny: Model) -> None:
    def abandon() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        Generator(tiny, shapes(8)).images([1], [0], STEPS, abandon)


@pytest.fixture
def overflowing(tmp_path: Path) -> Model:
    """A model whose weights are finite and whose estimates are not even numbers."""
    tensors = random_tensors(card())
    tensors["model.dec.8x8_block1.conv1.weight"].fill_(3e38)
    checkpoint.save(tmp_path / "m.safetensors", card(), tensors)
    return checkpoint.load(tmp_path / "m.safetensors")


def test_images_that_are_not_finite_are_an_error(overflowing: Model) -> None:
    with pytest.raises(FloatingPointError, match="tiny-d128"):
        Generator(overflowing, shapes(8)).images([1], [0], STEPS)


def test_the_reference_size_is_steady_even_where_estimates_are_not_finite(overflowing: Model) -> None:
    assert steady_shapes(overflowing, 16).sizes == (8,)


def test_every_steady_size_gives_the_same_bytes(generator: Generator, together: UInt8Array) -> None:
    for size in generator.shapes.sizes:
        assert (images(Generator(generator.model, shapes(size)), SEEDS[:5]) == together[:5]).all()


def test_pixels_are_rounded_and_clipped() -> None:
    values = torch.tensor([-math.inf, -1.2, -1.0, 0.0, 0.5 / 127.5, 1.0, 3.0], dtype=torch.float64)
    x = torch.stack([values, -values]).view(1, 2, 1, 7)
    assert to_uint8(x).shape == (1, 1, 7, 2)
    assert to_uint8(x)[0, 0].T.tolist() == [[0, 0, 0, 128, 128, 255, 255], [255, 255, 255, 128, 127, 0, 0]]


def test_every_byte_survives_the_way_there_and_back() -> None:
    every = torch.arange(256, dtype=torch.float64).view(1, 1, 16, 16)
    assert (to_uint8(every / 127.5 - 1).ravel() == np.arange(256)).all()
