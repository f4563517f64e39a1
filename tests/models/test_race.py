"""Races: verdicts on curves known on paper, and a short run of the command."""

import csv
import math
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from models.race import Mark, Verdict, curve, verdicts
from service.cli import app
from tests.models.test_commands import plain

FALLING = {"first": (9.0, 5.0, 3.0, 2.0), "quick": (7.0, 2.5, 1.5, 1.0), "slow": (math.inf, 9.0, 8.0, 7.0)}


def marks(seeds: int = 1) -> list[Mark]:
    """After 10, 20, 30 and 40 seconds; seed 1 is worse by 2 throughout."""
    return [
        Mark(name, seed, 10.0 * (k + 1), 100 * (k + 1), frechet + 2 * seed)
        for seed in range(seeds)
        for k in range(4)
        for name, frechet in ((name, curve[k]) for name, curve in FALLING.items())
    ]


def test_a_verdict_says_when_a_recipe_was_as_good_as_the_first_at_its_end() -> None:
    first, quick, slow = verdicts(marks())
    assert first == Verdict("first", 10.0, 2.0, 1.0, 1.0)
    # From 2.5 after 20 s to 1.5 after 30 s: at 2.0 after 25 of 40.
    assert quick == Verdict("quick", 10.0, 1.0, 0.5, 25 / 40)
    assert (slow.frechet, slow.ratio, slow.reached) == (7.0, 3.5, math.inf)


def test_curves_are_means_over_seeds() -> None:
    assert curve(marks(2), "first") == [(10, 10), (20, 6), (30, 4), (40, 3)]


RACE = ["race", "digits", "--D", "128", "--threads", "1", "--count", "20", "--classifier-images", "512"]


def test_recipes_take_turns_for_equal_time(tmp_path: Path) -> None:
    small = [f"--set={change}" for change in ("batch=16", "architecture.model_channels=8", "default_steps=3")]
    options = [*small, "--seconds", "1", "--marks", "2", "--seeds", "1", "-o", str(tmp_path / "race.png")]
    done = CliRunner().invoke(app, [*RACE, "--against", "patch.sizes=[4] patch.real_p=0.25", *options])
    assert done.exit_code == 0, done.output
    assert "patch.sizes=[4] patch.real_p=0.25" in done.output
    with (tmp_path / "race.csv").open() as file:
        found = list(csv.DictReader(file))
    assert [line["recipe"] for line in found] == ["digits", "patch.sizes=[4] patch.real_p=0.25"] * 2
    assert all(int(line["images"]) > 0 and float(line["frechet"]) > 0 for line in found)
    for line, least in zip(found, (0.5, 0.5, 1, 1), strict=True):
        assert least <= float(line["seconds"]) < least + 60
    with Image.open(tmp_path / "race.png") as plot:
        assert plot.width > 500


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--against", "batch=0"], "batch: Input should be greater than or equal to 1"),
        (["--against", "batch=16", "-o", "race.svg"], "must be a .png"),
        (["--against", "batch=16", "--data", "none.zip"], "none.zip: there is no such file or folder"),
    ],
)
def test_a_race_that_cannot_be_is_refused(options: list[str], reason: str) -> None:
    done = CliRunner().invoke(app, [*RACE, *options])
    assert done.exit_code == 2
    assert plain(reason) in plain(done.output)
