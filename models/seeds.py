"""Randomness per image: every image draws from streams of its own 64-bit seed, so its company never matters."""

from enum import IntEnum

import numpy as np

MAX_SEED = 2**63 - 1


class Stream(IntEnum):
    """What a stream is for: each purpose has its own, so drawing one never shifts another."""

    LABEL = 0
    LATENT = 1
    NOISE = 2


def generator(seed: int, stream: Stream) -> np.random.Generator:
    """The random generator of one image for one purpose.

    Philox is keyed by all 64 bits of the seed (torch's CPU generator uses only the lower 32) and by the stream.
    Raises ValueError for a seed outside 0..2^63-1.
    """
    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"seed must be between 0 and 2^63-1, not {seed}")
    return np.random.Generator(np.random.Philox(key=np.array([seed, stream], dtype=np.uint64)))


def drawn_label(seed: int, classes: int) -> int:
    """The class an image takes when none is asked for: uniform on 0..classes-1."""
    return int(generator(seed, Stream.LABEL).integers(classes))
