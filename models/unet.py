"""DDPM++ and NCSN++ (Song et al., 2021), and what ADM shares with them.

Parameter names and shapes are those of the published checkpoints, so that their tensors load as they are.
"""

import math

import torch
from torch import Tensor, nn

from models.card import ADMOptions, UNetOptions
from models.layers import Block, Conv, Linear, Make, Resampling, group_norm, silu, sin_cos, steady


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


class UNet(nn.Module):
    """What the families share: a way down, a way up that takes what the former left behind, and their names."""

    enc: nn.ModuleDict
    dec: nn.ModuleDict

    def __init__(self, make: Make, emb_channels: int):
        super().__init__()
        self.make = make
        self.emb_channels = emb_channels
        self.dtype = torch.float32  # of what lies between the first convolution and the last

    def _block(
        self, in_channels: int, out_channels: int, resampling: Resampling | None = None, attention: bool = False
    ) -> Block:
        return Block(in_channels, out_channels, self.emb_channels, self.make, resampling, attention)

    def _encoder(
        self, options: UNetOptions | ADMOptions, resolution: int, channels: int, width: int, is_residual: bool = False
    ) -> tuple[nn.ModuleDict, list[int]]:
        """The layers of the way down by name, from a first one of that width, and the widths they leave behind.

        If it is residual, each resolution also gets the image itself, halved.
        """
        enc: dict[str, nn.Module] = {f"{resolution}x{resolution}_conv": Conv(channels, width, 3)}
        skips = [width]
        aux_width = channels
        for level, mult in enumerate(options.channel_mult):
            res, out = resolution >> level, options.model_channels * mult
            if level > 0:
                enc[f"{res}x{res}_down"] = self._block(width, width, "down")
                skips.append(width)
                if is_residual:
                    taps = self.make.resample_filter
                    enc[f"{res}x{res}_aux_residual"] = Conv(aux_width, width, 3, "down", taps, filter_last=True)
                    aux_width = width
            for index in range(options.num_blocks):
                enc[f"{res}x{res}_block{index}"] = self._block(width, out, attention=res in options.attn_resolutions)
                width = out
                skips.append(width)
        return nn.ModuleDict(enc), skips

    def _decoder(
        self, options: UNetOptions | ADMOptions, resolution: int, skips: list[int], attends_once: bool
    ) -> tuple[dict[str, nn.Module], int]:
        """The layers of the way up by name, and the last width; every `block` also takes the newest width left.

        Where there is self-attention, all blocks have it, or if it `attends_once` the last one.
        """
        dec: dict[str, nn.Module] = {}
        width = skips[-1]
        for level, mult in reversed(list(enumerate(options.channel_mult))):
            res, out = resolution >> level, options.model_channels * mult
            if level == len(options.channel_mult) - 1:
                dec[f"{res}x{res}_in0"] = self._block(width, width, attention=True)
                dec[f"{res}x{res}_in1"] = self._block(width, width)
            else:
                dec[f"{res}x{res}_up"] = self._block(width, width, "up")
            for index in range(options.num_blocks + 1):
                attention = res in options.attn_resolutions and (index == options.num_blocks or not attends_once)
                dec[f"{res}x{res}_block{index}"] = self._block(width + skips.pop(), out, attention=attention)
                width = out
        return dec, width

    def init_weights(self) -> None:
        """Draw the weights of an untrained network."""
        raise NotImplementedError


class SongUNet(UNet):
    """The raw network F_theta(x, c_noise, labels, augment_labels): DDPM++ or NCSN++, as the options say."""

    def __init__(self, options: UNetOptions, resolution: int, channels: int, out_channels: int, classes: int):
        width = options.model_channels
        super().__init__(Make(options.dropout, options.resample_filter), 4 * width)
        noise_channels = width * options.channel_mult_noise
        features = FourierFeatures if options.embedding == "fourier" else PositionalFeatures
        self.map_noise = features(noise_channels)
        self.map_label = Linear(classes, noise_channels) if classes else None
        self.map_augment = Linear(options.augment_dim, noise_channels, bias=False) if options.augment_dim else None
        self.map_layer0 = Linear(noise_channels, self.emb_channels)
        self.map_layer1 = Linear(self.emb_channels, self.emb_channels)
        self.enc, skips = self._encoder(options, resolution, channels, width, options.encoder == "residual")
        dec, width = self._decoder(options, resolution, skips, attends_once=True)
        dec[f"{resolution}x{resolution}_aux_norm"] = group_norm(width, self.make.eps)
        dec[f"{resolution}x{resolution}_aux_conv"] = Conv(width, out_channels, 3)
        self.dec = nn.ModuleDict(dec)

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
