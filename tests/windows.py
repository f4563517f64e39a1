"""Does a model trained on patches need its coordinates, and are its windows parts of its images?

`python -m tests.windows MODEL --data IMAGES.zip` samples without true coordinates, and halves of images as windows.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, NamedTuple
from unittest.mock import patch

import torch
import typer
from torch import Tensor

from models import patches
from models.checkpoint import Model, load
from models.data import Dataset, UInt8Array
from models.evaluate import Evaluator
from models.generate import BALANCED_BATCH, Generator, balanced_batches
from models.report import data_of
from models.sampling import Sampling, Window
from models.shapes import Shapes
from models.window import windowed

Place = Callable[[Tensor | None, Tensor, int], Tensor]


def zeroed(corner: Tensor | None, like: Tensor, resolution: int) -> Tensor:
    """Every pixel said to lie in the middle."""
    return torch.zeros_like(patches.coordinates(corner, like, resolution))


def transposed(corner: Tensor | None, like: Tensor, resolution: int) -> Tensor:
    """Across said to be down, and down across."""
    return patches.coordinates(corner, like, resolution).transpose(2, 3)


PLACES: dict[str, Place] = {"true": patches.coordinates, "zeroed": zeroed, "transposed": transposed}


class Half(NamedTuple):
    """Half of the frame: windows of it, and the same part of whole images, against that of real ones."""

    side: str
    windows_frechet: float
    crops_frechet: float
    windows_recognised: float
    crops_recognised: float
    """By a classifier of such halves."""


def with_coordinates(model: Model, evaluator: Evaluator, count: int) -> Iterator[tuple[str, float]]:
    """The Fréchet distance of images that are made with true coordinates, and with others."""
    for name, place in PLACES.items():
        with patch("models.precond.coordinates", place):
            yield name, evaluator.evaluate(made(model, count)).frechet


def half(model: Model, data: Dataset, count: int, classifier_images: int, is_left: bool) -> Half:
    """How a window of half of the frame compares with that half of whole images of the same seeds and classes."""
    width = data.shape[2] // 2
    x = 0 if is_left else width
    part = replace(data, name=f"half of {data.name}", images=data.images[:, :, x : x + width])
    evaluator = Evaluator(part, count, classifier_images)
    windows = evaluator.evaluate(made(windowed(model, Window(x=x, y=0, width=width, height=data.shape[1])), count))
    crops = evaluator.evaluate((images[:, :, x : x + width], labels) for images, labels in made(model, count))
    return Half(
        "left" if is_left else "right",
        windows.frechet,
        crops.frechet,
        windows.recognised or 0.0,
        crops.recognised or 0.0,
    )


def made(model: Model, count: int) -> Iterator[tuple[UInt8Array, list[int]]]:
    """Batches of images of the seeds from 0 on, and their classes."""
    generator = Generator(model, Shapes((BALANCED_BATCH,), (1.0,)))
    return balanced_batches(generator, range(count), Sampling(steps=model.card.default_steps))


def main(
    file: Annotated[Path, typer.Argument(help="A checkpoint that was trained on patches.")],
    data: Annotated[Path | None, typer.Option(help="Its images; the digits.")] = None,
    count: Annotated[int, typer.Option(help="Images of each kind.", min=20)] = 600,
    classifier_images: Annotated[int, typer.Option(help="That classifiers see in training.", min=128)] = 120_000,
) -> None:
    """Print what other coordinates cost, and how windows compare with parts of whole images."""
    torch.set_num_threads(1)
    model, images = load(file), data_of(data)
    typer.echo(f"{model.card.name}, {count} images of each\n\n| coordinates | Fréchet distance |\n|---|---|")
    for name, frechet in with_coordinates(model, Evaluator(images, count, classifier_images), count):
        typer.echo(f"| {name} | {frechet:.2f} |")
    typer.echo("\n| half | windows: distance | crops: distance | windows: recognised | crops: recognised |")
    typer.echo("|---|---|---|---|---|")
    for is_left in (True, False):
        side, *distances, windows, crops = half(model, images, count, classifier_images, is_left)
        typer.echo(f"| {side} | {distances[0]:.2f} | {distances[1]:.2f} | {windows:.1%} | {crops:.1%} |")


if __name__ == "__main__":
    typer.run(main)
