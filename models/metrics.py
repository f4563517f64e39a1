"""How far two sets of images are apart, by their features."""

from typing import NamedTuple

import numpy as np
from sklearn.neighbors import NearestNeighbors

from models.kernel import FloatArray

NEIGHBOURS = 3
"""The k-th neighbour that bounds the manifold of precision and recall (Kynkäänniemi et al., 2019)."""


class Manifold(NamedTuple):
    """Shares in 0..1: of generated images among the real ones, and of real images among the generated ones."""

    precision: float
    recall: float


def frechet_distance(one: FloatArray, other: FloatArray) -> float:
    """That of the Gaussians with the means and covariances of features [M, F] and [K, F] (Heusel et al., 2017).

    |m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)); it falls with the number of images, so compare only equal numbers.
    """
    means, covariances = zip(*((each.mean(0), np.cov(each, rowvar=False)) for each in (one, other)), strict=True)
    # The product has the eigenvalues of a positive matrix; rounding makes some of them negative, or complex.
    roots = np.sqrt(np.linalg.eigvals(covariances[0] @ covariances[1]).real.clip(0)).sum()
    apart = np.square(means[0] - means[1]).sum()
    return float(apart + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * roots)


def kernel_distance(one: FloatArray, other: FloatArray) -> float:
    """The squared maximum mean discrepancy with the kernel (x.y / F + 1)^3, without bias (Binkowski et al., 2018)."""

    def kernel(a: FloatArray, b: FloatArray) -> FloatArray:
        products: FloatArray = (a @ b.T / a.shape[1] + 1) ** 3
        return products

    def within(a: FloatArray) -> float:
        products = kernel(a, a)
        return float((products.sum() - np.trace(products)) / (len(a) * (len(a) - 1)))

    return within(one) + within(other) - 2 * float(kernel(one, other).mean())


def manifolds(generated: FloatArray, real: FloatArray) -> Manifold:
    """Precision and recall: whether a feature lies within the NEIGHBOURS-th neighbour of one of the other set."""

    def covered(points: FloatArray, by: FloatArray) -> float:
        radii = NearestNeighbors(n_neighbors=NEIGHBOURS + 1).fit(by).kneighbors(by)[0][:, -1]
        hits = np.zeros(len(points), dtype=bool)
        for start in range(0, len(points), 256):
            some = points[start : start + 256]
            squared = np.square(some).sum(1)[:, None] + np.square(by).sum(1) - 2 * some @ by.T
            hits[start : start + 256] = (squared <= np.square(radii) * (1 + 1e-9)).any(1)
        return float(hits.mean())

    return Manifold(covered(generated, real), covered(real, generated))
