"""A toy to see the method at work without images: two Gaussians on a plane of few dimensions among many."""

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from models.card import EDM
from models.kernel import prior, stretch
from models.levels import noise_levels
from models.objective import weighted_error
from models.precond import edm_coefficients
from models.sampler import Query, heun

N, DIMENSIONS = 1000, 10
"""Of the space, and of the plane in it on which the data lie."""

CENTRE, DEVIATION = 1.5, 0.5
"""Of the two Gaussians along each axis of the plane: one is at CENTRE, the other at -CENTRE."""

WIDTH, BATCH = 32, 256
STEPS, SIGMA_MAX = 50, 50.0


class Plane:
    """The data: half of them from each of the Gaussians."""

    def __init__(self, rng: np.random.Generator):
        self._rng = rng
        self._axes = torch.from_numpy(np.linalg.qr(rng.standard_normal((N, DIMENSIONS)))[0].T)

    def draw(self, count: int) -> Tensor:
        """[count, N, 1, 1] in float32."""
        signs = self._rng.choice([-CENTRE, CENTRE], (count, 1))
        places = signs + DEVIATION * self._rng.standard_normal((count, DIMENSIONS))
        return (torch.from_numpy(places) @ self._axes).to(torch.float32)[:, :, None, None]

    @property
    def deviation(self) -> float:
        """Of a coordinate of the space, in the mean."""
        return float(np.sqrt((CENTRE**2 + DEVIATION**2) * DIMENSIONS / N))


class Network(nn.Module):
    """A denoiser D_theta(x, sigma) with a hidden width of 32."""

    def __init__(self, sigma_data: float):
        super().__init__()
        self._sigma_data = sigma_data
        widths = (N + 1, WIDTH, WIDTH, WIDTH)
        layers = [nn.Sequential(nn.Linear(a, b), nn.SiLU()) for a, b in pairwise(widths)]
        self._layers = nn.Sequential(*layers, nn.Linear(WIDTH, N))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The denoised estimate [B, N, 1, 1] at x and sigma [B]."""
        c_skip, c_out, c_in, c_noise = edm_coefficients(sigma, self._sigma_data)
        told = torch.cat([(c_in * x).flatten(1), c_noise[:, None]], dim=1)
        return c_skip * x + c_out * self._layers(told).view_as(x)  # type: ignore[no-any-return]


def trained(plane: Plane, D: float, steps: int, seed: int = 0) -> Network:
    """A network that has learned the data, by the objective of every model here."""
    torch.manual_seed(seed)
    rng, network = np.random.default_rng(seed), Network(plane.deviation)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    precond = EDM(sigma_data=plane.deviation)
    for _ in range(steps):
        y = plane.draw(BATCH)
        sigma = np.exp(rng.normal(-1.2, 1.2, BATCH))
        noise = (sigma * stretch(rng, BATCH, D))[:, None] * rng.standard_normal((BATCH, N))
        level = torch.from_numpy(sigma).to(torch.float32)
        x = y + torch.from_numpy(noise).to(torch.float32)[:, :, None, None]
        weighted_error(network(x, level), y, level, precond).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return network


@torch.inference_mode()
def sampled(network: Network, D: float, count: int) -> Tensor:
    """[count, N, 1, 1], by Heun's method from the prior at SIGMA_MAX."""
    x = torch.from_numpy(np.stack([prior(seed, (N, 1, 1), D, SIGMA_MAX) for seed in range(count)]))
    solver = heun(x, noise_levels(STEPS, sigma_max=SIGMA_MAX))
    query: Query = next(solver)
    while True:
        level = torch.full((count,), query.sigma)
        denoised = network(query.x.to(torch.float32), level).to(torch.float64)
        try:
            query = solver.send(denoised)
        except StopIteration as end:
            return end.value.to(torch.float32)  # type: ignore[no-any-return]


def discrepancy(one: Tensor, data: Tensor) -> float:
    """The squared maximum mean discrepancy of points [n, ...] and data [n, ...] (Gretton et al., 2012).

    By five Gaussian kernels, whose variances are the mean squared distance of the data times 1/4 to 4: taken of both, a
    few points far away would make them so wide that everything is alike.
    """
    both = torch.cat([one.flatten(1), data.flatten(1)]).to(torch.float64)
    squared = torch.cdist(both, both).square()
    mean = squared[len(one) :, len(one) :].sum() / (len(data) * (len(data) - 1))
    kernel = torch.stack([(-squared / (mean * factor)).exp() for factor in (0.25, 0.5, 1, 2, 4)]).sum(0)
    n = len(one)
    return float(kernel[:n, :n].mean() + kernel[n:, n:].mean() - 2 * kernel[:n, n:].mean())
