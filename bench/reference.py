"""What the engine is measured against: the sampler as research code has it, on the same network, weights and seeds.

float32, channels first, the state in float64, one fixed batch from the prior to the end.
"""

import copy
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from models.card import Card
from models.checkpoint import Model
from models.generate import UInt8Array, chosen_labels, to_uint8
from models.kernel import prior
from models.levels import noise_levels
from models.precond import Denoiser


class Reference:
    """A network sampled plainly."""

    def __init__(self, network: nn.Module, card: Card, device: torch.device):
        self.network, self.card, self.device = network, card, device

    @classmethod
    def of(cls, model: Model) -> "Reference":
        """The reference for a loaded model, with tensors of its own, channels first."""
        network = copy.deepcopy(model.network).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        return cls(network, model.card, model.device)

    @torch.inference_mode()
    def images(self, seeds: Sequence[int], labels: Sequence[int | None], steps: int) -> UInt8Array:
        """One uint8 image [B, H, W, C] per seed, by the 2nd-order sampler (EDM, algorithm 1)."""
        card = self.card
        latents = np.stack([prior(seed, card.shape, card.D, card.sigma_max) for seed in seeds])
        x = torch.from_numpy(latents).to(self.device)
        chosen = chosen_labels(seeds, labels, len(card.classes))
        one_hot = torch.eye(len(card.classes), device=self.device)[chosen] if card.classes else None
        levels = noise_levels(steps, card.sigma_min, card.sigma_max)
        for sigma, sigma_next in pairwise(levels):
            slope = (x - self._denoised(x, sigma, one_hot)) / sigma
            x_next = x + (sigma_next - sigma) * slope
            if sigma_next > 0:
                slope_next = (x_next - self._denoised(x_next, sigma_next, one_hot)) / sigma_next
                x_next = x + (sigma_next - sigma) * (slope + slope_next) / 2
            x = x_next
        return to_uint8(x)

    def _denoised(self, x: Tensor, sigma: float, one_hot: Tensor | None) -> Tensor:
        level = torch.full((len(x),), sigma, dtype=torch.float64, device=self.device)
        return _plain(self.network, x, level, one_hot).to(torch.float64)


def _plain(network: nn.Module, x: Tensor, sigma: Tensor, one_hot: Tensor | None) -> Tensor:
    """The denoiser, its preconditioning (EDM, table 1) without a change of layout."""
    if not isinstance(network, Denoiser):
        return network(x, sigma, one_hot)  # type: ignore[no-any-return]
    x = x.to(torch.float32)
    c_skip, c_out, c_in, c_noise = network.coefficients(sigma.to(torch.float32))
    return c_skip * x + c_out * network.model(c_in * x, c_noise, one_hot)  # type: ignore[no-any-return]
