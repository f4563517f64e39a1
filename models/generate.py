"""Images from seeds: the prior, the label and the path of each image are its own, whatever shares its batch.

Every batch is cut into sizes in which the network was seen to give the same bits (`models.shapes`), and the last is
filled up.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.checkpoint import Model
from models.kernel import prior
from models.sampler import heun, noise_levels, solve
from models.seeds import drawn_label
from models.shapes import Shapes, filled

UInt8Array = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]


@dataclass(frozen=True)
class Generator:
    """A model with the batch sizes in which it is run."""

    model: Model
    shapes: Shapes

    @torch.inference_mode()
    def images(
        self,
        seeds: Sequence[int],
        labels: Sequence[int],
        steps: int,
        on_evaluation: Callable[[], object] = lambda: None,
    ) -> UInt8Array:
        """One uint8 image [B, H, W, C] per seed; `labels` is empty for a model without classes.

        Calls on_evaluation after every network evaluation of the batch; what that raises ends the sampling.
        Raises FloatingPointError when an image comes out with values that are not finite.
        """
        card, device = self.model.card, self.model.device
        pieces = self.shapes.cut(len(seeds))
        draws = np.stack([prior(seed, card.shape, card.D, card.sigma_max) for seed in seeds])
        x = filled(torch.from_numpy(draws).to(device), sum(pieces)).contiguous(memory_format=torch.channels_last)
        one_hot = filled(torch.eye(len(card.classes), device=device)[list(labels)], len(x)) if card.classes else None
        sigmas = noise_levels(steps, card.sigma_min, card.sigma_max)
        x = solve(heun(x, sigmas), lambda x, sigma: self._run(pieces, x, sigma, one_hot), on_evaluation)[: len(seeds)]
        if not x.isfinite().all():
            raise FloatingPointError(f"{card.name} gave values that are not finite")
        return to_uint8(x)

    def denoise(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """The denoised estimates [B, C, H, W] for any B, the same bits for an image in any company."""
        pieces = self.shapes.cut(len(x))
        own = None if labels is None else filled(labels, sum(pieces))
        return self._run(pieces, filled(x, sum(pieces)), filled(sigma, sum(pieces)), own)[: len(x)]

    def _run(self, pieces: list[int], x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        """The network's answer to a batch that its pieces fill, piece by piece."""
        batch = [x, sigma] if labels is None else [x, sigma, labels]
        parts = zip(*(rows.split(pieces) for rows in batch), strict=True)  # type: ignore[no-untyped-call]
        return torch.cat([self.model.network(*part) for part in parts])


def chosen_labels(seeds: Sequence[int], labels: Sequence[int | None], classes: int) -> list[int]:
    """The class index of every image: the one asked for, else one drawn from its seed; empty without classes."""
    if not classes:
        return []
    return [drawn_label(seed, classes) if label is None else label for seed, label in zip(seeds, labels, strict=True)]


def to_uint8(x: Tensor) -> UInt8Array:
    """Pixels [B, C, H, W] in [-1, 1] as uint8 [B, H, W, C]; what lies outside is clipped."""
    pixels = ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()
