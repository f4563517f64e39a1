"""Windows: a part of the frame, or more than it, of a model that was trained on patches."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from models.checkpoint import Model
from models.sampling import Window


class Windowed(nn.Module):
    """A network with coordinates that is asked for one window alone."""

    def __init__(self, network: nn.Module, window: Window):
        super().__init__()
        self.network = network
        self.register_buffer("corner", torch.tensor([[window.x, window.y]]), persistent=False)
        self.corner: Tensor

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """The denoised estimate [B, C, height, width] of the window."""
        denoised: Tensor = self.network(x, sigma, labels, corner=self.corner.expand(len(x), 2))
        return denoised


def windowed(model: Model, window: Window) -> Model:
    """The model of a window, which shares the tensors."""
    return replace(model, network=Windowed(model.network, window).to(model.device), window=window)
