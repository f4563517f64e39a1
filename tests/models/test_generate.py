"""Images from seeds: the same bytes in any company, in batches cut into shapes."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from models import checkpoint
from models.checkpoint import Model
from models.generate import Generator, UInt8Array, Walk, chosen_labels, to_uint8
from models.sampling import Sampling
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
def test_a_walk_takes_2n_minus_1_evaluations(tiny: Model, count: int) -> None:
    generator, evaluations = Generator(tiny, shapes(8)), 0
    walk = generator.walk(range(count), [None] * count, Sampling(steps=4))
    while not walk.is_finished:
        generator.evaluate([walk])
        evaluations += 1
    assert evaluations == 7


def test_walks_of_other_lengths_and_positions_share_evaluations_without_a_trace(generator: Generator) -> None:
    """Each enters when another is half way, with its own number of steps, and gets the images it gets alone."""
    plans = {0: (SEEDS[:3], 5), 2: (SEEDS[3:4], 3), 3: (SEEDS[4:16], 2), 7: (SEEDS[16:17], 4)}
    under_way: dict[int, Walk] = {}
    found: dict[int, UInt8Array] = {}
    turn = 0
    while turn in plans or under_way or turn < max(plans):
        if turn in plans:
            seeds, steps = plans[turn]
            under_way[turn] = generator.walk(seeds, [None] * len(seeds), Sampling(steps=steps))
        if under_way:
            generator.evaluate(list(under_way.values()))
        found |= {start: walk.images() for start, walk in under_way.items() if walk.is_finished}
        under_way = {start: walk for start, walk in under_way.items() if not walk.is_finished}
        turn += 1
    for start, (seeds, steps) in plans.items():
        assert (found[start] == generator.images(seeds, [None] * len(seeds), steps)).all()


@pytest.fixture
def overflowing(tmp_path: Path) -> Model:
    """A model whose weights are finite and whose estimates are not even numbers."""
    tensors = random_tensors(card())
    tensors["model.dec.8x8_block1.conv1.weight"].fill_(3e38)
    checkpoint.save(tmp_path / "m.safetensors", card(), tensors)
    return checkpoint.load(tmp_path / "m.safetensors")


def test_there_are_no_images_before_the_end(tiny: Model) -> None:
    with pytest.raises(ValueError, match="has not come to its end"):
        Generator(tiny, shapes(8)).walk([1], [0], Sampling(steps=STEPS)).images()


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
