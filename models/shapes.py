"""The batch sizes in which a network is run.

The last bits of a float32 network may depend on the size of its batch, for the libraries choose their kernels by it;
and what an evaluation costs rises in steps. So every batch is cut into sizes that were tried out at warm-up.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from models.checkpoint import Model

REFERENCE_SIZE = 8
"""The batch size whose bits are the ones promised for a seed."""

SLOW_SECONDS = 1.0
"""No size beyond one that takes so long: it would hold up what else is waiting, and warming it up takes as long."""

PATIENCE_SECONDS = 0.15
"""For how long a quick network is timed again and again."""

TURN_SECONDS = 0.001
"""About what a network call takes beside the network, in a worker that also claims and delivers."""

Network = Callable[..., Tensor]
"""(x [B, C, H, W], sigma [B], labels [B, classes] where there are classes) -> the denoised estimate [B, C, H, W]."""


@dataclass(frozen=True)
class Shapes:
    """The batch sizes in which a network may be run, rising, and the seconds that one evaluation of each takes."""

    sizes: tuple[int, ...]
    seconds: tuple[float, ...]

    def cut(self, count: int) -> list[int]:
        """The cheapest sizes, largest first, that cover `count` images; the last may have room to spare."""
        return list(_cheapest(self, count))

    def seconds_of(self, count: int) -> float:
        """What an evaluation of `count` images takes."""
        cost = dict(zip(self.sizes, self.seconds, strict=True))
        return sum(cost[piece] for piece in self.cut(count))

    def halved(self) -> "Shapes | None":
        """Those of at most half the largest; None when there are none."""
        kept = [k for k, size in enumerate(self.sizes) if size <= self.sizes[-1] // 2]
        return Shapes(self.sizes[: len(kept)], self.seconds[: len(kept)]) if kept else None

    @cached_property
    def width(self) -> int:
        """The smallest size within 5 % of the best seconds per image: wider ones bring nothing but delay."""
        each = [(TURN_SECONDS + self.seconds_of(size)) / size for size in self.sizes]
        return next(size for size, cost in zip(self.sizes, each, strict=True) if cost <= 1.05 * min(each))


@lru_cache(1024)
def _cheapest(shapes: Shapes, count: int) -> tuple[int, ...]:
    """The sizes that cover `count` images in the least seconds, and among those with the least padding."""
    best: list[tuple[float, int, tuple[int, ...]]] = [(0.0, 0, ())]
    for images in range(1, count + 1):
        choices = []
        for size, seconds in zip(shapes.sizes, shapes.seconds, strict=True):
            cost, covered, pieces = best[max(0, images - size)]
            choices.append((cost + seconds, covered + size, (size, *pieces)))
        best.append(min(choices))
    return tuple(sorted(best[count][2], reverse=True))


def filled(rows: Tensor, size: int) -> Tensor:
    """`rows` [n, ...] as they are when n = size, else filled up to it with copies of the first."""
    missing = size - len(rows)
    return torch.cat([rows, rows[:1].expand(missing, *rows.shape[1:])]) if missing else rows


@torch.inference_mode()
def steady_shapes(model: Model, largest: int, network: Network | None = None) -> Shapes:
    """The sizes 1, 2, 4 ... up to `largest` in which a network gives the bits of REFERENCE_SIZE, which is among them.

    Which kernels a library takes depends on shapes alone, so a few random images, each in many places and company,
    tell for every model of the same architecture, resolution and classes; and they warm the network up. The model's
    own network unless another is given.
    """
    return _shapes(model, network or model.network, largest, steady=True)


@torch.inference_mode()
def warm_up(model: Model, shapes: Shapes) -> None:
    """Run the smallest size once: libraries make their kernels at the first call."""
    model.network(*random_batch(model, shapes.sizes[0]))


@torch.inference_mode()
def timed_shapes(model: Model, largest: int, network: Network) -> Shapes:
    """The sizes 1, 2, 4 ... up to `largest`, whatever their bits: for a network that promises none."""
    return _shapes(model, network, largest, steady=False)


def _shapes(model: Model, network: Network, largest: int, steady: bool) -> Shapes:
    batch = random_batch(model, REFERENCE_SIZE)
    reference, reference_seconds = timed(network, batch)
    found = {REFERENCE_SIZE: reference_seconds}
    for size in (4, 2, 1, *_doubled(2 * REFERENCE_SIZE, largest)):
        if size > REFERENCE_SIZE and found[max(found)] > SLOW_SECONDS:
            break
        rows = (3 * torch.arange(size, device=model.device) + 1) % REFERENCE_SIZE
        estimate, seconds = timed(network, [each[rows] for each in batch])
        if not steady or torch.equal(estimate, reference[rows]):
            found[size] = seconds
    sizes = tuple(sorted(found))
    return Shapes(sizes, tuple(found[size] for size in sizes))


def _doubled(size: int, largest: int) -> Iterator[int]:
    while size <= largest:
        yield size
        size *= 2


def timed(network: Network, batch: Sequence[Tensor]) -> tuple[Tensor, float]:
    """The network's answer and the least seconds it took, warm.

    A slow one is asked twice, lest a process that was held up has it taken for slow; a quick one again and again for
    PATIENCE_SECONDS, for what disturbs it takes as long as it does.
    """
    seconds, began = math.inf, time.perf_counter()
    for turn in itertools.count(1):
        start = time.perf_counter()
        answer = network(*batch)
        if answer.is_cuda:
            torch.cuda.synchronize(answer.device)
        seconds = min(seconds, time.perf_counter() - start)
        if (turn >= 2 and seconds > SLOW_SECONDS / 4) or (turn >= 3 and time.perf_counter() - began > PATIENCE_SECONDS):
            break
    return answer, seconds


def random_batch(model: Model, size: int) -> list[Tensor]:
    """Inputs of a network, all different: x [B, C, H, W], sigma [B] and, if it has classes, labels [B, classes]."""
    card, device = model.card, model.device
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(size, *model.shape, generator=rng, dtype=torch.float64).to(device)
    sigma = card.sigma_min + card.sigma_max * torch.rand(size, generator=rng, dtype=torch.float64).to(device)
    classes = len(card.classes)
    labels = [torch.eye(classes, device=device)[torch.arange(size) % classes]] if classes else []
    return [x.contiguous(memory_format=torch.channels_last), sigma, *labels]
