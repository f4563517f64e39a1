"""The perfect network of a finite data set: for tests, for demonstrations, and as a nearly instant model."""

import math

import torch
from torch import Tensor, nn

from models.layers import steady


class ExactDenoiser(nn.Module):
    """E[y | x, sigma] over a finite data set, for any D: the minimiser of the PFGM++ objective.

    The posterior weights are (||x - y_i||^2 + r^2)^(-(N+D)/2), r = sigma sqrt(D), or exp(-||x - y_i||^2 / 2 sigma^2)
    for D = infinity (Xu et al., 2023, proposition 3.1), computed in logs. Data [M, C, H, W]; their classes [M].
    """

    def __init__(self, shape: tuple[int, int, int], examples: int, D: float):
        super().__init__()
        self.D = D
        self.register_buffer("data", torch.zeros(examples, *shape))
        self.register_buffer("data_class", torch.zeros(examples, dtype=torch.int64))
        self.data: Tensor
        self.data_class: Tensor

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """The posterior mean [B, C, H, W] at x, sigma [B]; labels [B, classes] one-hot narrow it to that class, and
        zeros to none.
        """
        data = self.data.to(x.dtype)
        weights = log_weights(x, data, sigma.to(x.dtype), self.D)
        if labels is not None:
            others = (labels[:, self.data_class] == 0) & labels.any(1, keepdim=True)
            weights = weights.masked_fill(others, -math.inf)
        return (steady(weights.softmax(1)) @ data.flatten(1))[: len(x)].view_as(x)


def log_weights(x: Tensor, data: Tensor, sigma: Tensor, D: float) -> Tensor:
    """The logarithms, but for a constant, of the posterior weights [B, M] of data [M, ...] behind x [B, ...] at sigma.

    Finite for any D and sigma [B], with r = sigma sqrt(D).
    """
    # Not torch.cdist: its fast path loses the digits that matter at small sigma.
    squared = (x.flatten(1)[:, None] - data.flatten(1)).square().sum(-1)
    variance = sigma[:, None].square()
    if math.isinf(D):
        return -squared / (2 * variance)
    return -(data[0].numel() + D) / 2 * torch.log1p(squared / (variance * D))
