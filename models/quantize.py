"""Weights rounded to few bits, to see how robust a model is (Xu et al., 2023, section 5)."""

from typing import TypeVar

import torch
from torch import Tensor, nn

from models.fast import copied
from models.sampling import Quantized

LEFT_FLOAT = ("norm", "affine", "map", "32")
"""The official code leaves out tensors with these words in their names: with "32", every layer at 32x32 pixels."""

N = TypeVar("N", bound=nn.Module)


def quantized(network: N, bits: int, which: Quantized) -> N:
    """The network with its weights rounded to 2^bits levels each, all of them or those of the official code.

    Biases, and what normalises, stay as they are: they are of one axis. Other tensors are shared.
    """
    chosen = [
        weight
        for name, weight in network.named_parameters()
        if weight.dim() > 1 and (which == "all" or not any(word in name for word in LEFT_FLOAT))
    ]
    return copied(network, {weight: rounded_weight(weight, bits) for weight in chosen})


@torch.no_grad()
def rounded_weight(weight: Tensor, bits: int) -> Tensor:
    """s (q - z), q = clip(round(w / s + z)) in 0..2^bits - 1, for s = (max - min) / (2^bits - 1), z = round(-min / s).

    A weight of one value alone stays as it is.
    """
    low, high = weight.min(), weight.max()
    if low == high:
        return weight
    scale = (high - low) / (2**bits - 1)
    zero = (-low / scale).round()
    levels: Tensor = (weight / scale + zero).round().clamp(0, 2**bits - 1)
    rounded: Tensor = scale * (levels - zero)
    return rounded
