"""How far two sets of images are apart, by their features."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from sklearn.neighbors import NearestNeighbors

from models.kernel import FloatArray

NEIGHBOURS = 3
"""The k-th neighbour that bounds the manifold of precision and recall (Kynkäänniemi et al., 2019)."""


SLICE = 1024
"""Features that are compared with all others at once."""


class Gaussian(NamedTuple):
    """A mean [F] and a covariance [F, F]."""

    mean: FloatArray
    covariance: FloatArray


class Manifold(NamedTuple):
    """Shares in 0..1: of generated images among the real ones, and of real images among the generated ones."""

    precision: float
    recall: float


def gaussian(parts: Iterable[FloatArray]) -> Gaussian:
    """The Gaussian with the mean and covariance of features that come in parts [*, F], which are not kept."""
    count, total, products = 0, np.zeros(1), np.zeros((1, 1))
    for part in parts:
        count, total, products = count + len(part), total + part.sum(0), products + part.T @ part
    mean = total / count
    return Gaussian(mean, (products - count * np.outer(mean, mean)) / (count - 1))


def frechet_distance(one: Gaussian, other: Gaussian) -> float:
    """|m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)) (Heusel et al., 2017).

    It falls with the number of images, so compare only equal numbers.
    """
    # The product has the eigenvalues of a positive matrix; rounding makes some of them negative, or complex.
    roots = np.sqrt(np.linalg.eigvals(one.covariance @ other.covariance).real.clip(0)).sum()
    apart = np.square(one.mean - other.mean).sum()
    return float(apart + np.trace(one.covariance) + np.trace(other.covariance) - 2 * roots)


def kernel_distance(one: FloatArray, other: FloatArray) -> float:
    """The squared maximum mean discrepancy with the kernel (x.y / F + 1)^3, without bias (Binkowski et al., 2018)."""

    def total(a: FloatArray, b: FloatArray) -> float:
        slices = (a[start : start + SLICE] for start in range(0, len(a), SLICE))
        return sum(float(((some @ b.T / b.shape[1] + 1) ** 3).sum()) for some in slices)

    def within(a: FloatArray) -> float:
        own = float(((np.square(a).sum(1) / a.shape[1] + 1) ** 3).sum())
        return (total(a, a) - own) / (len(a) * (len(a) - 1))

    return within(one) + within(other) - 2 * total(one, other) / (len(one) * len(other))


def manifolds(generated: FloatArray, real: FloatArray) -> Manifold:
    """Precision and recall: whether a feature lies within the NEIGHBOURS-th neighbour of one of the other set."""

    def covered(points: FloatArray, by: FloatArray) -> float:
        radii = NearestNeighbors(n_neighbors=NEIGHBOURS + 1).fit(by).kneighbors(by)[0][:, -1]
        lengths, hits = np.square(by).sum(1), np.zeros(len(points), dtype=bool)
        for start in range(0, len(points), SLICE):
            some = points[start : start + SLICE]
            squared = np.square(some).sum(1)[:, None] + lengths - 2 * some @ by.T
            hits[start : start + SLICE] = (squared <= np.square(radii) * (1 + 1e-9)).any(1)
        return float(hits.mean())

    return Manifold(covered(generated, real), covered(real, generated))
