"""`pfgmpp train`, `judge` and `solvers`, as far as seconds allow."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from bench.running import until
from bench.stores import exact_checkpoint
from models import commands, comparisons
from models.card import SHIPPED, read_card
from models.checkpoint import load, save
from models.recipe import RECIPES
from service.cli import app as pfgmpp
from tests.kills import Trial, differences, killed
from tests.models.test_data import FILES, LABELS, described, written

app = typer.Typer()
app.command()(commands.train)
app.command()(comparisons.judge)
app.command()(comparisons.solvers)


def plain(output: str) -> str:
    """An output without colours, frames and white space, which depend on the terminal."""
    return re.sub(r"\x1b\[[0-9;]*m|[│\s]", "", output)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """The shipped recipe, cut down to a few batches, and to grids of few steps."""
    text = (RECIPES / "digits.toml").read_text()
    smaller = {
        "300_000": "64",
        "batch = 128": "batch = 8",
        "model_channels = 32": "model_channels = 8",
        "default_steps = 18": "default_steps = 2",
    }
    for old, new in smaller.items():
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return path


def test_train_writes_a_checkpoint(recipe: Path, tmp_path: Path) -> None:
    output, run = tmp_path / "new" / "model.safetensors", tmp_path / "run"
    asked = ["train", str(recipe), "--D", "inf", "-o", str(output), "--threads", "1", "--run-dir", str(run)]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    assert plain(f"wrote {output}") in plain(done.output)
    assert read_card(output).name == "digits-dinf"
    assert {each.name for each in run.iterdir()} == {"log.jsonl", "state.safetensors", "samples-0000000064.png"}
    with Image.open(run / "samples-0000000064.png") as grid:
        assert grid.size == (96, 96)
    again = CliRunner().invoke(app, asked)
    assert (again.exit_code, plain("holds a run: --resume goes on") in plain(again.output)) == (2, True)
    longer = CliRunner().invoke(app, [*asked, "--resume", "--images", "128"])
    assert longer.exit_code == 0, longer.output
    assert read_card(output).training["images"] == 128
    nowhere = CliRunner().invoke(app, [*asked, "-o", str(tmp_path), "--resume"])
    assert (nowhere.exit_code, "no file that could be replaced" in nowhere.output) == (2, True)
    named = CliRunner().invoke(app, [*asked[:-1], str(tmp_path / "named"), "--name", "digits-early"])
    assert named.exit_code == 0, named.output
    assert read_card(output).name == "digits-early-dinf"
    first = CliRunner().invoke(app, [*asked[:-1], str(tmp_path / "other"), "--resume"])
    assert (first.exit_code, "there is no run to go on with" in first.output) == (2, True)


def test_train_takes_images_from_a_zip(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    archive = written(tmp_path / "noise.zip", FILES | described(LABELS))
    recipe.write_text(recipe.read_text().replace('"digits"', '"noise"'))
    output = tmp_path / "noise.safetensors"
    asked = ["train", str(recipe), "--D", "2", "-o", str(output), "--threads", "1", "--run-dir", str(tmp_path / "run")]
    done = CliRunner().invoke(app, [*asked, "--data", str(archive), "--licence", "CC0"])
    assert done.exit_code == 0, done.output
    card = read_card(output)
    assert (card.name, card.classes, card.channels, card.license) == ("noise-d2", ("cat", "dog"), 3, "CC0")
    refused = CliRunner().invoke(app, [*asked, "--data", str(tmp_path / "none.zip")])
    assert (refused.exit_code, "there is no such file or folder" in refused.output) == (2, True)


@pytest.mark.timeout(300)
def test_a_run_that_is_stopped_and_killed_is_the_one_left_alone(recipe: Path, tmp_path: Path) -> None:
    """Stopped in good order by SIGTERM, then killed at any moment and in a save."""
    alone = Trial(str(recipe), 480, tmp_path / "alone")
    other = Trial(str(recipe), 480, tmp_path / "other", save_seconds=0)
    alone.finish()
    with asked_to_stop(other.lines):
        stopped = CliRunner().invoke(pfgmpp, other.arguments())
    assert (stopped.exit_code, "stopped after" in stopped.output) == (130, True), stopped.output
    kills = list(killed(other, 2, alone.line_seconds, seed=0))
    assert len(kills) == 2
    assert differences(alone, other) == []
    other.checkpoint.write_bytes(SHIPPED.joinpath("digits-d1.safetensors").read_bytes())
    assert differences(alone, other)


@contextmanager
def asked_to_stop(condition: Callable[[], object]) -> Iterator[None]:
    """SIGTERM for this process, once the condition is true; it is ignored should it come late."""

    def ask() -> None:
        until(condition)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    asks = threading.Thread(target=ask)
    asks.start()
    try:
        yield
    finally:
        asks.join()
        signal.signal(signal.SIGTERM, before)


@pytest.mark.timeout(300)
def test_two_processes_train_as_one(recipe: Path, tmp_path: Path) -> None:
    """With the same batch in all; dropout, which each draws for its own part, is off."""
    text = recipe.read_text().replace("images = 64", "images = 320").replace("\ndropout = 0.1", "\ndropout = 0.0")
    recipe.write_text(text)
    curves = []
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "service"]
    for name in ("one", "two"):
        arguments = ["train", str(recipe), "--D", "128", "--threads", "1", "--run-dir", str(tmp_path / name)]
        arguments += ["-o", str(tmp_path / name / "m.safetensors")]
        if name == "one":
            assert CliRunner().invoke(app, arguments).exit_code == 0
        else:
            subprocess.run([*torchrun, *arguments], check=True, capture_output=True)
        log = (tmp_path / name / "log.jsonl").read_text().splitlines()
        curves.append([json.loads(line)["loss"] for line in log])
    assert len(curves[0]) == 2
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)
    assert read_card(tmp_path / "two" / "m.safetensors").training["processes"] == 2


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["digits", "--D", "0"], "D must be"),
        (["digits", "--D", "x"], "D must be"),
        (["none.toml", "--D", "2"], "none.toml"),
        (["digits", "--D", "2", "--device", "meta"], "--device meta: must be cpu, cuda or cuda:N"),
        (["digits", "--D", "2", "--threads", "-1"], "--threads"),
        (["digits", "--D", "2", "--name", "Two words"], "dataset: must be 1 to 64 of a-z"),
    ],
)
def test_train_says_what_is_wrong(arguments: list[str], reason: str) -> None:
    done = CliRunner().invoke(app, ["train", *arguments])
    assert done.exit_code == 2
    assert plain(reason) in plain(done.output)


def test_a_dry_run_says_what_would_be_trained_and_does_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--D", "128", "--dry-run", "--set", "patch.sizes=[4]", "--set", "images=640", "--threads", "1"]
    done = CliRunner().invoke(app, ["train", "digits", *options])
    assert done.exit_code == 0, done.output
    for fact in ("1,297 images 1x8x8", "310,273 parameters", "5 of 128 images", "50% of 8 pixels, 50% of 4 pixels"):
        assert plain(fact) in plain(done.output)
    assert not list(tmp_path.iterdir())


def test_train_knows_no_other_data(recipe: Path) -> None:
    recipe.write_text(recipe.read_text().replace('"digits"', '"cats"'))
    done = CliRunner().invoke(app, ["train", str(recipe), "--D", "2"])
    assert done.exit_code == 2
    assert "cats" in plain(done.output)


@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_judge_prints_a_row_for_each_model(precision: str) -> None:
    files = [str(SHIPPED / f"digits-{D}.safetensors") for D in ("d2048", "d1")]
    numbers = ["--count", "10", "--steps", "2", "--threads", "1", "--precision", precision]
    done = CliRunner().invoke(app, ["judge", *files, *numbers])
    assert done.exit_code == 0, done.output
    rows = [line for line in done.stdout.splitlines() if line.startswith("| digits")]
    assert [row.split("|")[1].strip() for row in rows] == ["digits, D = 1", "digits, D = 2048"]


def test_judge_takes_guidance_where_a_model_has_it(tmp_path: Path) -> None:
    shipped = SHIPPED / "digits-d128.safetensors"
    numbers = ["--count", "10", "--steps", "2", "--threads", "1"]
    rows = [
        next(
            line for line in CliRunner().invoke(app, ["judge", str(shipped), *numbers, *more]).stdout.splitlines()[::-1]
        )
        for more in ([], ["--guidance", "4"])
    ]
    assert rows[0] != rows[1]
    model = load(shipped)
    save(
        tmp_path / "bare.safetensors", model.card.model_copy(update={"label_dropout": 0.0}), model.network.state_dict()
    )
    done = CliRunner().invoke(app, ["judge", str(tmp_path / "bare.safetensors"), *numbers, "--guidance", "2"])
    assert (done.exit_code, plain("digits-d128 was not trained with") in plain(done.output)) == (2, True)


def test_judge_knows_no_other_precision() -> None:
    done = CliRunner().invoke(app, ["judge", "--precision", "double"])
    assert done.exit_code == 2
    assert "double" in plain(done.output)


def test_judge_knows_digits_alone(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["judge", str(exact_checkpoint(tmp_path, 2.0))])
    assert (done.exit_code, plain("points-d2 is no model of the digits") in plain(done.output)) == (2, True)


def test_judge_refuses_a_file_that_is_no_model(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["judge", str(tmp_path / "none.safetensors")])
    assert done.exit_code == 2
    assert "none.safetensors" in plain(done.output)


def test_the_table_of_solvers_names_what_each_took(tmp_path: Path) -> None:
    file = str(exact_checkpoint(tmp_path, 128.0))
    done = CliRunner().invoke(app, ["solvers", file, "--count", "2", "--evaluations", "3,6"])
    assert done.exit_code == 0, done.output
    rows = [line.strip("| ").split(" | ")[1:4] for line in done.stdout.splitlines() if line.startswith("| points")]
    assert ["heun", "5"] in [row[:2] for row in rows]
    assert ["ipndm", "6"] in [row[:2] for row in rows]
    assert ["ipndm", "3"] not in [row[:2] for row in rows], "too few for it"
    assert all(float(distance) >= 0 for *_, distance in rows)


@pytest.mark.parametrize("arguments", [["--evaluations", "5,many"], ["--evaluations", "5,1"], ["none.safetensors"]])
def test_solvers_says_what_is_wrong(arguments: list[str]) -> None:
    done = CliRunner().invoke(app, ["solvers", *arguments])
    assert done.exit_code == 2
    assert plain(arguments[-1]) in plain(done.output)
