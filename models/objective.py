"""The objective of PFGM++ (Xu et al., 2023, section 3; EDM, section 5), and what is drawn for each step of it.

Everything random of a step is a function of (seed, step, place in the batch): a run that goes on from a state, or on
another number of devices, draws the same.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from models.augment import Changes
from models.data import Dataset, IntArray
from models.exact import log_weights
from models.kernel import FloatArray, stretch
from models.recipe import Recipe

CHUNK = 16
"""Places of a batch that share a stream."""

AnyFloats = np.ndarray[tuple[int, ...], np.dtype[np.floating[Any]]]

SLICE = 2**26
"""Differences that are held at once when a posterior mean is taken."""


class Examples(NamedTuple):
    """Some images of a batch, and what was drawn for them."""

    y: Tensor
    """[n, C, H, W] in [-1, 1]."""
    noise: Tensor
    """[n, C, H, W] of the kernel at sigma = 1."""
    sigma: Tensor
    """[n]"""
    labels: Tensor | None
    """[n, classes]: one-hot, or zeros where the class is left out."""
    changes: Changes | None
    """How each image is to be augmented."""
    reference: Tensor | None
    """[M, C, H, W]: all that may lie behind a noisy image, if the target is stable."""
    reference_labels: Tensor | None
    """[M, classes], one-hot."""

    def to(self, device: torch.device) -> "Examples":
        """The same on a device."""
        moved = [None if each is None else each.to(device, non_blocking=True) for each in self]
        return Examples(*moved)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Draws:
    """All that a run draws, by step and place."""

    recipe: Recipe
    D: float
    data: Dataset

    def examples(self, step: int, start: int, stop: int) -> Examples:
        """Those of the places start..stop-1 of the batch of a step. Every image comes once in each epoch."""
        recipe, data = self.recipe, self.data
        chosen = self._chosen(step * recipe.batch + np.arange(start, stop))
        chunks = [self._chunk(step, k) for k in range(start // CHUNK, -(-stop // CHUNK))]
        places = slice(start % CHUNK, start % CHUNK + stop - start)
        sigma, noise, dropped, changes = (np.concatenate(each)[places] for each in zip(*chunks, strict=True))
        labels = data.one_hot(chosen)
        if labels is not None:
            labels[torch.from_numpy(dropped < recipe.label_dropout)] = 0
        reference = None
        if recipe.stable_target:
            more = self._chosen(step * recipe.stable_target + np.arange(recipe.stable_target), stream=2)
            reference = np.concatenate([chosen, more[: recipe.stable_target - len(chosen)]])
        return Examples(
            data.take(chosen),
            torch.from_numpy(noise).contiguous(memory_format=torch.channels_last),
            torch.from_numpy(sigma),
            labels,
            Changes.of(changes, recipe.augment) if recipe.augment else None,
            None if reference is None else data.take(reference),
            None if reference is None else data.one_hot(reference),
        )

    def _chosen(self, places: IntArray, stream: int = 1) -> IntArray:
        """The images at some places of an endless sequence of epochs."""
        epochs, within = np.divmod(places, len(self.data))
        chosen: IntArray = np.empty_like(places)
        for epoch in np.unique(epochs):
            at = epochs == epoch
            chosen[at] = _order(self.recipe.seed, int(epoch), len(self.data), stream)[within[at]]
        return chosen

    def _chunk(self, step: int, k: int) -> tuple[Any, ...]:
        """Noise levels, noise, what decides on leaving out the class, and changes, of CHUNK places."""
        recipe, rng = self.recipe, stream_of(self.recipe.seed, step, 0, k)
        sigma = recipe.noise_scale * np.exp(rng.normal(recipe.P_mean, recipe.P_std, CHUNK))
        scale, dropped = stretch(rng, CHUNK, self.D), rng.random(CHUNK)
        changes = rng.random((CHUNK, Changes.DRAWS))
        noise = rng.standard_normal((CHUNK, *self.data.shape), dtype=np.float32)
        if recipe.kernel_cap and np.isfinite(self.D):
            scale = capped(noise, scale, self.D, recipe.kernel_cap)
        noise *= scale[:, None, None, None].astype(np.float32)
        return sigma, noise, dropped, changes


def stream_of(seed: int, step: int, purpose: int, k: int) -> np.random.Generator:
    """A random stream of its own for each of these numbers."""
    return np.random.Generator(np.random.Philox(key=[seed, step], counter=[0, 0, purpose, k]))


@lru_cache(4)
def _order(seed: int, epoch: int, count: int, purpose: int) -> IntArray:
    return stream_of(seed, epoch, purpose, 0).permutation(count)


def capped(noise: AnyFloats, scale: FloatArray, D: float, cap: float) -> FloatArray:
    """The scale of noise [n, ...] that clips s = B / (1 + B), B = (radius / r)^2, to [cap, 1 - cap]."""
    B = np.square(noise, dtype=np.float64).reshape(len(noise), -1).sum(1) * np.square(scale) / D
    s = np.clip(B / (1 + B), cap, 1 - cap)
    clipped: FloatArray = scale * np.sqrt(s / (1 - s) / B)
    return clipped


def weighted_error(denoised: Tensor, y: Tensor, sigma: Tensor, sigma_data: float = 0.5) -> Tensor:
    """w(sigma) (D_theta(x, sigma) - y)^2 per element, w = (sigma^2 + s^2) / (sigma s)^2 (EDM, section 5)."""
    weight = (sigma.square() + sigma_data**2) / (sigma * sigma_data).square()
    return weight[:, None, None, None] * (denoised - y).square()


def stable_target(
    x: Tensor, sigma: Tensor, labels: Tensor | None, reference: Tensor, reference_labels: Tensor | None, D: float
) -> Tensor:
    """The mean of the images that may lie behind each x, by their posterior weights (Xu et al., 2023b, eq. 6).

    For a network with classes these are the images of the same class, where that is told.
    """
    targets = []
    for k in range(0, len(x), rows := max(1, SLICE // reference.numel())):
        at = slice(k, k + rows)
        weights = log_weights(x[at], reference, sigma[at], D)
        if labels is not None and reference_labels is not None:
            is_other = (labels[at] @ reference_labels.T == 0) & labels[at].any(1, keepdim=True)
            weights = weights.masked_fill(is_other, -torch.inf)
        targets.append((weights.softmax(1).to(reference) @ reference.flatten(1)).view_as(x[at]))
    return torch.cat(targets)
