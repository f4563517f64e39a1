"""The pictures of docs/concepts.md, made by the shipped models: `python -m tests.pictures`."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import matplotlib as mpl
import numpy as np
import torch
import typer
from matplotlib.figure import Figure

from models.card import SHIPPED, format_D
from models.checkpoint import load
from models.generate import Generator, UInt8Array, balanced_generator, to_uint8
from models.kernel import stretch
from models.sampling import Sampling

SEEDS = range(10)
LABELS = list(range(10))
STEPS = (2, 3, 4, 6, 9, 18, 64)
SOLVERS = ("heun", "euler", "dpmpp-2m", "dpmpp-3m", "unipc", "ipndm")
FEW = 9
"""Evaluations of each solver in the comparison: odd, so that heun can take as many."""

PATH_STEPS = 10
DRAWS = 200_000
GREEN = ("#0b3c49", "#1f7a8c", "#7fb069", "#e6aa68")


def generator_of(name: str) -> Generator:
    """A shipped model, ready to be sampled."""
    return balanced_generator(load(SHIPPED / f"{name}.safetensors"))


def images(generator: Generator, **choice: Any) -> UInt8Array:
    """One digit of each class, from the same seeds."""
    walk = generator.walk(SEEDS, LABELS, Sampling(**choice))
    while not walk.is_finished:
        generator.evaluate([walk])
    return walk.images()


def table(rows: dict[str, UInt8Array], title: str, columns: Sequence[str], path: Path) -> None:
    """Rows of images with their names, one below the other."""
    count = len(next(iter(rows.values())))
    picture = Figure(figsize=(1.7 + 0.62 * count, 0.75 + 0.62 * len(rows)), layout="constrained")
    axes = picture.subplots(len(rows), count, squeeze=False)
    for row, (name, pixels) in zip(axes, rows.items(), strict=True):
        row[0].set_ylabel(name, rotation=0, ha="right", va="center")
        for place, image in zip(row, pixels, strict=True):
            place.imshow(image.squeeze(-1), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            place.set(xticks=[], yticks=[])
            place.set_frame_on(False)
    for place, name in zip(axes[-1], columns, strict=True):
        place.set_xlabel(name)
    picture.suptitle(title)
    save(picture, path)


def save(picture: Figure, path: Path) -> None:
    """Write a picture without the date and version that would make another file of the same."""
    picture.savefig(path, dpi=100, metadata={"Software": None})


def dimensions(folder: Path) -> None:
    """What D does: the same seeds and classes, four models."""
    found = {}
    for name in ("d1", "d128", "d2048", "dinf"):
        generator = generator_of(f"digits-{name}")
        found[f"D = {'∞' if name == 'dinf' else format_D(generator.model.card.D)}"] = images(generator, steps=18)
    table(found, "The same ten seeds, 18 steps", [f"a {label}" for label in LABELS], folder / "concept-dimensions.png")


def steps(generator: Generator, folder: Path) -> None:
    """What steps do: from few to many."""
    found = {f"{n} steps, {2 * n - 1} evaluations": images(generator, steps=n) for n in STEPS}
    columns = [f"seed {seed}" for seed in SEEDS]
    table(found, "More steps, the same seeds: D = 2048, heun", columns, folder / "concept-steps.png")


def solvers(generator: Generator, folder: Path) -> None:
    """What solvers do of few evaluations, against the end of the path."""
    ends = images(generator, steps=256).astype(np.float64)
    found = {}
    for solver in SOLVERS:
        made = images(generator, solver=solver, steps=(FEW + 1) // 2 if solver == "heun" else FEW)
        distance = np.sqrt((((made - ends) / 255) ** 2).sum((1, 2, 3))).mean()
        found[f"{solver}: {distance:.2f} away"] = made
    found["where the path ends"] = ends.astype(np.uint8)
    title = f"{FEW} evaluations by each solver: D = 2048, the same seeds"
    table(found, title, [f"seed {seed}" for seed in SEEDS], folder / "concept-solvers.png")


def path(generator: Generator, folder: Path) -> None:
    """How one image comes about: where it is at each noise level, and what the network takes it for."""
    seed, label = 4, 5
    walk = generator.walk([seed], [label], Sampling(steps=PATH_STEPS, solver="dpmpp-2m", trajectory=True))
    places, levels = [], []
    while not walk.is_finished:
        x, sigma = walk.query.x, walk.query.sigma
        places.append(to_uint8(x / math.hypot(1, sigma)))
        levels.append(sigma)
        generator.evaluate([walk])
    estimates = walk.trajectory()
    assert estimates is not None
    rows = {
        "where it is,\nscaled": np.concatenate([*places, walk.images()]),
        "what it is\ntaken for": np.concatenate([*estimates.swapaxes(0, 1), walk.images()]),
    }
    columns = [rf"$\sigma$ = {level:.2g}" if level < 10 else rf"$\sigma$ = {level:.0f}" for level in (*levels, 0)]
    table(rows, f"One image on its way, {PATH_STEPS} steps: D = 2048", columns, folder / "concept-path.png")


def kernel(folder: Path) -> None:
    """How long the noise is, for several D: about as long as Gaussian noise, with a tail that D decides."""
    picture = Figure(figsize=(7, 3.2), layout="constrained")
    axes = picture.subplots()
    random, N = np.random.default_rng(0), 64
    bins = np.geomspace(0.3, 30, 120)
    for D, colour in zip((1.0, 8.0, 128.0, math.inf), GREEN, strict=True):
        gaussian = np.sqrt(random.chisquare(N, DRAWS) / N)
        lengths = stretch(random, DRAWS, D) * gaussian
        density, edges = np.histogram(np.log(lengths), np.log(bins), density=True)
        middle = np.exp((edges[1:] + edges[:-1]) / 2)
        axes.plot(middle, density, color=colour, label=f"D = {'∞ (diffusion)' if math.isinf(D) else f'{D:g}'}")
    axes.set_xscale("log")
    axes.set_xticks([0.3, 1, 3, 10, 30], ["0.3", "1", "3", "10", "30"])
    axes.minorticks_off()
    axes.set(xlabel=r"length of the noise, in $\sigma\sqrt{N}$", ylabel="density", title="The kernel's radius, N = 64")
    axes.legend(frameon=False)
    save(picture, folder / "concept-kernel.png")


def draw(folder: Annotated[Path, typer.Option(help="Where the PNGs go.")] = Path("docs")) -> None:
    """Make all pictures of docs/concepts.md."""
    torch.set_num_threads(1)
    mpl.rcParams |= {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    generator = generator_of("digits-d2048")
    dimensions(folder)
    steps(generator, folder)
    solvers(generator, folder)
    path(generator, folder)
    kernel(folder)


if __name__ == "__main__":
    typer.run(draw)
