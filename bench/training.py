"""(g) Steps of training by the shipped recipes, with random images, in the ways in which they can be taken.

A step is all that `Run.step` does: drawing, forward, backward, clipping, Adam, and the average of the weights.
"""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from bench.report import Figure, Findings
from bench.timing import Act, Timing, interleaved, speed
from bench.workload import Workbench
from models.data import Dataset
from models.fast import units_gain
from models.objective import Draws
from models.recipe import Recipe, read_recipe
from models.train import Run, average

D = 2048.0
IMAGES = 1000
CLASSES = tuple("0123456789")
SHAPES = {"digits": (8, 8, 1), "cifar10": (32, 32, 3)}


class Load(NamedTuple):
    """Sizes of batches, and how many images make a measurement, or else a whole batch.

    Compiled code is measured at the first size alone, for on a CPU it takes minutes to make.
    """

    sizes: tuple[int, ...]
    images: int


LOADS = {
    "cpu": {"digits": Load((128, 32, 512), 512), "cifar10": Load((16, 4), 4)},
    "cuda": {"digits": Load((128, 512, 2048), 20_480), "cifar10": Load((512, 128), 5_120)},
}
"""By device and recipe."""

QUICK = {"digits": Load((8,), 8)}

HOPELESS = 0.1
"""Where a small convolution in bfloat16 is so much slower, for want of units for it, a network need not be tried."""


class Way(NamedTuple):
    """How steps are taken."""

    precision: Literal["float32", "bfloat16"] = "float32"
    is_contiguous: bool = False
    """Channels first, where every run has them last."""
    compiles: bool = False


PLAIN = "float32"
EAGER = {
    PLAIN: Way(),
    "float32 again": Way(),
    "contiguous": Way(is_contiguous=True),
    "bfloat16": Way("bfloat16"),
}
COMPILED = {"compiled": Way(compiles=True)}
FOR_GPUS = {"bfloat16, compiled": Way("bfloat16", compiles=True)}


@dataclass(frozen=True)
class Contest:
    """A recipe with one size of batch, the ways to compare, and how many steps make a measurement."""

    recipe: Recipe
    ways: Mapping[str, Way]
    steps: int
    device: torch.device

    @property
    def name(self) -> str:
        """What is compared, in words."""
        return f"{self.recipe.dataset}, batches of {self.recipe.batch}"

    @property
    def images(self) -> int:
        """Of a measurement."""
        return self.recipe.batch * self.steps

    def begun(self, way: Way) -> Run:
        """A run that has taken its first step in that way."""
        recipe = self.recipe.model_copy(update={"precision": way.precision})
        run = Run(recipe, D, random_images(recipe.dataset), self.device, compiles=way.compiles)
        if way.is_contiguous:
            make_contiguous(run)
        run.step()
        self.wait()
        return run

    def repeated(self, act: Act) -> Act:
        """The act as often as a measurement has steps."""

        def repeat() -> None:
            for _ in range(self.steps):
                act()
            self.wait()

        return repeat

    def wait(self) -> None:
        """Until the device has done what it was told."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, timing: Timing) -> list[float]:
        """What counts: by the clock on a GPU; on a CPU this thread's, for another one draws meanwhile."""
        return timing.wall if self.device.type == "cuda" else timing.cpu


def measure(bench: Workbench) -> Findings:
    """Images a second, each way against the plain one, and how much of a step its parts take."""
    findings = Findings()
    for contest in _contests(bench):
        first, timings = _held(contest, bench.rounds)
        findings.figures += _figures(contest, first, timings)
        findings.details[contest.name] = _details(contest, first, timings)
    return findings


def _held(contest: Contest, rounds: int) -> tuple[dict[str, float], dict[str, Timing]]:
    """The seconds to the end of the first step of every way, and the timings of the ways and of the parts of a step."""
    first, acts = dict[str, float](), dict[str, Act]()
    with ExitStack() as at_end:
        at_end.callback(torch.compiler.reset)  # else the next size would be compiled for any
        for name, way in contest.ways.items():
            began = time.perf_counter()
            run = at_end.enter_context(closing(contest.begun(way)))
            first[name] = time.perf_counter() - began
            acts[name] = contest.repeated(run.step)
        apart = at_end.enter_context(closing(contest.begun(Way())))
        acts |= {name: contest.repeated(act) for name, act in _parts(apart).items()}
        return first, interleaved(acts, rounds)


def _contests(bench: Workbench) -> Iterator[Contest]:
    """All that this device is asked for."""
    device = bench.device.type
    eager = dict(EAGER)
    if units_gain(torch.bfloat16, bench.device) < HOPELESS:
        del eager["bfloat16"]
    compiled = {} if bench.is_quick else COMPILED | (FOR_GPUS if device == "cuda" else {})
    for name, load in (QUICK if bench.is_quick else LOADS[device]).items():
        for size in load.sizes:
            ways = eager | compiled if size == load.sizes[0] else eager
            recipe = read_recipe(name).model_copy(update={"batch": size, "micro_batch": None})
            yield Contest(recipe, ways, max(1, load.images // size), bench.device)


def random_images(recipe: str) -> Dataset:
    """A data set of the shape and with the classes that a shipped recipe is for."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (IMAGES, *SHAPES[recipe]), dtype=np.uint8)
    return Dataset(recipe, CLASSES, images, rng.integers(0, len(CLASSES), IMAGES), "none")


def make_contiguous(run: Run) -> None:
    """Have a run compute channels first."""
    for weight in (*run.network.parameters(), *run.ema.parameters()):
        weight.data = weight.data.clone(memory_format=torch.contiguous_format)
    run.network.model.register_forward_pre_hook(_channels_first)


def _channels_first(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The inputs of a network, the image channels first even where it has one, whose order would else be either."""
    return inputs[0].clone(memory_format=torch.contiguous_format), *inputs[1:]


def _parts(run: Run) -> dict[str, Act]:
    """What a step does beside forward and backward; it changes the weights of the run."""
    recipe, draws = run.recipe, Draws(run.recipe, run.D, run.data)
    weights = list(run.network.parameters())
    gradients = [torch.ones_like(weight) for weight in weights]

    def update() -> None:
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient
        nn.utils.clip_grad_norm_(weights, recipe.gradient_clip or math.inf)
        run.optimizer.step()
        run.optimizer.zero_grad()

    return {
        "drawing": lambda: draws.examples(0, 0, recipe.batch),
        "clipping and Adam": update,
        "average": lambda: average(run.ema, run.network, run.images_seen, recipe),
    }


def _figures(contest: Contest, first: Mapping[str, float], timings: Mapping[str, Timing]) -> list[Figure]:
    seconds = {name: contest.seconds(timing) for name, timing in timings.items()}
    plain = seconds.pop(PLAIN)
    found = [Figure(name=PLAIN, value=contest.images / median(plain), unit="images/s")]
    for name, own in seconds.items():
        if name in contest.ways:
            found.append(Figure(name=f"{name} / {PLAIN}", value=speed(own, plain)))
        else:
            found.append(Figure(name=f"{name}, of a step", value=100 * speed(plain, own), unit="%"))
    found += [
        Figure(name=f"{name}: to the end of the first step", value=first[name], unit="s")
        for name, way in contest.ways.items()
        if way.compiles
    ]
    return [figure.model_copy(update={"name": f"{contest.name}: {figure.name}"}) for figure in found]


def _details(contest: Contest, first: Mapping[str, float], timings: Mapping[str, Timing]) -> dict[str, Any]:
    """The table behind the figures."""
    return {
        "steps": contest.steps,
        "images_per_second": {name: contest.images / median(contest.seconds(timings[name])) for name in contest.ways},
        "first_step_seconds": dict(first),
        "wall_seconds": {name: timing.wall for name, timing in timings.items()},
        "cpu_seconds": {name: timing.cpu for name, timing in timings.items()},
    }
