"""DDPM++ and NCSN++ (Song et al., 2021) with EDM's preconditioning (Karras et al., 2022, table 1).

Parameter names and shapes are those of the published checkpoints, so that their tensors load as they are.

On a CPU an image's bits do not depend on how many share its batch, as far as this module can see to it: where a
library picks its kernel by the size of the batch, it is asked for the same one each time. `models.shapes` checks.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, mkldnn_convolution, nn

from models.card import UNetOptions

Resampling = Literal["up", "down"]

STEADY_ROWS = 8
"""From so many rows on, a row of a matrix product has the same bits in any company (MKL: 1 to 3 and 7 differ)."""


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
        margin = (len(resample_filter) - 1) // 2
        super().__init__(
            in_channels, out_channels, kernel_size, padding=kernel_size // 2 + (margin if filter_last else 0)
        )
        self.resampling = resampling
        self.filter_last = filter_last
        self.margin = margin
        self.nearest = len(resample_filter) == 2 and len(set(resample_filter)) == 1
        self.linear = resample_filter == (1, 3, 3, 1)
        if resampling:
            total = sum(resample_filter) ** 2
            kernel = [[a * b / total for b in resample_filter] for a in resample_filter]
            self.register_buffer("resample_filter", torch.tensor([[kernel]]))
            self.resample_filter: Tensor

    def reset_parameters(self) -> None:
        """Draws nothing: `init_weights` does. Arithmetic on the meta device costs two seconds of imports at first."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] -> [B, out, H', W'], H' = H, 2H or H/2."""
        if self.filter_last:
            return self._smooth(self._convolve(x), padding=0)
        if self.resampling == "down":
            return self._convolve(self._halve(x))
        if self.resampling == "up" and self.nearest and self.kernel_size == (1, 1):
            return self._double(self._convolve(x))  # commutes with repetition, at a quarter of the work
        return self._convolve(self._double(x) if self.resampling == "up" else x)

    def _convolve(self, x: Tensor) -> Tensor:
        """The convolution alone, by kernels whose bits for an image are the same in any batch, at least on a CPU."""
        if self.kernel_size == (1, 1):
            return F.linear(x.movedim(1, -1), self.weight.flatten(1), self.bias).movedim(-1, 1)
        if len(x) == 1 and x.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling():
            # A single small image would be convolved by another library, which takes twice as long.
            return mkldnn_convolution(x, self.weight, self.bias, self.padding, (1, 1), (1, 1), 1)  # type: ignore[arg-type]
        return super().forward(x)

    def _double(self, x: Tensor) -> Tensor:
        """Twice the resolution.

        The filter [1, 1] repeats pixels: 6 times quicker than as a convolution (32x4x4). [1, 3, 3, 1] interpolates
        linearly between them, with zeros around: as a convolution in bfloat16 it takes 10 to 60 times as long.
        """
        if self.nearest:
            return F.interpolate(x, scale_factor=2, mode="nearest")
        if self.linear:
            return F.interpolate(F.pad(x, (1, 1, 1, 1)), scale_factor=2, mode="bilinear")[..., 2:-2, 2:-2]
        kernel = self.resample_filter.mul(4).expand(x.shape[1], -1, -1, -1)
        return F.conv_transpose2d(x, kernel, groups=x.shape[1], stride=2, padding=self.margin)

    def _halve(self, x: Tensor) -> Tensor:
        """Half the resolution. The filter [1, 1] takes means: 2 to 6 times quicker than as a convolution (32x8x8)."""
        return F.avg_pool2d(x, 2) if self.nearest else self._smooth(x, self.margin)

    def _smooth(self, x: Tensor, padding: int) -> Tensor:
        kernel = self.resample_filter.expand(x.shape[1], -1, -1, -1)
        return F.conv2d(x, kernel, groups=x.shape[1], stride=2, padding=padding)


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


def group_norm(channels: int) -> nn.GroupNorm:
    """Group normalisation in at most 32 groups of at least 4 channels."""
    return nn.GroupNorm(min(32, channels // 4), channels, eps=1e-6)


class Block(nn.Module):
    """A residual block, shifted by the embedding, with self-attention where asked; scaled by 1/sqrt 2."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        options: UNetOptions,
        resampling: Resampling | None = None,
        attention: bool = False,
    ):
        super().__init__()
        self.out_channels = out_channels
        self.dropout = options.dropout
        self.attention = attention
        resample = (resampling, options.resample_filter)
        self.norm0 = group_norm(in_channels)
        self.conv0 = Conv(in_channels, out_channels, 3, *resample)
        self.affine = Linear(emb_channels, out_channels)
        self.norm1 = group_norm(out_channels)
        self.conv1 = Conv(out_channels, out_channels, 3)
        if resampling or in_channels != out_channels:
            self.skip: nn.Module = Conv(in_channels, out_channels, 1, *resample)
        else:
            self.skip = nn.Identity()
        if attention:
            self.norm2 = group_norm(out_channels)
            self.qkv = Conv(out_channels, 3 * out_channels, 1)
            self.proj = Conv(out_channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """[B, in, H, W] and the embedding, of at least B rows [>= B, E] -> [B, out, H', W']."""
        h: Tensor = self.conv0(silu(self.norm0(x)))
        h = silu(self.norm1(h + self.affine(emb)[: len(x), :, None, None]))
        if self.training:
            h = F.dropout(h, self.dropout)
        h = (self.conv1(h) + self.skip(x)) * math.sqrt(0.5)
        if self.attention:
            h = (h + self._attend(h)) * math.sqrt(0.5)
        return h

    def _attend(self, x: Tensor) -> Tensor:
        """Self-attention of one head over the H*W places; the channels of q, k and v interleave."""
        batch, channels, height, width = x.shape
        places: Tensor = self.qkv(self.norm2(x)).movedim(1, -1).reshape(batch, 1, height * width, channels, 3)
        # With an axis for its one head PyTorch's fused kernel takes it; contiguous, for that needs it.
        q, k, v = places.movedim(-1, 0).contiguous()
        attended = F.scaled_dot_product_attention(q, k, v).view(batch, height, width, channels)
        return self.proj(attended.movedim(-1, 1))  # type: ignore[no-any-return]


class FourierFeatures(nn.Module):
    """sin and cos of the noise level at random frequencies [B] -> [B, channels] (NCSN++)."""

    def __init__(self, channels: int, scale: float = 16.0):
        super().__init__()
        self.scale = scale
        self.register_buffer("freqs", torch.zeros(channels // 2))
        self.freqs: Tensor

    def forward(self, c_noise: Tensor) -> Tensor:
        return sin_cos(c_noise, 2 * math.pi * self.freqs)


class PositionalFeatures(nn.Module):
    """sin and cos of the noise level at frequencies from 1 to 1/10000 [B] -> [B, channels] (DDPM++)."""

    def __init__(self, channels: int):
        super().__init__()
        self.frequencies = channels // 2

    def forward(self, c_noise: Tensor) -> Tensor:
        exponents = torch.arange(self.frequencies, dtype=torch.float32, device=c_noise.device) / (self.frequencies - 1)
        return sin_cos(c_noise, 1e-4**exponents)


def sin_cos(c_noise: Tensor, freqs: Tensor) -> Tensor:
    """[sin, cos] of every product, [B] x [F] -> [B, 2F]."""
    angles = c_noise[:, None] * freqs
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class SongUNet(nn.Module):
    """The raw network F_theta(x, c_noise, labels, augment_labels): DDPM++ or NCSN++, as the options say."""

    def __init__(self, options: UNetOptions, resolution: int, channels: int, classes: int):
        super().__init__()
        width = options.model_channels
        noise_channels = width * options.channel_mult_noise
        self.emb_channels = 4 * width
        self.dtype = torch.float32  # of what lies between the first convolution and the last
        features = FourierFeatures if options.embedding == "fourier" else PositionalFeatures
        self.map_noise = features(noise_channels)
        self.map_label = Linear(classes, noise_channels) if classes else None
        self.map_augment = Linear(options.augment_dim, noise_channels, bias=False) if options.augment_dim else None
        self.map_layer0 = Linear(noise_channels, self.emb_channels)
        self.map_layer1 = Linear(self.emb_channels, self.emb_channels)
        self.enc, skips = self._encoder(options, resolution, channels)
        self.dec = self._decoder(options, resolution, channels, skips)

    def _encoder(self, options: UNetOptions, resolution: int, channels: int) -> tuple[nn.ModuleDict, list[int]]:
        """The layers of the way down by name, and the widths they leave behind for the way up."""
        width = options.model_channels
        enc: dict[str, nn.Module] = {f"{resolution}x{resolution}_conv": Conv(channels, width, 3)}
        skips = [width]
        aux_width = channels
        for level, mult in enumerate(options.channel_mult):
            res = resolution >> level
            if level > 0:
                enc[f"{res}x{res}_down"] = Block(width, width, self.emb_channels, options, "down")
                skips.append(width)
                if options.encoder == "residual":
                    enc[f"{res}x{res}_aux_residual"] = Conv(
                        aux_width, width, 3, "down", options.resample_filter, filter_last=True
                    )
                    aux_width = width
            for index in range(options.num_blocks):
                attention = res in options.attn_resolutions
                out = options.model_channels * mult
                enc[f"{res}x{res}_block{index}"] = Block(width, out, self.emb_channels, options, attention=attention)
                width = out
                skips.append(width)
        return nn.ModuleDict(enc), skips

    def _decoder(self, options: UNetOptions, resolution: int, channels: int, skips: list[int]) -> nn.ModuleDict:
        """The layers of the way up by name; every `block` also takes the newest width left by the encoder."""
        dec: dict[str, nn.Module] = {}
        width = skips[-1]
        for level, mult in reversed(list(enumerate(options.channel_mult))):
            res = resolution >> level
            if level == len(options.channel_mult) - 1:
                dec[f"{res}x{res}_in0"] = Block(width, width, self.emb_channels, options, attention=True)
                dec[f"{res}x{res}_in1"] = Block(width, width, self.emb_channels, options)
            else:
                dec[f"{res}x{res}_up"] = Block(width, width, self.emb_channels, options, "up")
            for index in range(options.num_blocks + 1):
                attention = index == options.num_blocks and res in options.attn_resolutions
                out = options.model_channels * mult
                dec[f"{res}x{res}_block{index}"] = Block(
                    width + skips.pop(), out, self.emb_channels, options, attention=attention
                )
                width = out
        dec[f"{resolution}x{resolution}_aux_norm"] = group_norm(width)
        dec[f"{resolution}x{resolution}_aux_conv"] = Conv(width, channels, 3)
        return nn.ModuleDict(dec)

    def init_weights(self) -> None:
        """Draw the weights of an untrained network: Xavier uniform, last layers near zero (EDM, appendix F)."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                near_zero = name.endswith(("conv1", "proj", "aux_conv"))
                gain = 1e-5 if near_zero else math.sqrt(0.2) if name.endswith("qkv") else 1.0
                nn.init.xavier_uniform_(module.weight, gain)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, FourierFeatures):
                nn.init.normal_(module.freqs, std=module.scale)

    def embed(self, c_noise: Tensor, labels: Tensor | None, augment_labels: Tensor | None) -> Tensor:
        """The conditioning vector [B, E] of noise level [B], one-hot labels [B, classes] and augmentation [B, A]."""
        emb = self.map_noise(c_noise)
        if self.map_label is not None and labels is not None:
            emb = emb + self.map_label(labels * math.sqrt(self.map_label.in_features))
        elif self.map_label is not None:
            emb = emb + self.map_label.bias
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels)
        return silu(self.map_layer1(silu(self.map_layer0(emb))))

    def forward(
        self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None, augment_labels: Tensor | None = None
    ) -> Tensor:
        """[B, C, H, W] at noise level [B] -> [B, C, H, W]; absent labels count as all zero."""
        given = (None if rows is None else steady(rows) for rows in (labels, augment_labels))
        emb = self.embed(steady(c_noise), *given).to(self.dtype)
        aux = x.to(self.dtype)
        skips: list[Tensor] = []
        for name, layer in self.enc.items():
            if name.endswith("aux_residual"):
                aux = (layer(aux) + x) * math.sqrt(0.5)
                x = skips[-1] = aux
            else:
                x = layer(x, emb) if isinstance(layer, Block) else layer(x).to(self.dtype)
                skips.append(x)
        for name, layer in self.dec.items():
            if name.endswith("aux_norm"):
                x = silu(layer(x.to(torch.float32)))
            elif name.endswith("aux_conv"):
                x = layer(x)
            else:
                x = torch.cat([x, skips.pop()], dim=1) if "_block" in name else x
                x = layer(x, emb)
        return x


class EDMPrecond(nn.Module):
    """The denoiser D_theta(x, sigma) = c_skip x + c_out F_theta(c_in x, c_noise) (EDM, eq. 7 and table 1)."""

    def __init__(self, options: UNetOptions, resolution: int, channels: int, classes: int):
        super().__init__()
        self.sigma_data = options.sigma_data
        self.model = SongUNet(options, resolution, channels, classes)

    def forward(
        self, x: Tensor, sigma: Tensor, labels: Tensor | None = None, augment_labels: Tensor | None = None
    ) -> Tensor:
        """The denoised estimate [B, C, H, W] in float32 at x and sigma [B], each image at its own noise level."""
        x, s = x.to(torch.float32, memory_format=torch.channels_last), self.sigma_data
        sigma = sigma.to(torch.float32)
        level = sigma[:, None, None, None]
        variance = level.square() + s**2
        c_skip, c_out, c_in = s**2 / variance, level * s * variance.rsqrt(), variance.rsqrt()
        F_x = self.model(c_in * x, sigma.log() / 4, labels, augment_labels)
        return c_skip * x + c_out * F_x.to(torch.float32)  # type: ignore[no-any-return]
