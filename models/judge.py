"""What a model of the digits is worth, measured: recognised classes, and distance from its training set."""

from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np
from sklearn.metrics import pairwise_distances_argmin_min
from sklearn.svm import SVC

from models.checkpoint import Model
from models.data import Dataset, load_digits
from models.fast import Precision, Way, fastest
from models.generate import BALANCED_BATCH, Generator, UInt8Array, balanced_generator
from models.kernel import FloatArray
from models.shapes import Shapes


class Verdict(NamedTuple):
    """Shares lie in 0..1; distances are Euclidean over 64 pixels in 0..1."""

    images: int
    recognised: float
    """How many of the images a classifier of real digits takes for the class that was asked for."""
    nearest: float
    """The median distance from an image to the training image nearest to it."""
    copies: float
    """How many lie nearer to a training image than 99 in 100 held-out real images do; 0.01 is what chance gives."""


class Judge:
    """A classifier of real digits, and the distances that held-out real digits keep from the training set."""

    def __init__(self) -> None:
        training, held_out = load_digits(), load_digits(held_out=True)
        self.training = features(training)
        self.classifier = SVC(C=10.0).fit(self.training, training.labels)
        self.accuracy = float(self.classifier.score(features(held_out), held_out.labels))
        distances = self._distances(features(held_out))
        self.real_nearest = float(np.median(distances))
        self.near = float(np.quantile(distances, 0.01))

    def judge(self, images: UInt8Array, labels: list[int]) -> Verdict:
        """The verdict on generated images [M, H, W, 1] of the classes asked for [M]."""
        pixels = images.reshape(len(images), -1) / 255
        distances = self._distances(pixels)
        return Verdict(
            images=len(images),
            recognised=float(self.classifier.score(pixels, labels)),
            nearest=float(np.median(distances)),
            copies=float((distances < self.near).mean()),
        )

    def _distances(self, pixels: FloatArray) -> FloatArray:
        return np.asarray(pairwise_distances_argmin_min(pixels, self.training)[1])


def features(data: Dataset) -> FloatArray:
    """The pixels [M, H*W] of a data set in 0..1."""
    return data.images.reshape(len(data), -1) / 255


def generator_of(model: Model, precision: Precision | Literal["bfloat16"]) -> Generator:
    """The model with the network of a precision: `bfloat16` even where that is slow."""
    if precision == "exact":
        return balanced_generator(model)
    way = Way(precision) if precision == "bfloat16" else fastest(model)
    # In one size, for not every CPU has bfloat16 for a single image.
    return Generator(replace(model, network=way.of(model.network)), Shapes((BALANCED_BATCH,), (1.0,)))
