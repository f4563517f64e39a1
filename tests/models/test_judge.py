"""The judge of the digits, and the shipped model of D = 2048 before it."""

from collections import Counter

import numpy as np
import pytest
import sklearn.datasets

from models.checkpoint import Model
from models.data import HELD_OUT, load_digits
from models.generate import balanced
from models.judge import Judge, generator_of
from models.sampling import Sampling


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge()


def test_training_and_held_out_digits_have_nothing_in_common() -> None:
    training, held_out = load_digits(), load_digits(held_out=True)
    assert len(training.images) == 1797 - HELD_OUT
    assert len(held_out.images) == HELD_OUT
    assert not (training.images[:, None] == held_out.images).all((-1, -2, -3)).any()
    for data in (training, held_out):
        assert data.shape == (1, 8, 8)
        assert (data.images.min(), data.images.max()) == (0, 255)
        assert np.bincount(data.labels, minlength=10).min() > 0.08 * len(data)


def test_the_digits_are_those_of_scikit_learn() -> None:
    bundled = sklearn.datasets.load_digits()
    both = [load_digits(), load_digits(held_out=True)]
    ours = Counter(
        (image.tobytes(), int(label)) for data in both for image, label in zip(data.images, data.labels, strict=True)
    )
    theirs = np.rint(bundled.images * (255 / 16)).astype(np.uint8)
    assert ours == Counter((image.tobytes(), int(label)) for image, label in zip(theirs, bundled.target, strict=True))
    assert both[0].classes == tuple(map(str, bundled.target_names))


def test_the_classifier_recognises_digits_it_has_not_seen(judge: Judge) -> None:
    assert judge.accuracy >= 0.97


def test_held_out_digits_are_not_copies(judge: Judge) -> None:
    held_out = load_digits(held_out=True)
    verdict = judge.judge(held_out.images, held_out.labels.tolist())
    assert verdict.images == HELD_OUT
    assert verdict.recognised == judge.accuracy
    assert verdict.nearest == judge.real_nearest
    assert verdict.copies == pytest.approx(0.01, abs=0.002)


def test_copied_training_digits_are_found_out(judge: Judge) -> None:
    training = load_digits()
    verdict = judge.judge(training.images, training.labels.tolist())
    assert verdict.copies == 1
    assert verdict.nearest == 0
    assert verdict.recognised > 0.99


def test_wrong_labels_are_not_recognised(judge: Judge) -> None:
    training = load_digits()
    assert judge.judge(training.images, ((training.labels + 1) % 10).tolist()).recognised < 0.01


def test_the_shipped_model_draws_digits_of_its_own(judge: Judge, digits: Model) -> None:
    done: list[int] = []
    images, labels = balanced(generator_of(digits, "exact"), 200, Sampling(steps=9), done.append)
    assert done == [64, 128, 192, 200]
    assert labels == [i % 10 for i in range(200)]
    verdict = judge.judge(images, labels)
    assert verdict.recognised >= 0.95
    assert verdict.copies <= 0.02
