"""The random streams of an image: apart by every bit of its seed and by purpose."""

from itertools import combinations

import numpy as np
import pytest

from models.kernel import prior
from models.seeds import MAX_SEED, Stream, drawn_label, generator
from tests.models.helpers import follows, in_proportion, uncorrelated

SEED = 0x2545F4914F6CDD1D


def test_every_bit_of_a_seed_and_every_stream_counts() -> None:
    seeds = [SEED] + [SEED ^ (1 << bit) for bit in range(63)]
    first = {generator(seed, stream).bit_generator.random_raw() for seed in seeds for stream in Stream}
    assert len(first) == len(seeds) * len(Stream)


def test_seeds_that_share_their_lower_half_differ() -> None:
    near, far = (prior(seed, (1, 8, 8), 2048, 80.0) for seed in (7, 7 + 2**32))
    assert (near != far).all()
    labels = [[drawn_label(seed + offset, 10) for seed in range(50)] for offset in (0, 2**32)]
    assert labels[0] != labels[1]


@pytest.mark.parametrize("stream", Stream)
def test_the_streams_of_successive_seeds_are_independent(stream: Stream) -> None:
    draws = np.array([generator(seed, stream).random(2) for seed in range(5000)])
    assert follows(draws[:, 0], lambda u: u)
    for one, other in ((draws[1:, 0], draws[:-1, 0]), (draws[:, 0], draws[:, 1])):
        assert uncorrelated(one, other)


def test_the_streams_of_one_image_are_independent() -> None:
    draws = [generator(SEED, stream).standard_normal(100_000) for stream in Stream]
    assert all(uncorrelated(one, other) for one, other in combinations(draws, 2))


@pytest.mark.parametrize("seed", [-1, MAX_SEED + 1, 2**64])
def test_a_seed_out_of_range_is_refused(seed: int) -> None:
    with pytest.raises(ValueError, match=f"not {seed}"):
        generator(seed, Stream.LATENT)
    with pytest.raises(ValueError, match=f"not {seed}"):
        drawn_label(seed, 10)
    with pytest.raises(ValueError, match=f"not {seed}"):
        prior(seed, (1, 2, 2), 2, 80.0)


def test_the_first_and_the_last_seed_are_accepted() -> None:
    assert (prior(0, (1, 2, 2), 2, 80.0) != prior(MAX_SEED, (1, 2, 2), 2, 80.0)).all()


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_drawn_labels_are_uniform(classes: int) -> None:
    labels = [drawn_label(seed, classes) for seed in range(20_000)]
    assert in_proportion(np.bincount(labels, minlength=classes).astype(np.float64), np.ones(classes))


def test_a_seed_keeps_its_bits_from_version_to_version() -> None:
    words = [int(generator(12345, stream).bit_generator.random_raw()) for stream in Stream]
    assert words == [11923609910150341984, 6377294700625117040, 13969477496050380852]
