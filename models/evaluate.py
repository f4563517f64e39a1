"""What a model is worth against its data set: `pfgmpp evaluate`."""

from typing import NamedTuple

import numpy as np
from sklearn.metrics import pairwise_distances_argmin_min

from models.data import DataError, Dataset, UInt8Array
from models.features import IMAGES, Classifier
from models.metrics import frechet_distance, kernel_distance, manifolds

SLICE = 8192
"""Training images that are compared with at once."""


class Evaluation(NamedTuple):
    """Of generated images against as many real ones, in the features of a classifier trained here."""

    images: int
    frechet: float
    """Fréchet distance of the features: not FID, for they are not Inception's."""
    kernel: float
    precision: float
    recall: float
    recognised: float | None
    """How many are taken for the class asked for; None without classes."""
    nearest: float
    """Median Euclidean distance to the nearest training image, over pixels in 0..1."""


class Evaluator:
    """A data set, the classifier trained on it, and the features of as many real images as are to be generated."""

    def __init__(self, data: Dataset, count: int, classifier_images: int = IMAGES):
        if not 2 * count <= len(data):
            raise DataError(f"{data.name} has {len(data):,} images: too few to compare {count:,} with twice as many")
        self.data = data
        self.classifier = Classifier(data, classifier_images)
        order = np.random.default_rng(0).permutation(len(data))
        self._real = [self.classifier.features(data.images[np.sort(order[k : k + count])]) for k in (0, count)]

    @property
    def floor(self) -> float:
        """The Fréchet distance between real images and as many others: no model need come nearer."""
        return frechet_distance(*self._real)

    def evaluate(self, images: UInt8Array, labels: list[int]) -> Evaluation:
        """Images [M, H, W, C] of the classes asked for [M], of which there are none for a model without."""
        features = self.classifier.features(images)
        precision, recall = manifolds(features, self._real[0])
        return Evaluation(
            images=len(images),
            frechet=frechet_distance(features, self._real[0]),
            kernel=kernel_distance(features, self._real[0]),
            precision=precision,
            recall=recall,
            recognised=self.classifier.recognised(images, labels) if labels else None,
            nearest=float(np.median(self.neighbours(images)[1])),
        )

    def neighbours(self, images: UInt8Array) -> tuple[UInt8Array, "np.ndarray[tuple[int, ...], np.dtype[np.float64]]"]:
        """The training image nearest to each of the images, and its distance."""
        flat = images.reshape(len(images), -1).astype(np.float32)
        found, nearest = np.zeros(len(flat), dtype=np.int64), np.full(len(flat), np.inf)
        for start in range(0, len(self.data), SLICE):
            some = self.data.images[start : start + SLICE].reshape(-1, flat.shape[1]).astype(np.float32)
            places, distances = pairwise_distances_argmin_min(flat, some)
            closer = distances < nearest
            found[closer], nearest[closer] = start + places[closer], distances[closer]
        return self.data.images[found], nearest / 255
