"""Tables, CSV files, plots and pictures of what models are worth: the commands `evaluate` and `study`."""

import csv
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from pydantic import ValidationError

from models.bar import bar
from models.card import checkpoint_files, field_errors, format_D, read_card
from models.checkpoint import Model, load
from models.data import Dataset, UInt8Array, cache_folder, load_digits, load_images
from models.evaluate import Evaluation, Evaluator
from models.figures import Minimum, Result, Trial
from models.generate import Generator, balanced_batches, balanced_generator
from models.quantize import quantized
from models.sampling import Sampling


@dataclass(frozen=True)
class Contestant:
    """A model under the name of its file, which tells the states of one run apart."""

    name: str
    model: Model

    def batches(self, seeds: range, sampling: Sampling) -> Iterator[tuple[UInt8Array, list[int]]]:
        """Batches of its images, and their classes."""
        generator = balanced_generator(self.model)
        if sampling.bits:
            network = quantized(self.model.network, sampling.bits, sampling.quantized)
            generator = Generator(replace(self.model, network=network), generator.shapes)
        return balanced_batches(generator, seeds, sampling)


def head(measure: str) -> str:
    """The head of the table; the measure is what the Fréchet distance is called."""
    return (
        f"| model | sampled with | seeds | {measure} | kernel distance | precision | recall | recognised | nearest |\n"
        "|---|---|---|---|---|---|---|---|---|"
    )


def row(result: Result) -> str:
    """A row of the table under the head."""
    each, seeds = result.evaluation, result.trial.seeds
    recognised = "" if each.recognised is None else f"{each.recognised:.1%}"
    return (
        f"| {result.model} | {_described(result.trial.sampling)} | {seeds[0]}-{seeds[-1]} | {each.frechet:.3f} "
        f"| {each.kernel:.5f} | {each.precision:.3f} | {each.recall:.3f} | {recognised} | {each.nearest:.3f} |"
    )


def minimum_row(minimum: Minimum) -> str:
    """A row of the table for several rounds."""
    how = _described(minimum.trial.sampling)
    return f"| {minimum.model} | {how} | minimum of {minimum.rounds} rounds | {minimum.minimum:.3f} | | | | | |"


def _described(sampling: Sampling) -> str:
    return ", ".join(f"{name} {value}" for name, value in sampling.model_dump(exclude_defaults=True).items())


def data_of(path: Path | None) -> Dataset:
    """The images of a ZIP or folder, or the digits."""
    return load_digits() if path is None else load_images(path, cache_folder())


def files_of(paths: Sequence[Path]) -> list[Path]:
    """Checkpoints, and those of folders: in the order of the images they were trained on if their cards tell.

    Those that do not tell come last, in the order of their names. Raises ValueError naming a folder without any, or a
    file that is none.
    """
    found = list[Path]()
    for path in paths:
        own = sorted(checkpoint_files(path), key=_age) if path.is_dir() else [path]
        if not own:
            raise ValueError(f"{path}: holds no .safetensors files")
        found += own
    return found


def _age(file: Path) -> tuple[float, str]:
    images = read_card(file).training.get("images")
    return (float(images) if isinstance(images, int | float) else math.inf, file.name)


def contestants(files: Sequence[Path], data: Dataset) -> list[Contestant]:
    """Models of images like those of a data set. Raises ValueError naming one that is not."""
    found = [Contestant(file.stem, load(file)) for file in files]
    for file, each in zip(files, found, strict=True):
        about = (each.model.card.shape, len(each.model.card.classes))
        if about != (data.shape, len(data.classes)):
            raise ValueError(
                f"{file}: its images and classes, {about[0]} and {about[1]}, are not those of {data.name}, "
                f"{data.shape} and {len(data.classes)}"
            )
    return found


def sampling_of(model: Model, choice: dict[str, Any]) -> Sampling:
    """A choice of sampling for a model. Raises ValueError naming the field that cannot be."""
    try:
        sampling = Sampling.model_validate({"steps": model.card.default_steps} | choice)
    except ValidationError as error:
        raise ValueError(field_errors(error)) from error
    for field, reason in sampling.faults(model.card.sigma_min, model.card.sigma_max):
        raise ValueError(f"{field} {reason}")
    if sampling.guide or (sampling.is_guided and not model.card.can_leave_out_class):
        raise ValueError(f"guidance: {model.card.name} cannot guide itself, and no other model is asked here")
    return sampling


def results(
    evaluator: Evaluator,
    contestants: Sequence[Contestant],
    choices: Sequence[dict[str, Any]],
    rounds: Sequence[range],
    known: Callable[[Trial], Result | None] = lambda trial: None,
) -> Iterator[Result]:
    """Every model with every choice of sampling in every round of seeds; those known are not found again.

    Raises ValueError before the first when one cannot be sampled so.
    """
    plans = [(each, sampling_of(each.model, choice)) for each in contestants for choice in choices]
    for each, sampling in plans:
        for seeds in rounds:
            trial = _trial(evaluator, each.model, sampling, seeds)
            yield known(trial) or Result(
                model=each.name,
                D=each.model.card.D,
                trial=trial,
                evaluation=evaluator.evaluate(_watched(each.name, each.batches(seeds, sampling), len(seeds))),
                torch=torch.__version__,
            )


def _trial(evaluator: Evaluator, model: Model, sampling: Sampling, seeds: range) -> Trial:
    return Trial(
        sha256=model.sha256,
        sampling=sampling,
        first_seed=seeds.start,
        images=len(seeds),
        data=evaluator.data.name,
        fingerprint=evaluator.fingerprint,
        features=evaluator.network.about,
        classifier=evaluator.classifier.about if evaluator.classifier else None,
    )


def _watched(
    name: str, batches: Iterator[tuple[UInt8Array, list[int]]], total: int
) -> Iterator[tuple[UInt8Array, list[int]]]:
    """The same batches, with a progress bar until the last is there."""
    done = 0
    with bar(name) as report:
        for images, labels in batches:
            done += len(images)
            report(done, total)
            yield images, labels


def measured_with(evaluator: Evaluator, count: int) -> str:
    """Whose features are compared with what, in words."""
    classifier, name = evaluator.classifier, evaluator.data.name
    accuracy = f"right on {classifier.accuracy:.1%} of held-out images" if classifier else ""
    if evaluator.floor is not None:
        return (
            f"Features: of {evaluator.network.about}, {accuracy} (so this is no FID).\n"
            f"Fréchet distance between {count:,} real images and as many others: {evaluator.floor:.3f}."
        )
    recognises = f"{classifier.about}, {accuracy}" if classifier else f"nobody, for {name} has no classes"
    return (
        f"Features: of {evaluator.network.about}; FID is against all {len(evaluator.data):,} images of {name}.\n"
        f"Classes are recognised by {recognises}."
    )


def draw_neighbours(path: Path, evaluator: Evaluator, images: UInt8Array) -> None:
    """Generated images in a row, and under each the training image that is nearest to it."""
    gap = ((0, 0), (1, 1), (1, 1), (0, 0))
    framed = (np.pad(each, gap, constant_values=96) for each in (images, evaluator.neighbours(images)[0]))
    rows = [np.concatenate(list(each), axis=1) for each in framed]
    picture = Image.fromarray(np.concatenate(rows).squeeze())
    scale = max(1, 64 // images.shape[1])
    picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST).save(path, "PNG")


def write_csv(path: Path, field: str, found: Sequence[Result]) -> None:
    """One line for every model and value."""
    with path.open("w", newline="") as file:
        lines = csv.writer(file)
        varied = [] if field == "D" else [field]
        lines.writerow(["model", "D", *varied, *Evaluation.model_fields])
        for each in found:
            values = (getattr(each.trial.sampling, name) for name in varied)
            lines.writerow([each.model, format_D(each.D), *values, *each.evaluation.model_dump().values()])


def draw_study(path: Path, field: str, found: Sequence[Result], evaluator: Evaluator) -> None:
    """Fréchet distance and precision and recall against the field, a line for every model; or against D."""
    figure = Figure(figsize=(11, 5), layout="constrained")
    axes = figure.subplots(1, 2)
    by_D = field == "D"
    names = ["all"] if by_D else list(dict.fromkeys(each.model for each in found))
    for name in names:
        own = sorted((each for each in found if by_D or each.model == name), key=lambda each: _place(field, each))
        at = [str(format_D(each.D)) if by_D else _place(field, each) for each in own]
        axes[0].plot(at, [each.evaluation.frechet for each in own], marker="o", label=name)
        (line,) = axes[1].plot(at, [each.evaluation.precision for each in own], marker="o", label=f"{name}: precision")
        axes[1].plot(
            at, [each.evaluation.recall for each in own], "--", marker="s", color=line.get_color(), label="recall"
        )
    if evaluator.floor is not None:
        axes[0].axhline(evaluator.floor, color="grey", linewidth=1, linestyle=":", label="real against real")
    axes[0].set_ylabel(evaluator.network.measure)
    axes[1].set_ylabel("precision, recall")
    for each in axes:
        each.set_xlabel(field)
        each.grid(alpha=0.3)
        each.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=3)
    figure.suptitle(f"Features: {evaluator.network.about}", fontsize=10)
    figure.savefig(path, dpi=120)


def _place(field: str, result: Result) -> float:
    return result.D if field == "D" else float(getattr(result.trial.sampling, field))
