"""The denoiser around a raw network, with the preconditioning of EDM, VP, VE or iDDPM (Karras et al., 2022, table 1).

All are D_theta(x, sigma) = c_skip x + c_out F_theta(c_in x, c_noise), and each has noise levels of its own.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.adm import ADM
from models.card import EDM, IDDPM, VE, VP, ADMOptions, UNetOptions
from models.patches import coordinates
from models.unet import SongUNet


class Coefficients(NamedTuple):
    """Of an image at its noise level: c_skip, c_out and c_in, each [B, 1, 1, 1], and c_noise [B]."""

    c_skip: Tensor | float
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


class Denoiser(nn.Module):
    """D_theta(x, sigma): the image that the network expects behind a noisy one (EDM, eq. 7)."""

    def __init__(self, options: UNetOptions | ADMOptions, resolution: int, channels: int, classes: int):
        super().__init__()
        self.precond = options.precond
        self.channels = channels
        self.resolution = resolution
        self.coordinates = options.coordinates
        in_channels = channels + self.coordinates
        # iDDPM's networks also tell a variance, which no sampler here needs.
        out_channels = 2 * channels if isinstance(self.precond, IDDPM) else channels
        if isinstance(options, ADMOptions):
            self.model: SongUNet | ADM = ADM(options, resolution, in_channels, out_channels, classes)
        else:
            self.model = SongUNet(options, resolution, in_channels, out_channels, classes)
        if isinstance(self.precond, IDDPM):
            self.register_buffer("u", torch.zeros(self.precond.M + 1))
            self.u: Tensor

    def forward(
        self,
        x: Tensor,
        sigma: Tensor,
        labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
        corner: Tensor | None = None,
    ) -> Tensor:
        """The denoised estimate [B, C, H, W] in float32 at x and sigma [B], each image at its own noise level.

        For a network with coordinates, x may be parts of the frame, whose upper left pixel is at `corner` [B, 2].
        """
        x = x.to(torch.float32, memory_format=torch.channels_last)
        c_skip, c_out, c_in, c_noise = self.coefficients(sigma.to(torch.float32))
        inputs = c_in * x
        if self.coordinates:
            inputs = torch.cat([inputs, coordinates(corner, x, self.resolution)], dim=1)
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        F_x = self.model(inputs, c_noise, labels, augment_labels)[:, : self.channels]
        return c_skip * x + c_out * F_x.to(torch.float32)  # type: ignore[no-any-return]

    @property
    def table(self) -> tuple[float, ...]:
        """The only noise levels at which the network was trained, falling; empty if there are no such."""
        return tuple(self.u.tolist()) if isinstance(self.precond, IDDPM) else ()

    def coefficients(self, sigma: Tensor) -> Coefficients:
        """Table 1 of EDM, at noise levels [B] in float32."""
        level, precond = sigma[:, None, None, None], self.precond
        if isinstance(precond, EDM):
            return edm_coefficients(sigma, precond.sigma_data)
        if isinstance(precond, VE):
            return Coefficients(1.0, level, torch.ones_like(level), (0.5 * sigma).log())
        c_in = (level.square() + 1).rsqrt()
        if isinstance(precond, VP):
            # In float64, for sin and cos of it are taken, and it goes up to M.
            time = vp_time(sigma.to(torch.float64), precond)
            return Coefficients(1.0, -level, c_in, ((precond.M - 1) * time).to(torch.float32))
        place = (sigma[:, None] - self.u).abs().argmin(1)
        return Coefficients(1.0, -level, c_in, (precond.M - 1 - place).to(torch.float32))


def edm_coefficients(sigma: Tensor, sigma_data: float) -> Coefficients:
    """Those of EDM at noise levels [B], for data of that deviation."""
    level, s = sigma[:, None, None, None], sigma_data
    variance = level.square() + s**2
    return Coefficients(s**2 / variance, level * s * variance.rsqrt(), variance.rsqrt(), sigma.log() / 4)


def vp_time(sigma: Tensor, vp: VP) -> Tensor:
    """The time t in (0, 1] at which the VP process has these noise levels (EDM, table 1, inverse of sigma(t))."""
    log_variance = sigma.square().log1p()
    return ((vp.beta_min**2 + 2 * vp.beta_d * log_variance).sqrt() - vp.beta_min) / vp.beta_d
