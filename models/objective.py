"""The objective of PFGM++ (Xu et al., 2023, section 3; EDM, section 5), and what is drawn for each step of it.

Everything random of a step is a function of (seed, step, place in the batch): a run that goes on from a state, or on
another number of devices, draws the same.
"""

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from models.augment import Changes
from models.card import EDM, VE, VP, Precond
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
    corners: Tensor | None
    """[n, 2]: where in the frame each begins, across and down, if they are patches."""

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

    @cached_property
    def shares(self) -> dict[int, float]:
        """How likely a step is to see patches of each size; that of the frame alone without them."""
        resolution, patch = self.data.shape[1], self.recipe.patch
        return patch.shares(resolution, self.recipe.architecture.unit) if patch else {resolution: 1.0}

    def size(self, step: int) -> int:
        """Of what a step sees, in pixels."""
        rng = stream_of(self.recipe.seed, step, 3, 0)
        return int(rng.choice(list(self.shares), p=list(self.shares.values())))

    def growth(self, step: int) -> int:
        """How many times as many patches as whole images a step sees."""
        return self.data.shape[1] // self.size(step)

    def examples(self, step: int, start: int, stop: int) -> Examples:
        """Those of the places start..stop-1 of the batch of a step. Every image comes once in each epoch.

        With patches, of which smaller ones need more, that holds on average.
        """
        recipe, data, size = self.recipe, self.data, self.size(step)
        most = recipe.batch * (data.shape[1] // min(self.shares))
        chosen = self._chosen(step * most + np.arange(start, stop))
        chunks = [self._chunk(step, k, size) for k in range(start // CHUNK, -(-stop // CHUNK))]
        places = slice(start % CHUNK, start % CHUNK + stop - start)
        sigma, noise, dropped, changes, corners = (np.concatenate(each)[places] for each in zip(*chunks, strict=True))
        labels = data.one_hot(chosen % len(data))
        if labels is not None:
            labels[torch.from_numpy(dropped < recipe.label_dropout)] = 0
        reference = None
        if recipe.stable_target:
            more = self._chosen(step * recipe.stable_target + np.arange(recipe.stable_target), stream=2)
            reference = np.concatenate([chosen, more[: recipe.stable_target - len(chosen)]])
        return Examples(
            self._images(chosen, corners if recipe.patch else None, size),
            torch.from_numpy(noise).contiguous(memory_format=torch.channels_last),
            torch.from_numpy(sigma),
            labels,
            Changes.of(changes, recipe.augment) if recipe.augment else None,
            None if reference is None else self._images(reference),
            None if reference is None else data.one_hot(reference % len(data)),
            torch.from_numpy(corners) if recipe.patch else None,
        )

    def _images(self, chosen: IntArray, corners: IntArray | None = None, size: int = 0) -> Tensor:
        """Images [n, C, H, W], or their parts; the second half of all there are is the first one mirrored."""
        places, is_mirrored = chosen % len(self.data), chosen >= len(self.data)
        if corners is None:
            images = self.data.take(places)
        else:
            across = np.where(is_mirrored, self.data.shape[2] - size - corners[:, 0], corners[:, 0])
            images = self.data.crops(places, np.stack([across, corners[:, 1]], axis=1), size)
        if self.recipe.mirrored:
            images = torch.where(torch.from_numpy(is_mirrored)[:, None, None, None], images.flip(3), images)
        return images

    def _chosen(self, places: IntArray, stream: int = 1) -> IntArray:
        """The images at some places of an endless sequence of epochs."""
        count = len(self.data) * (2 if self.recipe.mirrored else 1)
        epochs, within = np.divmod(places, count)
        chosen: IntArray = np.empty_like(places)
        for epoch in np.unique(epochs):
            at = epochs == epoch
            chosen[at] = _order(self.recipe.seed, int(epoch), count, stream)[within[at]]
        return chosen

    def _chunk(self, step: int, k: int, size: int) -> tuple[Any, ...]:
        """Noise levels, noise, what decides on leaving out the class, changes, and corners, of CHUNK places."""
        recipe, rng = self.recipe, stream_of(self.recipe.seed, step, 0, k)
        channels, resolution, _ = self.data.shape
        sigma = recipe.noise_scale * drawn_levels(rng, CHUNK, recipe)
        scale, dropped = stretch(rng, CHUNK, self.D), rng.random(CHUNK)
        changes = rng.random((CHUNK, Changes.DRAWS))
        # Of a patch, for a part of the noise is noise of that size: N is that of the patch.
        noise = rng.standard_normal((CHUNK, channels, size, size), dtype=np.float32)
        if recipe.kernel_cap and np.isfinite(self.D):
            scale = capped(noise, scale, self.D, recipe.kernel_cap)
        noise *= scale[:, None, None, None].astype(np.float32)
        return sigma, noise, dropped, changes, rng.integers(0, resolution - size + 1, (CHUNK, 2))


def drawn_levels(rng: np.random.Generator, count: int, recipe: Recipe) -> FloatArray:
    """Noise levels [count] of the distribution that suits the network's preconditioning (EDM, table 1).

    ln sigma is normal for EDM and uniform for VE; the time is uniform for VP.
    """
    precond = recipe.architecture.precond
    if isinstance(precond, VE):
        low, high = map(math.log, precond.sigma_range)
        return np.exp(rng.uniform(low, high, count))
    if isinstance(precond, VP):
        return np.array([precond.sigma(t) for t in rng.uniform(precond.epsilon_t, 1, count)])
    return np.exp(rng.normal(recipe.P_mean, recipe.P_std, count))


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


def weighted_error(denoised: Tensor, y: Tensor, sigma: Tensor, precond: Precond) -> Tensor:
    """w(sigma) (D_theta(x, sigma) - y)^2 per element.

    w = 1 / sigma^2, and for EDM (sigma^2 + s^2) / (sigma s)^2 with the deviation s of the data (EDM, table 1).
    """
    weight = sigma.square().reciprocal()
    if isinstance(precond, EDM):
        weight = weight + precond.sigma_data**-2
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
