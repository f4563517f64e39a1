"""Recipes against each other for equal computing time: `pfgmpp race`."""

import csv
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure

from models.checkpoint import Model
from models.data import Dataset
from models.evaluate import Evaluator
from models.generate import BALANCED_BATCH, Generator, balanced_batches
from models.recipe import Recipe
from models.sampling import Sampling
from models.shapes import Shapes
from models.train import Progress, Run


class Mark(NamedTuple):
    """How good a recipe had become after so much computing time of its own."""

    recipe: str
    seed: int
    seconds: float
    images: int
    frechet: float
    """Fréchet distance of the evaluator's features; infinite for images that are not finite."""


@dataclass
class Racer:
    """A run with the computing time it has had: of the process on a CPU, else on the clock."""

    name: str
    run: Run
    seconds: float = 0.0

    def train_until(self, seconds: float) -> None:
        """Take steps until it has had so much time, or is done."""
        clock = time.process_time if self.run.device.type == "cpu" else time.perf_counter
        began = clock() - self.seconds
        while self.seconds < seconds and not self.run.is_done:
            self.run.step()
            if self.run.device.type == "cuda":
                torch.cuda.synchronize(self.run.device)
            self.seconds = clock() - began
        self.run.recent.clear()

    def judged(self, evaluator: Evaluator, count: int) -> Mark:
        """What its averaged weights are worth now."""
        card = self.run.card(Progress(self.run.images_seen, math.nan, 0.0, math.nan))
        generator = Generator(Model(card, self.run.ema, "", self.run.device), Shapes((BALANCED_BATCH,), (1.0,)))
        sampling, frechet = Sampling(steps=card.default_steps), math.inf
        with suppress(FloatingPointError):  # too early
            frechet = evaluator.evaluate(balanced_batches(generator, range(count), sampling)).frechet
        return Mark(self.name, self.run.recipe.seed, self.seconds, self.run.images_seen, frechet)


def race(
    recipes: dict[str, Recipe],
    D: float,
    data: Dataset,
    evaluator: Evaluator,
    device: torch.device,
    seconds: Sequence[float],
    seeds: int,
    count: int,
    report: Callable[[str], object] = lambda what: None,
) -> Iterator[Mark]:
    """Marks of every recipe and seed after so many seconds, rising.

    The runs of a seed take turns from mark to mark, so what else the machine does disturbs all alike.
    """
    for seed in range(seeds):
        racers = [
            Racer(name, Run(recipe.model_copy(update={"seed": seed}), D, data, device))
            for name, recipe in recipes.items()
        ]
        try:
            for until in seconds:
                for racer in racers:
                    report(f"seed {seed}, {racer.name}, {until:.0f} s")
                    racer.train_until(until)
                    yield racer.judged(evaluator, count)
        finally:
            for racer in racers:
                racer.run.close()


class Verdict(NamedTuple):
    """A recipe against the first one, in the mean over seeds."""

    recipe: str
    images_per_second: float
    frechet: float
    """At the end."""
    ratio: float
    """Of that to the first recipe's."""
    reached: float
    """The share of the time after which it was as good as the first one at its end; infinite for never."""


def verdicts(marks: Sequence[Mark]) -> list[Verdict]:
    """One for every recipe."""
    curves = {name: curve(marks, name) for name in dict.fromkeys(mark.recipe for mark in marks)}
    goal = next(iter(curves.values()))[-1][1]
    found = []
    for name, points in curves.items():
        own = [mark for mark in marks if mark.recipe == name]
        speed = sum(mark.images for mark in own) / sum(mark.seconds for mark in own)
        whole, end = points[-1]
        found.append(Verdict(name, speed, end, end / goal, _reached(points, goal) / whole))
    return found


def curve(marks: Sequence[Mark], recipe: str) -> list[tuple[float, float]]:
    """(seconds, Fréchet distance) of a recipe, each the mean over seeds."""
    seeds = len({mark.seed for mark in marks})
    own = [mark for mark in marks if mark.recipe == recipe]
    numbers = np.array([(mark.seconds, mark.frechet) for mark in own]).reshape(seeds, -1, 2).mean(0)
    return [(float(seconds), float(frechet)) for seconds, frechet in numbers]


def _reached(points: Sequence[tuple[float, float]], goal: float) -> float:
    """When a curve first falls to a goal, on a straight line between its points."""
    before = points[0]
    for after in points:
        if after[1] <= goal:
            fall = before[1] - after[1]
            return after[0] if not 0 < fall < math.inf else after[0] - (after[0] - before[0]) * (goal - after[1]) / fall
        before = after
    return math.inf


def write_marks(path: Path, marks: Sequence[Mark]) -> None:
    """A CSV file with a line for every mark."""
    with path.open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(Mark._fields)
        lines.writerows(marks)


def draw_race(path: Path, marks: Sequence[Mark], title: str) -> None:
    """The curves of all recipes: the mean over seeds, and every seed as a thin line."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for name in dict.fromkeys(mark.recipe for mark in marks):
        (line,) = axes.plot(*zip(*curve(marks, name), strict=True), marker="o", label=name)
        for seed in {mark.seed for mark in marks}:
            own = [(mark.seconds, mark.frechet) for mark in marks if (mark.recipe, mark.seed) == (name, seed)]
            axes.plot(*zip(*own, strict=True), color=line.get_color(), linewidth=0.6, alpha=0.6)
    axes.set(xlabel="seconds of computing", ylabel="Fréchet distance", yscale="log")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    axes.set_title(title, fontsize=10)
    figure.savefig(path, dpi=120)
