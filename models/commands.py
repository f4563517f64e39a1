"""The commands of the model side: `pfgmpp train` and `pfgmpp judge`. What they need is imported when one runs."""

from pathlib import Path
from typing import Annotated, Literal

import typer


def train(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped one such as `digits`.")],
    D: Annotated[str, typer.Option("--D", help='Augmentation dimension: a number > 0 or "inf".')],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The checkpoint to write.")] = None,
    device: Annotated[str, typer.Option(help="Device to train on, such as cpu or cuda.")] = "cpu",
    threads: Annotated[int | None, typer.Option(help="CPU threads; all cores by default.")] = None,
) -> None:
    """Train one model by a recipe and write its checkpoint."""
    import torch
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from models import checkpoint
    from models.card import format_D, parse_D
    from models.data import load_digits
    from models.train import read_recipe
    from models.train import train as run

    if threads:
        torch.set_num_threads(threads)
    try:
        dimension, chosen = parse_D(D), read_recipe(recipe)
        where = torch.device(device)
        torch.empty(0, device=where)
        if chosen.dataset != "digits":
            raise ValueError(f"dataset {chosen.dataset!r} is not known; this version trains on: digits")
    except (ValueError, OSError, RuntimeError, AssertionError) as error:
        raise typer.BadParameter(str(error).splitlines()[0]) from error
    columns = (
        TextColumn("D = {task.fields[D]}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[facts]}"),
    )
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("train", total=chosen.images, D=format_D(dimension), facts="")
        card, tensors = run(
            chosen,
            dimension,
            load_digits(),
            where,
            lambda at: bar.update(
                task,
                completed=at.images,
                facts=f"{at.images / max(1e-9, bar.tasks[task].elapsed or 0):,.0f} images/s  loss {at.loss:.4f}",
            ),
        )
    output = output or Path(f"{card.name}.safetensors")
    output.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save(output, card, tensors)
    typer.echo(f"wrote {output}")


def judge(
    files: Annotated[
        list[Path] | None, typer.Argument(help="Checkpoints of digits; the shipped ones if left out.")
    ] = None,
    count: Annotated[int, typer.Option(help="Images of each model.", min=10)] = 1000,
    steps: Annotated[int, typer.Option(help="Solver steps.", min=2)] = 18,
    precision: Annotated[
        Literal["exact", "fast"], typer.Option(help="float32, or what is fastest on this machine.")
    ] = "exact",
    threads: Annotated[int | None, typer.Option(help="CPU threads; all cores by default.")] = None,
) -> None:
    """Measure what models of the digits are worth and print the table of the README."""
    import torch
    from rich.console import Console
    from rich.progress import track

    from models.card import SHIPPED, CheckpointError, checkpoint_files, format_D
    from models.checkpoint import load
    from models.data import HELD_OUT
    from models.judge import Judge, balanced

    if threads:
        torch.set_num_threads(threads)
    try:
        models = [load(path) for path in files or checkpoint_files(SHIPPED)]
    except CheckpointError as error:
        raise typer.BadParameter(str(error)) from error
    judging = Judge()
    typer.echo(f"The classifier of real digits is right on {judging.accuracy:.1%} of {HELD_OUT} held-out ones.")
    typer.echo(f"Median distance of a held-out digit to the nearest training digit: {judging.real_nearest:.3f}.\n")
    typer.echo(
        "| model | images | class recognised | distance to nearest training digit | nearer than 99 % of real ones |"
    )
    typer.echo("|---|---|---|---|---|")
    for model in track(sorted(models, key=lambda model: model.card.D), "judging", console=Console(stderr=True)):
        verdict = judging.judge(*balanced(model, count, steps, precision=precision))
        typer.echo(
            f"| {model.card.dataset}, D = {format_D(model.card.D)} | {verdict.images:,} | {verdict.recognised:.1%} "
            f"| {verdict.nearest:.3f} | {verdict.copies:.1%} |"
        )
