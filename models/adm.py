"""ADM (Dhariwal and Nichol, 2021), as configured in EDM (Karras et al., 2022, appendix F).

Parameter names and shapes are those of the published checkpoints, so that their tensors load as they are.
"""

import torch
from torch import Tensor, nn

from models.card import ADMOptions
from models.layers import Block, Conv, Linear, Make, group_norm, silu, sin_cos, steady
from models.unet import UNet


class CosSinFeatures(nn.Module):
    """cos and sin of the noise level at frequencies from 1 down to, but not, 1/10000 [B] -> [B, channels]."""

    def __init__(self, channels: int):
        super().__init__()
        self.frequencies = channels // 2

    def forward(self, c_noise: Tensor) -> Tensor:
        exponents = torch.arange(self.frequencies, dtype=torch.float32, device=c_noise.device) / self.frequencies
        return sin_cos(c_noise, 1e-4**exponents).roll(self.frequencies, 1)


class ADM(UNet):
    """The raw network F_theta(x, c_noise, labels, augment_labels)."""

    def __init__(self, options: ADMOptions, resolution: int, channels: int, out_channels: int, classes: int):
        make = Make(
            options.dropout,
            adaptive_scale=True,
            skip_scale=1.0,
            eps=1e-5,
            head_channels=options.HEAD_CHANNELS,
            projected_skip=False,
        )
        width = options.model_channels
        super().__init__(make, width * options.channel_mult_emb)
        self.map_noise = CosSinFeatures(width)
        self.map_augment = Linear(options.augment_dim, width, bias=False) if options.augment_dim else None
        self.map_layer0 = Linear(width, self.emb_channels)
        self.map_layer1 = Linear(self.emb_channels, self.emb_channels)
        self.map_label = Linear(classes, self.emb_channels, bias=False) if classes else None
        self.enc, skips = self._encoder(options, resolution, channels, width * options.channel_mult[0])
        dec, width = self._decoder(options, resolution, skips, attends_once=False)
        self.dec = nn.ModuleDict(dec)
        self.out_norm = group_norm(width, make.eps)
        self.out_conv = Conv(width, out_channels, 3)

    def init_weights(self) -> None:
        """Draw the weights of an untrained network: uniform by the number of inputs, last layers zero."""
        for name, module in self.named_modules():
            if name.endswith(("conv1", "proj", "out_conv")):
                nn.init.zeros_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d):
                nn.Conv2d.reset_parameters(module)
            elif isinstance(module, nn.Linear):
                nn.Linear.reset_parameters(module)

    def embed(self, c_noise: Tensor, labels: Tensor | None, augment_labels: Tensor | None) -> Tensor:
        """The conditioning vector [B, E] of noise level [B], one-hot labels [B, classes] and augmentation [B, A]."""
        emb = self.map_noise(c_noise)
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels)
        emb = self.map_layer1(silu(self.map_layer0(emb)))
        if self.map_label is not None and labels is not None:
            emb = emb + self.map_label(labels)
        return silu(emb)

    def forward(
        self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None, augment_labels: Tensor | None = None
    ) -> Tensor:
        """[B, C, H, W] at noise level [B] -> [B, C', H, W]; absent labels count as all zero."""
        given = (None if rows is None else steady(rows) for rows in (labels, augment_labels))
        emb = self.embed(steady(c_noise), *given).to(self.dtype)
        skips: list[Tensor] = []
        for layer in self.enc.values():
            x = layer(x, emb) if isinstance(layer, Block) else layer(x).to(self.dtype)
            skips.append(x)
        for name, layer in self.dec.items():
            x = torch.cat([x, skips.pop()], dim=1) if "_block" in name else x
            x = layer(x, emb)
        return self.out_conv(silu(self.out_norm(x.to(torch.float32))))  # type: ignore[no-any-return]
