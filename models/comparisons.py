"""The commands that tell what models are worth: judge, evaluate, study, race, toy, solvers."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from models.commands import give_up

if TYPE_CHECKING:
    from models.evaluate import Evaluator
    from models.report import Contestant


def judge(
    files: Annotated[
        list[Path] | None, typer.Argument(help="Checkpoints of digits; the shipped ones if left out.")
    ] = None,
    count: Annotated[int, typer.Option(help="Images of each model.", min=10, max=1_000_000)] = 1000,
    steps: Annotated[int, typer.Option(help="Solver steps.", min=2)] = 18,
    guidance: Annotated[float, typer.Option(help="Of the model by itself; 1 for none.", min=0, max=100)] = 1.0,
    precision: Annotated[
        Literal["exact", "fast", "bfloat16"],
        typer.Option(help="float32; what is fastest on this machine; or half precision even where it is slow."),
    ] = "exact",
    threads: Annotated[int | None, typer.Option(help="CPU threads; all cores by default.", min=1)] = None,
) -> None:
    """Measure what models of the digits are worth and print the table of docs/models.md."""
    import torch
    from rich.console import Console
    from rich.progress import track

    from models.card import SHIPPED, CheckpointError, checkpoint_files, format_D
    from models.checkpoint import load
    from models.data import HELD_OUT
    from models.generate import balanced
    from models.judge import Judge, generator_of
    from models.sampling import Sampling

    if threads:
        torch.set_num_threads(threads)
    try:
        models = [load(path) for path in files or checkpoint_files(SHIPPED)]
    except CheckpointError as error:
        raise typer.BadParameter(str(error)) from error
    for model in models:
        if (model.card.shape, len(model.card.classes)) != ((1, 8, 8), 10):
            raise typer.BadParameter(f"{model.card.name} is no model of the digits, which alone can be judged")
        if guidance != 1 and not model.card.can_leave_out_class:
            raise typer.BadParameter(f"--guidance {guidance:g}: {model.card.name} was not trained with label_dropout")
    judging, sampling = Judge(), Sampling(steps=steps, guidance=guidance)
    typer.echo(f"The classifier of real digits is right on {judging.accuracy:.1%} of {HELD_OUT} held-out ones.")
    typer.echo(f"Median distance of a held-out digit to the nearest training digit: {judging.real_nearest:.3f}.\n")
    typer.echo(
        "| model | images | class recognised | distance to nearest training digit | nearer than 99 % of real ones |"
    )
    typer.echo("|---|---|---|---|---|")
    for model in track(sorted(models, key=lambda model: model.card.D), "judging", console=Console(stderr=True)):
        verdict = judging.judge(*balanced(generator_of(model, precision), count, sampling))
        typer.echo(
            f"| {model.card.dataset}, D = {format_D(model.card.D)} | {verdict.images:,} | {verdict.recognised:.1%} "
            f"| {verdict.nearest:.3f} | {verdict.copies:.1%} |"
        )


Files = Annotated[list[Path], typer.Argument(help="Checkpoints, or folders of them.")]
Data = Annotated[
    Path | None, typer.Option("--data", help="A ZIP or folder of the images that they were trained on; the digits.")
]
Count = Annotated[
    int, typer.Option(help="Images of each; without --inception the data set must have twice as many.", min=20)
]
Weights = Annotated[
    Path | None,
    typer.Option(
        "--inception", help="inception-2015-12-05.pt of StyleGAN2-ADA, for FID; else a classifier is trained."
    ),
]
Fit = Annotated[int, typer.Option("--classifier-images", help="That the classifier sees in training.", min=128)]
Threads = Annotated[int | None, typer.Option(help="CPU threads; all cores by default.", min=1)]


def evaluate(
    files: Files,
    data: Data = None,
    count: Count = 600,
    first_seed: Annotated[int, typer.Option(help="Of the images; the others follow.", min=0, max=2**62)] = 0,
    rounds: Annotated[
        int, typer.Option(help="Of count images each, with other seeds; the least distance is named too.", min=1)
    ] = 1,
    chosen: Annotated[
        list[str] | None, typer.Option("-s", "--set", help="How to sample, such as solver=ipndm; repeatable.")
    ] = None,
    neighbours: Annotated[
        Path | None, typer.Option(help="A PNG of images, and under each the training image nearest to it.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--json", help="Keep all figures there; what it holds already is not computed again.")
    ] = None,
    weights: Weights = None,
    fit: Fit = 120_000,
    threads: Threads = None,
) -> None:
    """Compare images of models with their data set, by features of Inception or of a classifier trained on it first."""
    from models.figures import Figures, Minimum
    from models.report import draw_neighbours, minimum_row, results, row, sampling_of

    try:
        choice = _choice(chosen or [])
        figures = Figures.read(output) if output else Figures()
        if neighbours:
            _check_picture("--neighbours", neighbours)
        evaluator, models = _evaluator(files, [choice], data, count, weights, fit, threads)
        seeds = [range(start, start + count) for start in range(first_seed, first_seed + rounds * count, count)]
        found = []
        for each in results(evaluator, models, [choice], seeds, figures.find):
            typer.echo(row(each))
            figures.add(each)
            found.append(each)
            if rounds > 1 and len(found) % rounds == 0:
                minimum = Minimum.of(found[-rounds:])
                typer.echo(minimum_row(minimum))
                figures.add(minimum)
            if output:
                figures.write(output)
        if neighbours:
            sampling = sampling_of(models[0].model, choice)
            draw_neighbours(neighbours, evaluator, next(models[0].batches(seeds[0][:16], sampling))[0])
    except (ValueError, OSError, ArithmeticError) as error:
        give_up(str(error))


def study(
    field: Annotated[
        str, typer.Argument(help="What to vary: D, or a field of sampling such as alpha, bits, steps, guidance.")
    ],
    files: Files,
    values: Annotated[str | None, typer.Option(help="Of the field, with commas, such as 0,0.1,0.2.")] = None,
    data: Data = None,
    count: Count = 600,
    output: Annotated[Path, typer.Option("-o", "--output", help="The plot; a CSV file is written beside it.")] = Path(
        "study.png"
    ),
    weights: Weights = None,
    fit: Fit = 120_000,
    threads: Threads = None,
) -> None:
    """Draw how good models are against D, or against how they are sampled: the reason to choose D."""
    from models.report import draw_study, results, row, write_csv

    try:
        if (values is None) != (field == "D"):
            raise ValueError("--values: needed for every field but D, which is that of the files")
        _check_picture("--output", output)
        choices = [_choice([f"{field}={value}"]) for value in values.split(",")] if values else [{}]
        evaluator, models = _evaluator(files, choices, data, count, weights, fit, threads)
        found = []
        for each in results(evaluator, models, choices, [range(count)]):
            typer.echo(row(each))
            found.append(each)
        write_csv(output.with_suffix(".csv"), field, found)
        draw_study(output, field, found, evaluator)
    except (ValueError, OSError, ArithmeticError) as error:
        give_up(str(error))
    typer.echo(f"wrote {output} and {output.with_suffix('.csv')}", err=True)


def _evaluator(
    files: list[Path],
    choices: Sequence[dict[str, Any]],
    data: Path | None,
    count: int,
    weights: Path | None,
    fit: int,
    threads: int | None,
) -> "tuple[Evaluator, list[Contestant]]":
    """The evaluator of a data set, and the models, which must be of such images and can be sampled in every such way.

    Says what it measures with, above the head of the table.
    """
    import torch

    from models.bar import bar
    from models.evaluate import Evaluator
    from models.inception import Inception
    from models.report import contestants, data_of, files_of, head, measured_with, sampling_of

    if threads:
        torch.set_num_threads(threads)
    inception = Inception(weights) if weights else None
    images = data_of(data)
    models = contestants(files_of(files), images)
    for choice in choices:  # before the classifier is trained
        for each in models:
            sampling_of(each.model, choice)
    with bar(f"real images of {images.name}") as report:
        evaluator = Evaluator(images, count, fit, inception, report)
    typer.echo(f"{measured_with(evaluator, count)}\n\n{head(evaluator.network.measure)}")
    return evaluator, models


def _check_picture(option: str, path: Path) -> None:
    """Raise ValueError where no picture can be written."""
    if path.suffix != ".png" or not path.parent.is_dir():
        raise ValueError(f"{option} {path}: must be a .png in a directory that exists")


def _choice(settings: list[str]) -> dict[str, Any]:
    """Fields of sampling from `name=value`. Raises ValueError naming one that is none."""
    import json

    from models.sampling import Sampling

    chosen = dict[str, Any]()
    for setting in settings:
        name, _, value = setting.partition("=")
        if name not in Sampling.model_fields or name in {"trajectory", "guide", "window"} or not value:
            raise ValueError(f"{setting}: must be NAME=VALUE, a field of how to sample")
        try:
            chosen[name] = json.loads(value)
        except ValueError:
            chosen[name] = value
    return chosen


def race(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped one such as `digits`.")],
    D: Annotated[str, typer.Option("--D", help='Augmentation dimension: a number > 0 or "inf".')],
    against: Annotated[
        list[str] | None,
        typer.Option("--against", help="Changes to it, such as 'patch.real_p=0.5 batch=64'; again for more."),
    ] = None,
    data: Data = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="Settings of all of them, such as decay=none.")
    ] = None,
    seconds: Annotated[float, typer.Option(help="Computing time of each.", min=1)] = 600,
    marks: Annotated[int, typer.Option(help="How often each is judged on the way.", min=1, max=100)] = 8,
    seeds: Annotated[int, typer.Option(help="Runs of each.", min=1, max=100)] = 3,
    count: Annotated[int, typer.Option(help="Images of each judgement.", min=20)] = 600,
    output: Annotated[Path, typer.Option("-o", "--output", help="The plot; a CSV file is written beside it.")] = Path(
        "race.png"
    ),
    fit: Fit = 120_000,
    device: Annotated[str, typer.Option(help="Device to train on, such as cpu or cuda.")] = "cpu",
    threads: Threads = None,
) -> None:
    """Train a recipe and variants of it for equal computing time, in turns, and draw how good each becomes."""
    import torch
    from rich.console import Console

    from models.card import parse_D
    from models.evaluate import Evaluator
    from models.race import draw_race, verdicts, write_marks
    from models.race import race as run_race
    from models.recipe import read_recipe
    from models.report import data_of

    if threads:
        torch.set_num_threads(threads)
    try:
        _check_picture("--output", output)
        recipes = {recipe: read_recipe(recipe, changes or ())}
        recipes |= {each: read_recipe(recipe, [*(changes or ()), *each.split()]) for each in against or ()}
        images, dimension, on = data_of(data), parse_D(D), torch.device(device)
        evaluator = Evaluator(images, count, fit)
        found = []
        with Console(stderr=True).status("") as status:
            places = [seconds * (k + 1) / marks for k in range(marks)]
            for mark in run_race(recipes, dimension, images, evaluator, on, places, seeds, count, status.update):
                found.append(mark)
                write_marks(output.with_suffix(".csv"), found)
        draw_race(output, found, f"{images.name}, D = {D}, in the features of a classifier that was trained here")
    except (ValueError, OSError, RuntimeError, ArithmeticError) as error:
        give_up(str(error))
    typer.echo("| recipe | images/s | Fréchet distance | of the first's | as good as it after |\n|---|---|---|---|---|")
    for each in verdicts(found):
        reached = "never" if each.reached == float("inf") else f"{each.reached:.0%} of the time"
        typer.echo(
            f"| {each.recipe} | {each.images_per_second:,.0f} | {each.frechet:.3f} | {each.ratio:.2f} | {reached} |"
        )


def toy(
    dimensions: Annotated[str, typer.Option("--D", help='Numbers > 0 or "inf", with commas.')] = "1,100,inf",
    steps: Annotated[int, typer.Option(help="Of training.", min=1)] = 2000,
    count: Annotated[int, typer.Option(help="Points that are drawn.", min=2, max=10_000)] = 1000,
    threads: Threads = None,
) -> None:
    """See the method at work in a minute: a small network learns two Gaussians on a plane in 1,000 dimensions."""
    import numpy as np
    import torch

    from models import toy as game
    from models.card import format_D, parse_D

    if threads:
        torch.set_num_threads(threads)
    try:
        chosen = [parse_D(each) for each in dimensions.split(",")]
    except ValueError as error:
        give_up(f"--D {dimensions}: {error}")
    plane = game.Plane(np.random.default_rng(0))
    real = plane.draw(count)
    typer.echo(f"Discrepancy (squared MMD, five kernels) of {count:,} points from as many others of the data.\n")
    typer.echo("| points | discrepancy |\n|---|---|")
    typer.echo(f"| of the data | {game.discrepancy(plane.draw(count), real):.4f} |")
    for D in chosen:
        points = game.sampled(game.trained(plane, D, steps), D, count)
        typer.echo(f"| D = {format_D(D)} | {game.discrepancy(points, real):.4f} |")
    noise = torch.randn(real.shape) * plane.deviation
    typer.echo(f"| of the data, with as much noise | {game.discrepancy(plane.draw(count) + noise, real):.4f} |")
    typer.echo(f"| noise alone, of the data's size | {game.discrepancy(noise, real):.4f} |")
    across = game.N - game.DIMENSIONS
    typer.echo(
        f"\n0 is alike. The network is {game.WIDTH} wide, and cannot take noise out of the {across} directions across\n"
        "the plane: a model that is right along it comes as near as the data with as much noise, and no nearer."
    )


def solvers(
    files: Annotated[
        list[Path] | None, typer.Argument(help="Checkpoints; the shipped ones of D = 128 and inf if left out.")
    ] = None,
    count: Annotated[int, typer.Option(help="Images of each.", min=1, max=4096)] = 64,
    evaluations: Annotated[str, typer.Option(help="Most network evaluations of an image, with commas.")] = "5,10,18,35",
    threads: Annotated[int, typer.Option(help="CPU threads.", min=1)] = 1,
) -> None:
    """Measure how near each solver comes to the end of the path with few evaluations, and print the table."""
    import torch
    from rich.console import Console
    from rich.progress import track

    from models.card import SHIPPED, CheckpointError, format_D
    from models.checkpoint import load
    from models.convergence import FEWEST_EVALUATIONS, rows

    torch.set_num_threads(threads)
    try:
        most = [int(each) for each in evaluations.split(",")]
        if min(most) < FEWEST_EVALUATIONS:
            raise ValueError
        models = [load(path) for path in files or (SHIPPED / f"digits-d{D}.safetensors" for D in ("128", "inf"))]
    except CheckpointError as error:
        raise typer.BadParameter(str(error)) from error
    except ValueError as error:
        raise typer.BadParameter(
            f"--evaluations {evaluations}: whole numbers from {FEWEST_EVALUATIONS} on, with commas between them"
        ) from error
    typer.echo("| model | solver | evaluations | distance to the converged image | seconds per image |")
    typer.echo("|---|---|---|---|---|")
    for model in models:
        name = f"{model.card.dataset}, D = {format_D(model.card.D)}"
        for row in track(rows(model, most, count), name, console=Console(stderr=True)):
            typer.echo(f"| {name} | {row.solver} | {row.evaluations} | {row.distance:.3f} | {row.seconds:.4f} |")
