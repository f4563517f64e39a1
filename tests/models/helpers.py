"""What several tests of the models share: recorded numbers, statistics, and networks with random weights."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import chisquare, kstest, pearsonr
from torch import Tensor, nn

from models.card import ADMOptions, Card, UNetOptions
from models.checkpoint import build
from models.sampler import Solver
from models.shapes import Shapes

FIXTURES = Path(__file__).parent / "fixtures"

FALSE_ALARM = 1e-3
"""How often a right law fails a test of it by chance; never again with the same seed, and all seeds are fixed."""

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""(x [B, C, H, W], sigma [B]) -> the denoised estimate [B, C, H, W]."""

Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def recorded(name: str) -> Any:
    """A JSON file of recorded numbers."""
    return json.loads((FIXTURES / f"{name}.json").read_text())


def options(recorded_options: dict[str, Any]) -> UNetOptions | ADMOptions:
    """Our options from recorded ones, which know some by other names and others not at all."""
    kind = ADMOptions if recorded_options["model_type"] == "DhariwalUNet" else UNetOptions
    renamed = {"embedding_type": "embedding", "encoder_type": "encoder"}
    ours = {renamed.get(name, name): value for name, value in recorded_options.items()}
    own = {name: value for name, value in ours.items() if name in kind.model_fields}
    precond = recorded_options.get("precond", "EDMPrecond").removesuffix("Precond").lower()
    return kind.model_validate(own | {"precond": {"kind": precond}})


def card(**changes: Any) -> Card:
    """The card of a small conditional NCSN++: as many kinds of layers as fit in 8x8 pixels."""
    architecture = UNetOptions(
        model_channels=16,
        channel_mult=(1, 2),
        num_blocks=1,
        attn_resolutions=(4,),
        embedding="fourier",
        encoder="residual",
        channel_mult_noise=2,
        resample_filter=(1, 3, 3, 1),
    )
    fields = {
        "dataset": "tiny",
        "D": 128,
        "resolution": 8,
        "channels": 3,
        "classes": ("a", "b", "c"),
        "architecture": architecture,
        "license": "none",
    }
    return Card(**fields | changes)


def random_tensors(card: Card) -> dict[str, Tensor]:
    """Weights for a card, nowhere zero and small enough for images that are neither black nor white."""
    rng = torch.Generator().manual_seed(0)
    expected = build(card).state_dict()
    return {name: 0.1 * torch.randn(tensor.shape, generator=rng) for name, tensor in expected.items()}


def shapes(*sizes: int) -> Shapes:
    """These batch sizes, as if an evaluation cost as much as its images and one more."""
    return Shapes(sizes, tuple(size + 1.0 for size in sizes))


def relative_error(found: Tensor, expected: Tensor) -> float:
    """||found - expected|| / ||expected||."""
    difference = found.to(torch.float64) - expected.to(torch.float64)
    return float(difference.norm() / expected.to(torch.float64).norm())


def follows(sample: Array, cdf: Callable[[Array], Array]) -> bool:
    """Whether a sample may well have been drawn from a law (Kolmogorov-Smirnov)."""
    return p_value(sample, cdf) > FALSE_ALARM


def p_value(sample: Array, cdf: Callable[[Array], Array]) -> float:
    return float(kstest(sample, cdf).pvalue)


def in_proportion(counts: Array, weights: Array) -> bool:
    """Whether counts may well have come from drawing with these weights (chi-square)."""
    expected = weights / weights.sum() * counts.sum()
    return float(chisquare(counts, expected).pvalue) > FALSE_ALARM


def uncorrelated(one: Array, other: Array) -> bool:
    """Whether two samples may well be independent, as far as their correlation tells."""
    return float(pearsonr(one, other).pvalue) > FALSE_ALARM


def parameters(network: nn.Module) -> int:
    return sum(tensor.numel() for tensor in network.parameters())


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Within it, torch computes with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def solve(solver: Solver, denoiser: Denoiser) -> Tensor:
    """What a solver returns, its queries answered by a denoiser."""
    query = next(solver)
    while True:
        sigma = torch.full(query.x.shape[:1], query.sigma, dtype=torch.float64, device=query.x.device)
        denoised = denoiser(query.x, sigma).to(torch.float64)
        try:
            query = solver.send(denoised)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
