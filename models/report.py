"""Tables, CSV files, plots and pictures of what models are worth: the commands `evaluate` and `study`."""

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from pydantic import ValidationError

from models.card import field_errors, format_D
from models.checkpoint import Model, load
from models.data import Dataset, UInt8Array, cache_folder, load_digits, load_images
from models.evaluate import Evaluation, Evaluator
from models.generate import BALANCED_BATCH, Generator, balanced
from models.quantize import quantized
from models.sampling import Sampling
from models.shapes import steady_shapes

HEAD = (
    "| model | sampled with | Fréchet distance | kernel distance | precision | recall | recognised | nearest |\n"
    "|---|---|---|---|---|---|---|---|"
)


class Result(NamedTuple):
    """An evaluation, and of what."""

    model: str
    D: float
    choice: dict[str, Any]
    evaluation: Evaluation

    @property
    def row(self) -> str:
        """A row of the table under HEAD."""
        each = self.evaluation
        choice = ", ".join(f"{name} {value}" for name, value in self.choice.items()) or "the defaults"
        recognised = "" if each.recognised is None else f"{each.recognised:.1%}"
        return (
            f"| {self.model} | {choice} | {each.frechet:.3f} | {each.kernel:.5f} | {each.precision:.3f} "
            f"| {each.recall:.3f} | {recognised} | {each.nearest:.3f} |"
        )


def data_of(path: Path | None) -> Dataset:
    """The images of a ZIP or folder, or the digits."""
    return load_digits() if path is None else load_images(path, cache_folder())


def models_of(files: Sequence[Path], data: Dataset) -> list[Model]:
    """Models of images like those of a data set. Raises ValueError naming one that is not."""
    found = [load(file) for file in files]
    for file, model in zip(files, found, strict=True):
        about = (model.card.shape, len(model.card.classes))
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
    models: Sequence[Model],
    choices: Sequence[dict[str, Any]],
    count: int,
    keep: Callable[[UInt8Array], object] = lambda images: None,
) -> Iterator[Result]:
    """Every model with every choice of sampling; `keep` is given the images of each."""
    plans = [(model, choice, sampling_of(model, choice)) for model in models for choice in choices]
    for model, choice, sampling in plans:
        chosen = model
        if sampling.bits:
            chosen = Model(
                model.card, quantized(model.network, sampling.bits, sampling.quantized), model.sha256, model.device
            )
        images, labels = balanced(Generator(chosen, steady_shapes(chosen, BALANCED_BATCH)), count, sampling)
        keep(images)
        yield Result(model.card.name, model.card.D, choice, evaluator.evaluate(images, labels))


def write_json(path: Path, evaluator: Evaluator, found: Sequence[Result]) -> None:
    """All figures, and what they were measured with."""
    about = {
        "features": f"a classifier of {evaluator.classifier.task} of {evaluator.data.name}, trained here",
        "classifier_accuracy": evaluator.classifier.accuracy,
        "frechet_of_real_images": evaluator.floor,
        "torch": torch.__version__,
        "results": [
            {"model": each.model, "D": format_D(each.D), "sampling": each.choice, **each.evaluation._asdict()}
            for each in found
        ],
    }
    path.write_text(json.dumps(about, indent=1))


def write_neighbours(path: Path, images: UInt8Array, nearest: UInt8Array) -> None:
    """Generated images in a row, and under each the training image that is nearest to it."""
    gap = ((0, 0), (1, 1), (1, 1), (0, 0))
    framed = (np.pad(each, gap, constant_values=96) for each in (images, nearest))
    rows = [np.concatenate(list(each), axis=1) for each in framed]
    picture = Image.fromarray(np.concatenate(rows).squeeze())
    scale = max(1, 64 // images.shape[1])
    picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST).save(path, "PNG")


def write_csv(path: Path, field: str, found: Sequence[Result]) -> None:
    """One line for every model and value."""
    with path.open("w", newline="") as file:
        lines = csv.writer(file)
        varied = [] if field == "D" else [field]
        lines.writerow(["model", "D", *varied, *Evaluation._fields])
        for each in found:
            lines.writerow([each.model, format_D(each.D), *(each.choice[name] for name in varied), *each.evaluation])


def draw_study(path: Path, field: str, found: Sequence[Result], floor: float) -> None:
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
    axes[0].axhline(floor, color="grey", linewidth=1, linestyle=":", label="real against real")
    axes[0].set_ylabel("Fréchet distance")
    axes[1].set_ylabel("precision, recall")
    for each in axes:
        each.set_xlabel(field)
        each.grid(alpha=0.3)
        each.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=3)
    figure.suptitle("In the features of a classifier that was trained here", fontsize=10)
    figure.savefig(path, dpi=120)


def _place(field: str, result: Result) -> float:
    return result.D if field == "D" else float(result.choice[field])
