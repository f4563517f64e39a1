"""Images from seeds: the prior, the label and the path of each image are its own, whatever shares its batch.

Every batch is cut into sizes in which the network was seen to give the same bits (`models.shapes`), and the last is
filled up.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.card import Card
from models.checkpoint import Model
from models.kernel import FloatArray, prior
from models.levels import rounded
from models.memory import Memory, fingerprint
from models.sampler import Noise, Query, Solver
from models.sampling import Sampling
from models.seeds import Stream, drawn_label, generator
from models.shapes import Shapes, filled, steady_shapes
from models.solvers import solver_of

BALANCED_BATCH = 64
"""Images of `balanced_batches` that walk together."""

_KNOWN = Memory()

UInt8Array = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]


class Walk:
    """Images that walk through the same noise levels side by side, asking for one estimate after the other.

    With guidance every estimate is asked for twice, of the model and then of its guide; `one_hots` are the conditions
    of both. Of so many estimates, `keep_every`, it keeps the first for the trajectory; 0 keeps none.
    """

    def __init__(
        self,
        solver: Solver,
        labels: list[int],
        one_hots: tuple[Tensor | None, ...],
        name: str,
        guidance: float = 1.0,
        keep_every: int = 0,
    ):
        self.labels = labels
        self._one_hots = one_hots
        self._guidance = guidance
        self._unguided: Tensor | None = None
        self._keep_every = keep_every
        self._asked = 0
        self._estimates: list[Tensor] = []
        self._latest: tuple[float, Tensor] | None = None
        self._solver = solver
        self._name = name
        self.end: Tensor | None = None
        """The images [n, C, H, W] in [-1, 1], float64, once they are there."""
        self.query: Query = next(solver)

    @property
    def is_finished(self) -> bool:
        return self.end is not None

    @property
    def asks_guide(self) -> bool:
        """Whether the next estimate is to be that of the guide."""
        return self._unguided is not None

    @property
    def one_hot(self) -> Tensor | None:
        """The condition [n, classes] of the next estimate: zeros for no class; None for a network without classes."""
        return self._one_hots[self.asks_guide]

    def advance(self, denoised: Tensor) -> None:
        """Take the estimate [n, C, H, W] that was asked for, in float64, as far as the next query or the end.

        With guidance w the solver gets D_guide + w (D_model - D_guide) (Ho and Salimans, 2022; Karras et al., 2024).
        """
        if len(self._one_hots) > 1:
            if self._unguided is None:
                self._unguided = denoised
                return
            denoised, self._unguided = denoised.lerp(self._unguided, self._guidance), None
        if self._keep_every and self._asked % self._keep_every == 0:
            self._estimates.append(to_pixels(denoised))
        self._asked += 1
        self._latest = (self.query.sigma, denoised)
        try:
            self.query = self._solver.send(denoised)
        except StopIteration as end:
            self.end = end.value

    def images(self) -> UInt8Array:
        """The finished images, uint8 [n, H, W, C].

        Raises FloatingPointError when an image came out with values that are not finite, ValueError before the end.
        """
        if self.end is None:
            raise ValueError("the walk has not come to its end")
        if not self.end.isfinite().all():
            raise FloatingPointError(f"{self._name} gave values that are not finite")
        return to_uint8(self.end)

    def preview(self) -> "Preview | None":
        """The estimate that the walk was given last; None before the first."""
        return Preview(self._latest[0], to_pixels(self._latest[1])) if self._latest else None

    def trajectory(self) -> UInt8Array | None:
        """The denoised estimates of every step, uint8 [n, steps, H, W, C]; None if they were not kept."""
        return torch.stack(self._estimates, dim=1).cpu().numpy() if self._estimates else None


@dataclass(frozen=True)
class Preview:
    """What images were taken for at a noise level, sigma: pixels uint8 [n, H, W, C], still on the device."""

    sigma: float
    pixels: Tensor

    def images(self) -> UInt8Array:
        """The pixels, for any thread."""
        return on_host(self.pixels)


@dataclass(frozen=True)
class Generator:
    """A model with the batch sizes in which it is run."""

    model: Model
    shapes: Shapes

    @property
    def width(self) -> int:
        """The most images of a network call; more would bring nothing but delay."""
        return self.shapes.width

    def walk(
        self, seeds: Sequence[int], labels: Sequence[int | None], sampling: Sampling, guide: Card | None = None
    ) -> Walk:
        """The walk of one image per seed, from the prior on; labels of None are drawn from the seed.

        If it is guided, the guide is the model without a class, unless another is given.
        Raises LevelsError when the model has no such noise levels.
        """
        card, device = self.model.card, self.model.device
        ends = sampling.range(card.sigma_min, card.sigma_max)
        levels = rounded(sampling.levels(ends), self.model.table)
        chosen = chosen_labels(seeds, labels, len(card.classes))
        x = self._images([prior(seed, self.model.shape, card.D, levels[0]) for seed in seeds])
        one_hots = _one_hots(card, guide, chosen, sampling.is_guided, device)
        noise = self._noise(seeds) if sampling.is_noisy else None
        keep_every = sampling.evaluations_per_step if sampling.trajectory else 0
        solver = solver_of(sampling, x, levels, ends, noise)
        return Walk(solver, chosen, one_hots, card.name, sampling.guidance, keep_every)

    def _noise(self, seeds: Sequence[int]) -> Noise:
        """Standard Gaussian noise, each image's from its own stream."""
        streams = [generator(seed, Stream.NOISE) for seed in seeds]
        return lambda: self._images([stream.standard_normal(self.model.shape) for stream in streams])

    def _images(self, arrays: Sequence[FloatArray]) -> Tensor:
        """Arrays [C, H, W] as a batch in float64, in the layout of the network, on its device."""
        batch = torch.from_numpy(np.stack(arrays)).to(self.model.device)
        return batch.contiguous(memory_format=torch.channels_last)

    def evaluate(self, walks: Sequence[Walk]) -> None:
        """Take walks of any position and number of steps one evaluation further, together."""
        advance(walks, self.estimates(walks))

    @torch.inference_mode()
    def estimates(self, walks: Sequence[Walk]) -> Tensor:
        """What walks of any position and number of steps ask for next, one after the other: [B, C, H, W] in float64."""
        x = torch.cat([walk.query.x for walk in walks])
        levels = [level for walk in walks for level in [walk.query.sigma] * len(walk.query.x)]
        # From pinned memory the copy waits for nothing on an accelerator.
        sigma = torch.tensor(levels, dtype=torch.float64, pin_memory=x.is_cuda).to(x.device, non_blocking=True)
        labels = [walk.one_hot for walk in walks if walk.one_hot is not None]
        return self.denoise(x, sigma, torch.cat(labels) if labels else None).to(torch.float64)

    def images(self, seeds: Sequence[int], labels: Sequence[int | None], steps: int) -> UInt8Array:
        """One uint8 image [B, H, W, C] per seed; labels of None are drawn from the seed.

        Raises FloatingPointError when an image comes out with values that are not finite.
        """
        walk = self.walk(seeds, labels, Sampling(steps=steps))
        while not walk.is_finished:
            self.evaluate([walk])
        return walk.images()

    def denoise(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """The denoised estimates [B, C, H, W] for any B, the same bits for an image in any company."""
        pieces = self.shapes.cut(len(x))
        x = filled(x, sum(pieces)).contiguous(memory_format=torch.channels_last)
        own = None if labels is None else filled(labels, sum(pieces))
        return self._run(pieces, x, filled(sigma, sum(pieces)), own)[: len(sigma)]

    def _run(self, pieces: list[int], x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        """The network's answer to a batch that its pieces fill, piece by piece."""
        batch = [x, sigma] if labels is None else [x, sigma, labels]
        parts = zip(*(rows.split(pieces) for rows in batch), strict=True)  # type: ignore[no-untyped-call]
        return torch.cat([self.model.network(*part) for part in parts])


@torch.inference_mode()
def advance(walks: Sequence[Walk], denoised: Tensor) -> None:
    """Give walks the estimates that they asked for, one after the other."""
    for walk, own in zip(walks, denoised.split([len(walk.query.x) for walk in walks]), strict=True):  # type: ignore[no-untyped-call]
        walk.advance(own)


def balanced_generator(model: Model) -> Generator:
    """The model with the sizes up to BALANCED_BATCH in which it is run; of all of a make they are found out once."""
    key = fingerprint(model.card, model.device, "balanced")
    shapes = _KNOWN.recall(key, Shapes)
    if shapes is None:
        shapes = steady_shapes(model, BALANCED_BATCH)
        _KNOWN.keep(key, shapes)
    return Generator(model, shapes)


def balanced_batches(generator: Generator, seeds: range, sampling: Sampling) -> Iterator[tuple[UInt8Array, list[int]]]:
    """Batches of images [n, H, W, C] of the seeds with classes in turn, and those classes; without classes none.

    Raises FloatingPointError as `Walk.images` does.
    """
    classes = len(generator.model.card.classes)
    for start in range(0, len(seeds), BALANCED_BATCH):
        own = seeds[start : start + BALANCED_BATCH]
        walk = generator.walk(own, [seed % classes if classes else None for seed in own], sampling)
        while not walk.is_finished:
            generator.evaluate([walk])
        yield walk.images(), walk.labels


def balanced(
    generator: Generator, count: int, sampling: Sampling, report: Callable[[int], object] = lambda done: None
) -> tuple[UInt8Array, list[int]]:
    """All images [M, H, W, C] of seeds 0..count-1, and their classes, as `balanced_batches` makes them.

    `report` is told how many there are.
    """
    batches, labels = list[UInt8Array](), list[int]()
    for images, own in balanced_batches(generator, range(count), sampling):
        batches.append(images)
        labels += own
        report(sum(map(len, batches)))
    return np.concatenate(batches), labels


def chosen_labels(seeds: Sequence[int], labels: Sequence[int | None], classes: int) -> list[int]:
    """The class index of every image: the one asked for, else one drawn from its seed; empty without classes."""
    if not classes:
        return []
    return [drawn_label(seed, classes) if label is None else label for seed, label in zip(seeds, labels, strict=True)]


def _one_hots(
    card: Card, guide: Card | None, chosen: list[int], is_guided: bool, device: torch.device
) -> tuple[Tensor | None, ...]:
    """What the network is told of the classes chosen, and what its guide is, if there is one."""
    own = torch.eye(len(card.classes), device=device)[chosen] if card.classes else None
    if not is_guided:
        return (own,)
    if guide:
        return (own, own if guide.classes else None)
    return (own, None if own is None else torch.zeros_like(own))


def to_uint8(x: Tensor) -> UInt8Array:
    """Pixels [B, C, H, W] in [-1, 1] as uint8 [B, H, W, C]; what lies outside is clipped."""
    return on_host(to_pixels(x))


def on_host(pixels: Tensor) -> UInt8Array:
    """Pixels of any device as an array."""
    return pixels.contiguous().cpu().numpy()


def to_pixels(x: Tensor) -> Tensor:
    """The same where x is, seen as [B, H, W, C]."""
    return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
