"""What `pfgmpp train` does: from its options to a checkpoint, with a progress bar, sample grids and a clean stop."""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import ceil, sqrt
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from models import checkpoint
from models.card import format_D, parse_D
from models.checkpoint import Model
from models.data import Dataset, cache_folder, load_digits, load_images
from models.generate import Generator
from models.recipe import Recipe, read_recipe
from models.shapes import Shapes
from models.train import ALONE, Folder, Place, Progress, Run, TrainError
from models.train import train as train_run

SAMPLES = 36
"""Images of a sample grid."""


class Stopped(Exception):
    """A run was asked to stop before its end; the message says how to go on."""


class Plan(NamedTuple):
    """The options of `pfgmpp train`."""

    recipe: str
    D: str
    data: Path | None
    name: str | None
    terms: str
    output: Path | None
    folder: Path | None
    resume: bool
    transfer: Path | None
    changes: Sequence[str]
    save_seconds: float
    device: str
    compiles: bool
    threads: int | None
    is_dry: bool


def carry_out(plan: Plan) -> str:
    """Train; what came of it in words, "" in all processes but the first. Raises Stopped when it was asked to stop.

    Raises ValueError, or OSError, naming what is wrong with the plan, and FloatingPointError for a loss that is not
    finite.
    """
    if plan.threads:
        torch.set_num_threads(plan.threads)
    recipe, D = read_recipe(plan.recipe, plan.changes), parse_D(plan.D)
    with _processes(plan.device) as (place, device), _stopping() as is_to_stop:
        data = _data(plan, recipe, place)
        data = replace(data, name=plan.name or data.name)
        name = f"{data.name}-d{format_D(D)}"
        output = plan.output or Path(f"{name}.safetensors")
        if not plan.is_dry:
            _check_output(output)
        run = Run(recipe, D, data, device, place, plan.compiles)
        if plan.transfer:
            run.transfer(plan.transfer)
        if plan.is_dry:
            run.close()
            return _described(run)
        folder = Folder(plan.folder or Path("runs") / name)
        _begin(run, folder, plan.resume)
        with _bar(run) as report:
            progress = train_run(
                run,
                report,
                folder,
                save_seconds=plan.save_seconds,
                on_save=lambda run: _draw_samples(run, folder),
                is_to_stop=is_to_stop,
            )
        if place.rank:
            return ""
        if not run.is_done:
            raise Stopped(f"stopped after {run.images_seen:,} images; --resume goes on from {folder.state}")
        act = "replaced" if output.exists() else "wrote"
        checkpoint.save(output, run.card(progress), run.tensors())
        return f"{act} {output}"


def _described(run: Run) -> str:
    """What a run would train, and on what, in words."""
    data, recipe = run.data, run.recipe
    parameters, seen = sum(each.numel() for each in run.network.parameters()), recipe.images / len(data)
    sizes = ", ".join(f"{share:.0%} of {size} pixels" for size, share in run.sizes.items())
    kind = f"{'x'.join(map(str, data.shape))}, {len(data.classes)} classes, {data.license}"
    return (
        f"data     {data.name}: {len(data):,} images {kind}\n"
        f"network  {parameters:,} parameters ({4e-6 * parameters:.1f} MB), D = {format_D(run.D)}, on {run.device}\n"
        f"steps    {run.steps_left:,} of {recipe.batch:,} images: {seen:,.1f} times the data set\n"
        f"sizes    {sizes}"
    )


def _check_output(output: Path) -> None:
    """Raise TrainError now, not when all is trained, where a checkpoint could not be written."""
    if output.exists() and not output.is_file():
        raise TrainError(f"{output}: is there, and no file that could be replaced")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=output.parent):
            pass
    except OSError as error:
        raise TrainError(f"--output {output}: cannot be written ({error.strerror})") from error


@contextmanager
def _processes(device: str) -> Iterator[tuple[Place, torch.device]]:
    """This process among those of torchrun, and its device; alone without it."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    try:
        chosen = torch.device(device)
        if world > 1 and chosen.type == "cuda" and chosen.index is None:
            chosen = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        if chosen.type not in {"cpu", "cuda"}:
            raise RuntimeError("must be cpu, cuda or cuda:N")
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise TrainError(f"--device {device}: {str(error).splitlines()[0]}") from error
    if world == 1:
        yield ALONE, chosen
        return
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield Place(dist.get_rank(), world), chosen
    finally:
        dist.destroy_process_group()


@contextmanager
def _stopping() -> Iterator[Callable[[], bool]]:
    """Whether this process was asked to stop: SIGINT and SIGTERM ask, a second one kills."""
    asked = list[int]()
    before = dict[int, Any]()

    def ask(number: int, frame: object) -> None:
        asked.append(number)
        signal.signal(number, before[number])

    for asks in (signal.SIGINT, signal.SIGTERM):
        before[asks] = signal.signal(asks, ask)
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _data(plan: Plan, recipe: Recipe, place: Place) -> Dataset:
    """The data set of a run; the first process decodes it, and the others map what it has decoded."""
    if plan.data is None:
        if recipe.dataset != "digits":
            raise TrainError(f"recipe {plan.recipe} is for {recipe.dataset}: name its images with --data")
        return load_digits()
    if place.rank:
        dist.barrier()
    with Bar(TextColumn("decoding"), BarColumn(), MofNCompleteColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("decoding", total=None, visible=False)

        def report(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, visible=True)

        data = load_images(plan.data, cache_folder(), recipe.dataset, plan.terms, report)
    if place.world > 1 and not place.rank:
        dist.barrier()
    return data


def _begin(run: Run, folder: Folder, resume: bool) -> None:
    """Begin a run, or go on with one."""
    if folder.state.exists() and not resume:
        raise TrainError(f"{folder.path} holds a run: --resume goes on with it, --run-dir names another folder")
    if resume and not folder.state.exists():
        raise TrainError(f"{folder.state}: there is no run to go on with")
    if resume:
        run.load(folder.state)
    if run.place.rank == 0:
        folder.begin(run.images_seen)


@contextmanager
def _bar(run: Run) -> Iterator[Callable[[Progress], None]]:
    """A progress bar of a run, on standard error; of the first process alone."""
    facts = "{task.fields[facts]}"
    columns = (TextColumn(f"D = {format_D(run.D)}"), BarColumn(), MofNCompleteColumn(), TextColumn(facts))
    with Bar(*columns, TimeRemainingColumn(), console=Console(stderr=True), disable=run.place.rank > 0) as bar:
        task = bar.add_task("train", total=run.recipe.images, completed=run.images_seen, facts="")
        began = run.images_seen

        def report(at: Progress) -> None:
            speed = (at.images - began) / max(1e-9, bar.tasks[task].elapsed or 0)
            bar.update(task, completed=at.images, facts=f"{speed:,.0f} images/s  loss {at.loss:.4f}")

        yield report


def _draw_samples(run: Run, folder: Folder) -> None:
    """A grid of what the averaged weights make of the first seeds, classes in turn."""
    card = run.card(Progress(run.images_seen, 0.0, 0.0, 0.0))
    generator = Generator(Model(card, run.ema, "", run.device), Shapes((SAMPLES,), (1.0,)))
    classes = len(card.classes)
    labels = [seed % classes if classes else None for seed in range(SAMPLES)]
    try:
        images = generator.images(range(SAMPLES), labels, card.default_steps)
    except FloatingPointError:
        return  # too early; the loss tells
    side = ceil(sqrt(SAMPLES))
    rows = [np.concatenate(list(images[k : k + side]), axis=1) for k in range(0, SAMPLES, side)]
    picture = Image.fromarray(np.concatenate(rows).squeeze())
    picture = picture.resize((picture.width * 2, picture.height * 2), Image.Resampling.NEAREST)
    picture.save(folder.path / f"samples-{run.images_seen:010d}.png")
