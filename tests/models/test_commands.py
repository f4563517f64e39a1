"""`pfgmpp train`, `judge` and `solvers`, as far as seconds allow."""

import re
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from models import commands
from models.card import SHIPPED, read_card
from models.checkpoint import load, save
from models.train import RECIPES

app = typer.Typer()
app.command()(commands.train)
app.command()(commands.judge)
app.command()(commands.solvers)


def plain(output: str) -> str:
    """An output without colours, frames and white space, which depend on the terminal."""
    return re.sub(r"\x1b\[[0-9;]*m|[│\s]", "", output)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """The shipped recipe, cut down to a few batches."""
    text = (RECIPES / "digits.toml").read_text()
    for old, new in (("300_000", "64"), ("batch = 128", "batch = 8"), ("model_channels = 32", "model_channels = 8")):
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return path


def test_train_writes_a_checkpoint(recipe: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "model.safetensors"
    done = CliRunner().invoke(app, ["train", str(recipe), "--D", "inf", "-o", str(output), "--threads", "1"])
    assert done.exit_code == 0, done.output
    assert plain(f"wrote {output}") in plain(done.output)
    assert read_card(output).name == "digits-dinf"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["digits", "--D", "0"], "D must be"),
        (["digits", "--D", "x"], "D must be"),
        (["none.toml", "--D", "2"], "none.toml"),
    ],
)
def test_train_says_what_is_wrong(arguments: list[str], reason: str) -> None:
    done = CliRunner().invoke(app, ["train", *arguments])
    assert done.exit_code == 2
    assert plain(reason) in plain(done.output)


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


def test_judge_refuses_a_file_that_is_no_model(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["judge", str(tmp_path / "none.safetensors")])
    assert done.exit_code == 2
    assert "none.safetensors" in plain(done.output)


def test_the_table_of_solvers_names_what_each_took() -> None:
    file = str(SHIPPED / "digits-d128.safetensors")
    done = CliRunner().invoke(app, ["solvers", file, "--count", "2", "--evaluations", "3,6"])
    assert done.exit_code == 0, done.output
    rows = [line.strip("| ").split(" | ")[1:4] for line in done.stdout.splitlines() if line.startswith("| digits")]
    assert ["heun", "5"] in [row[:2] for row in rows]
    assert ["ipndm", "6"] in [row[:2] for row in rows]
    assert ["ipndm", "3"] not in [row[:2] for row in rows], "too few for it"
    assert all(float(distance) >= 0 for *_, distance in rows)


@pytest.mark.parametrize("arguments", [["--evaluations", "5,many"], ["--evaluations", "5,1"], ["none.safetensors"]])
def test_solvers_says_what_is_wrong(arguments: list[str]) -> None:
    done = CliRunner().invoke(app, ["solvers", *arguments])
    assert done.exit_code == 2
    assert plain(arguments[-1]) in plain(done.output)
