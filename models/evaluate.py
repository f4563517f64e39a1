"""What a model is worth against its data set: `pfgmpp evaluate`."""

from collections.abc import Callable, Iterable

import numpy as np
from pydantic import BaseModel, ConfigDict
from sklearn.metrics import pairwise_distances_argmin_min

from models.data import DataError, Dataset, UInt8Array, cache_folder
from models.features import IMAGES, Classifier, file_name
from models.inception import Inception
from models.kernel import FloatArray
from models.metrics import frechet_distance, gaussian, kernel_distance, manifolds

SLICE = 8192
"""Training images that are compared with at once."""

NEAREST = 1024
"""Generated images whose nearest training images are looked for: the first ones."""


class Evaluation(BaseModel):
    """Of generated images against real ones, in the features of Inception or of a classifier trained here."""

    model_config = ConfigDict(frozen=True)

    images: int
    measure: str
    """What the Fréchet distance is called: FID for Inception's features alone."""
    frechet: float
    kernel: float
    precision: float
    recall: float
    recognised: float | None
    """How many the classifier takes for the class asked for; None without classes."""
    nearest: float
    """Median Euclidean distance to the nearest training image, over pixels in 0..1."""
    frechet_of_real_images: float | None
    """Between as many real images and as many others: no model need come nearer. None for FID."""
    classifier_accuracy: float | None
    """On held-out real images; None where no classifier was trained."""


class Evaluator:
    """A data set, the features of its images, and a classifier of them.

    Inception's features are compared with those of all real images, as FID is defined; a classifier's with those of as
    many as are generated. Kernel distance, precision and recall compare with at most as many.
    """

    def __init__(
        self,
        data: Dataset,
        count: int,
        classifier_images: int = IMAGES,
        inception: Inception | None = None,
        report: Callable[[int, int], object] = lambda done, total: None,
    ):
        """`report` is told of how many real images Inception's features are there.

        Raises DataError when there are too few real images.
        """
        if inception is None and not 2 * count <= len(data):
            raise DataError(f"{data.name} has {len(data):,} images: too few to compare {count:,} with twice as many")
        self.data = data
        self.fingerprint = data.fingerprint()
        self.network: Classifier | Inception
        """Whose features are compared."""
        self.classifier: Classifier | None
        self.floor: float | None = None
        """The Fréchet distance between real images and as many others: no model need come nearer. None for FID."""
        order = np.random.default_rng(0).permutation(len(data))
        chosen, others = np.sort(order[:count]), np.sort(order[count : 2 * count])
        if inception is None:
            self.network = self.classifier = self._trained(classifier_images)
            self._real = self.network.features(data.images[chosen])
            self._gaussian = gaussian([self._real])
            self.floor = frechet_distance(self._gaussian, gaussian([self.network.features(data.images[others])]))
        else:
            self.network = inception
            self.classifier = self._trained(classifier_images) if data.classes else None
            known = inception.features_of_all(data, self.fingerprint, cache_folder(), report)
            self._real = known[chosen].astype(np.float64)
            self._gaussian = gaussian(known[k : k + SLICE].astype(np.float64) for k in range(0, len(known), SLICE))

    def _trained(self, images: int) -> Classifier:
        """The classifier of the data set, trained with so many images, now or once before."""
        return Classifier(self.data, images, cache_folder() / file_name(self.fingerprint, images))

    def evaluate(self, batches: Iterable[tuple[UInt8Array, list[int]]]) -> Evaluation:
        """Batches of images [n, H, W, C], and the classes asked for [n], of which there are none for a model without.

        Of each batch the features alone are kept, and of the first NEAREST images the pixels.
        """
        parts, some, recognised = list[FloatArray](), list[UInt8Array](), list[float]()
        for images, labels in batches:
            parts.append(self.network.features(images))
            some.append(images[: max(0, NEAREST - sum(map(len, some)))])
            if self.classifier and labels:
                recognised += [self.classifier.recognised(images, labels)] * len(images)
        features = np.concatenate(parts)
        precision, recall = manifolds(features, self._real)
        return Evaluation(
            images=len(features),
            measure=self.network.measure,
            frechet=frechet_distance(gaussian([features]), self._gaussian),
            kernel=kernel_distance(features, self._real),
            precision=precision,
            recall=recall,
            recognised=float(np.mean(recognised)) if recognised else None,
            nearest=float(np.median(self.neighbours(np.concatenate(some))[1])),
            frechet_of_real_images=self.floor,
            classifier_accuracy=self.classifier.accuracy if self.classifier else None,
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
