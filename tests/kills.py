"""Does training survive being killed? `python -m tests.kills` kills a run at random moments and compares.

It is no part of `pfgmpp bench`, for it measures no speed; the tests do the same, with a small network and fewer kills.
"""

import json
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from safetensors import safe_open
from safetensors.torch import load_file

from bench.running import until
from models.recipe import read_recipe
from models.train import STATE_KEY, Folder
from service.cli import app
from service.embedded import die_with_parent

STEPS = 20
"""Of `pfgmpp train` between two lines of the log; a run that saves as often as it can saves after each."""

LINE_SECONDS = 600.0
"""Within which a line must come."""


class Kill(NamedTuple):
    """A kill: the images of the last line of the log, whether a save was cut off, and from where the run can go on."""

    images: int
    was_saving: bool
    resumes_from: int


@dataclass(frozen=True)
class Trial:
    """A run of so many images by a recipe, on one thread, and the folder for all that it leaves."""

    recipe: str
    images: int
    folder: Path
    save_seconds: float = 300

    @property
    def kept(self) -> Folder:
        """Its log and its state."""
        return Folder(self.folder / "run")

    @property
    def checkpoint(self) -> Path:
        """What it has made when it is done."""
        return self.folder / "model.safetensors"

    @property
    def temporary(self) -> Path:
        """What a save writes before it is complete."""
        return self.kept.state.with_suffix(".partial")

    @property
    def said(self) -> Path:
        """What the last process printed."""
        return self.folder / "said.txt"

    def lines(self) -> list[dict[str, Any]]:
        """The complete lines of the log."""
        text = self.kept.log.read_text() if self.kept.log.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    @property
    def line_seconds(self) -> float:
        """How long a line of the log took."""
        lines = self.lines()
        return float(lines[-1]["seconds"]) / len(lines)

    def saved_images(self) -> int:
        """How many images the state has seen; 0 without one."""
        if not self.kept.state.exists():
            return 0
        with safe_open(self.kept.state, "pt") as file:
            return int(json.loads(file.metadata()[STATE_KEY])["images_seen"])

    def arguments(self) -> list[str]:
        """Of the `pfgmpp` that begins it, or goes on with it."""
        options = {
            "--D": 2048,
            "--images": self.images,
            "--threads": 1,
            "--save-seconds": self.save_seconds,
            "--run-dir": self.kept.path,
            "-o": self.checkpoint,
        }
        flags = ["--resume"] if self.kept.state.exists() else []
        return ["train", self.recipe, *(str(each) for option in options.items() for each in option), *flags]

    def finish(self) -> None:
        """Train to the end, in this process."""
        app(self.arguments(), standalone_mode=False)

    def kill(self, lines: int, seconds: float | None) -> Kill:
        """Go on in a process that is killed so long after so many lines; with None, in the next save after them.

        Raises RuntimeError when it has ended before.
        """
        log, temporary = stamp(self.kept.log), stamp(self.temporary)

        def has_come_so_far() -> bool:
            return process.poll() is not None or (stamp(self.kept.log) != log and len(self.lines()) >= lines)

        def is_saving() -> bool:
            return stamp(self.temporary) not in {0, temporary}

        with self._going_on() as process:
            until(has_come_so_far, LINE_SECONDS)
            if seconds is None:
                until(lambda: process.poll() is not None or is_saving(), LINE_SECONDS, pause_seconds=0.001)
            else:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(seconds)
            process.kill()
        if process.returncode != -signal.SIGKILL:
            status, said = process.returncode, self.said.read_text()
            raise RuntimeError(f"the run ended before it was killed, with status {status}: {said}")
        images = self.lines()[-1]["images"] if self.lines() else 0
        return Kill(images, is_saving(), self.saved_images())

    def _going_on(self) -> "subprocess.Popen[bytes]":
        """A process that begins it, or goes on with it."""
        self.folder.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "service", *self.arguments()]
        with self.said.open("w") as said:
            return subprocess.Popen(
                command,
                stdout=said,
                stderr=said,
                preexec_fn=die_with_parent(),  # noqa: PLW1509
            )


def stamp(path: Path) -> int:
    """When a file was last written, in nanoseconds; 0 when it is not there."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def killed(trial: Trial, kills: int, line_seconds: float, seed: int) -> Iterator[Kill]:
    """Kill a run so often, at moments over all its length, every other time in a save; then let it finish."""
    rng = random.Random(seed)
    lines = trial.images / (STEPS * read_recipe(trial.recipe).batch)
    for k, moment in enumerate(sorted(rng.uniform(0, lines - 1) for _ in range(kills))):
        yield trial.kill(int(moment), None if k % 2 else moment % 1 * line_seconds)
    trial.finish()


def differences(one: Trial, other: Trial) -> list[str]:
    """In what two finished runs differ: logs but for their times, checkpoints and states to the bit."""
    logs = [[{**line, "seconds": None} for line in trial.lines()] for trial in (one, other)]
    found = [] if logs[0] == logs[1] else [f"the logs, of {len(logs[0])} and {len(logs[1])} lines"]
    files = {"checkpoint": (one.checkpoint, other.checkpoint), "state": (one.kept.state, other.kept.state)}
    for what, paths in files.items():
        ours, theirs = (load_file(path) for path in paths)
        unequal = [name for name in ours.keys() | theirs.keys() if not _is_equal(ours.get(name), theirs.get(name))]
        found += [f"the {what}'s {name}" for name in sorted(unequal)]
    return found


def _is_equal(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    return one is not None and other is not None and one.dtype == other.dtype and torch.equal(one, other)


def main(
    recipe: Annotated[str, typer.Argument(help="A recipe for digits.")] = "digits",
    kills: Annotated[int, typer.Option(help="How often.", min=1)] = 10,
    images: Annotated[int, typer.Option(help="Of both runs.", min=1)] = 25_600,
    seed: Annotated[int, typer.Option(help="Of the moments.")] = 0,
) -> None:
    """Train twice, once without interruption and once with kills; the exit status is 1 when that makes a difference."""
    with tempfile.TemporaryDirectory(prefix="pfgmpp-kills-") as folder:
        alone = Trial(recipe, images, Path(folder) / "alone")
        other = Trial(recipe, images, Path(folder) / "killed", save_seconds=0)
        alone.finish()
        for k, kill in enumerate(killed(other, kills, alone.line_seconds, seed), 1):
            where = " in a save" if kill.was_saving else ""
            typer.echo(f"kill {k}{where}, after {kill.images:,} images; goes on from {kill.resumes_from:,}")
        found = differences(alone, other)
    typer.echo(f"differs in {', '.join(found)}" if found else "the same log, checkpoint and state, to the bit")
    raise typer.Exit(bool(found))


if __name__ == "__main__":
    typer.run(main)
