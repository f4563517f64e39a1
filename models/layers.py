"""The layers of which the U-Nets are made.

On a CPU an image's bits do not depend on how many share its batch, as far as this module can see to it: where a
library picks its kernel by the size of the batch, it is asked for the same one each time. `models.shapes` checks.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, mkldnn_convolution, nn

Resampling = Literal["up", "down"]

STEADY_ROWS = 8
"""From so many rows on, a row of a matrix product has the same bits in any company (MKL: 1 to 3 and 7 differ)."""


@dataclass(frozen=True)
class Filter:
    """A smoothing filter by which images double or halve their resolution; its kernel is a buffer of the layer."""

    taps: tuple[int, ...]

    @property
    def margin(self) -> int:
        return (len(self.taps) - 1) // 2

    @property
    def is_nearest(self) -> bool:
        return len(self.taps) == 2 and len(set(self.taps)) == 1

    def kernel(self) -> Tensor:
        """Its weights [1, 1, k, k], which sum to 1."""
        total = sum(self.taps) ** 2
        return torch.tensor([[[[a * b / total for b in self.taps] for a in self.taps]]])

    def double(self, x: Tensor, kernel: Tensor) -> Tensor:
        """Twice the resolution.

        The filter [1, 1] repeats pixels: 6 times quicker than as a convolution (32x4x4). [1, 3, 3, 1] interpolates
        linearly between them, with zeros around: as a convolution in bfloat16 it takes 10 to 60 times as long.
        """
        if self.is_nearest:
            return F.interpolate(x, scale_factor=2, mode="nearest")
        if self.taps == (1, 3, 3, 1):
            return F.interpolate(F.pad(x, (1, 1, 1, 1)), scale_factor=2, mode="bilinear")[..., 2:-2, 2:-2]
        weight = kernel.mul(4).expand(x.shape[1], -1, -1, -1)
        return F.conv_transpose2d(x, weight, groups=x.shape[1], stride=2, padding=self.margin)

    def halve(self, x: Tensor, kernel: Tensor) -> Tensor:
        """Half the resolution. The filter [1, 1] takes means: 2 to 6 times quicker than as a convolution (32x8x8)."""
        return F.avg_pool2d(x, 2) if self.is_nearest else self.smooth(x, kernel, self.margin)

    def smooth(self, x: Tensor, kernel: Tensor, padding: int) -> Tensor:
        """Half the resolution, by a convolution so padded."""
        weight = kernel.expand(x.shape[1], -1, -1, -1)
        return F.conv2d(x, weight, groups=x.shape[1], stride=2, padding=padding)


class Resample(nn.Module):
    """Doubles or halves the resolution, and nothing else."""

    def __init__(self, resampling: Resampling, taps: tuple[int, ...]):
        super().__init__()
        self.act = Filter(taps).double if resampling == "up" else Filter(taps).halve
        self.register_buffer("resample_filter", Filter(taps).kernel())
        self.resample_filter: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H', W'], H' = 2H or H/2."""
        return self.act(x, self.resample_filter)


class Conv(nn.Conv2d):
    """A convolution that may halve or double the resolution with a smoothing filter on its way.

    The filter comes before the convolution; `filter_last` (NCSN++'s residual branch) puts it after, both padded as one.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        resampling: Resampling | None = None,
        resample_filter: tuple[int, ...] = (1, 1),
        filter_last: bool = False,
    ):
        own = Filter(resample_filter)
        margin = own.margin if filter_last else 0
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2 + margin)
        self.filter = own
        self.resampling = resampling
        self.filter_last = filter_last
        if resampling:
            self.register_buffer("resample_filter", self.filter.kernel())
            self.resample_filter: Tensor

    def reset_parameters(self) -> None:
        """Draws nothing: `init_weights` does. Arithmetic on the meta device costs two seconds of imports at first."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] -> [B, out, H', W'], H' = H, 2H or H/2."""
        if self.filter_last:
            return self.filter.smooth(self._convolve(x), self.resample_filter, padding=0)
        if self.resampling == "down":
            return self._convolve(self.filter.halve(x, self.resample_filter))
        if self.resampling == "up" and self.filter.is_nearest and self.kernel_size == (1, 1):
            # Commutes with repetition, at a quarter of the work.
            return self.filter.double(self._convolve(x), self.resample_filter)
        return self._convolve(self.filter.double(x, self.resample_filter) if self.resampling else x)

    def _convolve(self, x: Tensor) -> Tensor:
        """The convolution alone, by kernels whose bits for an image are the same in any batch, at least on a CPU."""
        if self.kernel_size == (1, 1):
            return F.linear(x.movedim(1, -1), self.weight.flatten(1), self.bias).movedim(-1, 1)
        if len(x) == 1 and x.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling():
            # A single small image would be convolved by another library, which takes twice as long.
            return mkldnn_convolution(x, self.weight, self.bias, self.padding, (1, 1), (1, 1), 1)  # type: ignore[arg-type]
        return super().forward(x)


def silu(x: Tensor) -> Tensor:
    """x sigmoid(x), in place: of a tensor that nobody else needs."""
    return F.silu(x, inplace=True)


class Linear(nn.Linear):
    """A linear layer whose weights are left to `init_weights`, as those of Conv are."""

    def reset_parameters(self) -> None:
        """Draws nothing."""


def steady(rows: Tensor) -> Tensor:
    """Rows [B, ...] filled up with zeros to STEADY_ROWS, where there are fewer; a compiled network promises no bits."""
    missing = 0 if torch.compiler.is_compiling() else STEADY_ROWS - len(rows)
    return F.pad(rows, (0, 0) * (rows.dim() - 1) + (0, missing)) if missing > 0 else rows


def group_norm(channels: int, eps: float) -> nn.GroupNorm:
    """Group normalisation in at most 32 groups of at least 4 channels."""
    return nn.GroupNorm(min(32, channels // 4), channels, eps=eps)


@dataclass(frozen=True)
class Make:
    """How the residual blocks of a family of networks are made."""

    dropout: float = 0.0
    resample_filter: tuple[int, ...] = (1, 1)
    adaptive_scale: bool = False
    """Whether the embedding scales the activations as well as it shifts them."""
    skip_scale: float = math.sqrt(0.5)
    """By which each sum of a branch and what skips it is multiplied."""
    eps: float = 1e-6
    """Of the group norms."""
    head_channels: int = 0
    """Of each head of self-attention; 0 for a single head."""
    projected_skip: bool = True
    """Whether what skips a block that changes the resolution alone goes through a convolution."""


class Block(nn.Module):
    """A residual block, steered by the embedding, with self-attention where asked."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        make: Make,
        resampling: Resampling | None = None,
        attention: bool = False,
    ):
        super().__init__()
        self.make = make
        self.attention = attention
        self.heads = out_channels // make.head_channels if make.head_channels else 1
        resample = (resampling, make.resample_filter)
        self.norm0 = group_norm(in_channels, make.eps)
        self.conv0 = Conv(in_channels, out_channels, 3, *resample)
        self.affine = Linear(emb_channels, out_channels * (2 if make.adaptive_scale else 1))
        self.norm1 = group_norm(out_channels, make.eps)
        self.conv1 = Conv(out_channels, out_channels, 3)
        self.skip: nn.Module = nn.Identity()
        if in_channels != out_channels or (resampling and make.projected_skip):
            self.skip = Conv(in_channels, out_channels, 1, *resample)
        elif resampling:
            self.skip = Resample(resampling, make.resample_filter)
        if attention:
            self.norm2 = group_norm(out_channels, make.eps)
            self.qkv = Conv(out_channels, 3 * out_channels, 1)
            self.proj = Conv(out_channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """[B, in, H, W] and the embedding, of at least B rows [>= B, E] -> [B, out, H', W']."""
        h: Tensor = self.conv0(silu(self.norm0(x)))
        h = silu(self._steer(h, self.affine(emb)[: len(x), :, None, None]))
        if self.training:
            h = F.dropout(h, self.make.dropout)
        h = (self.conv1(h) + self.skip(x)) * self.make.skip_scale
        if self.attention:
            h = (h + self._attend(h)) * self.make.skip_scale
        return h

    def _steer(self, h: Tensor, affine: Tensor) -> Tensor:
        """Normalised activations [B, out, H, W], shifted, and scaled, by the embedding [B, out or 2 out, 1, 1]."""
        if not self.make.adaptive_scale:
            return self.norm1(h + affine)  # type: ignore[no-any-return]
        scale, shift = affine.chunk(2, dim=1)
        return torch.addcmul(shift, self.norm1(h), scale + 1)

    def _attend(self, x: Tensor) -> Tensor:
        """Self-attention over the H*W places; head by head, the channels of q, k and v interleave."""
        batch, channels, height, width = x.shape
        split = (batch, height * width, self.heads, channels // self.heads, 3)
        places: Tensor = self.qkv(self.norm2(x)).movedim(1, -1).reshape(split)
        # Contiguous and with an axis for its heads, PyTorch's fused kernel takes it.
        q, k, v = places.permute(4, 0, 2, 1, 3).contiguous()
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, height, width, channels)
        return self.proj(attended.movedim(-1, 1))  # type: ignore[no-any-return]


def sin_cos(c_noise: Tensor, freqs: Tensor) -> Tensor:
    """[sin, cos] of every product, [B] x [F] -> [B, 2F]."""
    angles = c_noise[:, None] * freqs
    return torch.cat([angles.sin(), angles.cos()], dim=1)
