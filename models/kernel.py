"""The perturbation kernel and the prior of PFGM++, for any real D > 0 and infinity (Xu et al., 2023, section 3).

p_r(x | y) ~ 1 / (||x - y||^2 + r^2)^((N+D)/2) with r = sigma sqrt(D) is a multivariate Student-t with D degrees of
freedom: x = y + sigma z sqrt(D / c), z ~ Normal(0, I_N), c ~ ChiSquare(D). N never enters, nothing is clipped, and
D = infinity is the Gaussian of diffusion.
"""

import math

import numpy as np

from models.seeds import Stream, generator

FloatArray = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def stretch(rng: np.random.Generator, count: int, D: float) -> FloatArray:
    """sqrt(D / c) [count] in float64, c ~ ChiSquare(D): how much longer than Gaussian the noise of an image is.

    Ones for D = infinity. Drawn in logs, c = 2 Gamma(D/2 + 1) U^(2/D), so that small D does not underflow.
    """
    if math.isinf(D):
        return np.ones(count)
    log_c = np.log(2 * rng.standard_gamma(D / 2 + 1, count)) - 2 / D * rng.standard_exponential(count)
    return np.exp((math.log(D) - log_c) / 2)


def kernel_noise(rng: np.random.Generator, shape: tuple[int, ...], D: float) -> FloatArray:
    """One draw of the kernel around 0 at sigma = 1, of the given shape, in float64."""
    scale = stretch(rng, 1, D)
    return scale * rng.standard_normal(shape)


def prior(seed: int, shape: tuple[int, ...], D: float, sigma_max: float) -> FloatArray:
    """The starting point of one image: the kernel at sigma_max around 0, from the image's own seed, in float64."""
    return sigma_max * kernel_noise(generator(seed, Stream.LATENT), shape, D)
