"""The benchmark suite: its parts on their own, and short runs of the command."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner, Result

from bench.bare import save_weights
from bench.load import SHORTS_PER_LONG, arrivals, burst
from bench.png import photographs
from bench.reference import Reference
from bench.report import Figure, Findings, Report
from bench.stores import CIFAR10, untrained_checkpoint
from bench.timing import interleaved, percentiles, speed
from bench.training import make_contiguous, random_images
from models.checkpoint import build, load
from models.generate import Generator
from models.recipe import read_recipe
from models.shapes import steady_shapes
from models.train import Run
from service.cli import app
from tests.models.helpers import card, torch_threads


def test_speed_is_the_median_of_ratios_round_by_round() -> None:
    """A machine that slows down tenfold in one round changes nothing."""
    assert speed([1.0, 10.0, 1.0], [2.0, 20.0, 2.0]) == 2.0
    assert speed([4.0, 1.0, 2.0], [2.0, 2.0, 2.0]) == 1.0


def test_every_contestant_is_warmed_up_and_has_its_turn_first() -> None:
    calls: list[str] = []
    timings = interleaved({name: lambda name=name: calls.append(name) for name in "ab"}, 2)  # type: ignore[misc]
    assert "".join(calls) == "ab" + "ab" + "ba"
    assert [len(timings[name].wall) for name in "ab"] == [2, 2]
    assert all(seconds >= 0 for timing in timings.values() for seconds in (*timing.wall, *timing.cpu))


def test_percentiles() -> None:
    assert percentiles([float(value) for value in range(101)]) == {"p50": 50, "p90": 90, "p99": 99}


@pytest.mark.parametrize(
    ("figure", "bound", "is_met"),
    [
        (Figure(name="a", value=0.98, at_least=0.98), "≥ 0.98", True),
        (Figure(name="a", value=0.97, at_least=0.98), "≥ 0.98", False),
        (Figure(name="a", value=3, at_most=2, unit="ms"), "≤ 2", False),
        (Figure(name="a", value=3), "", True),
    ],
)
def test_a_figure_knows_its_bound(figure: Figure, bound: str, is_met: bool) -> None:
    assert (figure.bound, figure.is_met) == (bound, is_met)


def test_arrivals_are_a_poisson_stream_of_the_mixture() -> None:
    """Gaps of mean and deviation 1/rate; as many long ones as the mixture says; the same for the same seed."""
    stream = arrivals(10, 400, seed=1)
    assert stream == arrivals(10, 400, seed=1) != arrivals(10, 400, seed=2)
    gaps = np.diff([0.0, *(arrival.seconds for arrival in stream)])
    assert len(stream) == pytest.approx(4000, abs=4 * math.sqrt(4000))
    assert gaps.mean() == pytest.approx(0.1, rel=0.07)
    assert gaps.std() == pytest.approx(0.1, rel=0.1)
    longs = sum(arrival.kind == "long" for arrival in stream)
    assert longs == pytest.approx(len(stream) / (SHORTS_PER_LONG + 1), rel=0.2)
    assert [arrival.kind for arrival in burst(2)].count("long") == 2


@torch.inference_mode()
def test_the_reference_makes_the_images_of_the_engine(tmp_path: Path) -> None:
    """Two ways to the same images: not a byte in a hundred rounds differently."""
    model = load(untrained_checkpoint(tmp_path, card(default_steps=5)))
    labels = [0, 1, 2, None]
    plain = Reference.of(model).images(range(4), labels, 5)
    ours = Generator(model, steady_shapes(model, 8)).images(range(4), labels, 5)
    assert plain.shape == (4, 8, 8, 3)
    assert plain.std() > 10
    assert np.abs(plain.astype(int) - ours).max() <= 1
    assert (plain != ours).mean() < 0.01


def test_the_network_of_the_benchmarks_is_the_published_one() -> None:
    """As many parameters as the published class-conditional NCSN++ for CIFAR-10 has."""
    assert sum(parameter.numel() for parameter in build(CIFAR10).parameters()) == 56_400_643


def test_the_photographs_are_photographs() -> None:
    pieces = photographs()
    assert pieces.shape == (64, 32, 32, 3)
    neighbours = np.abs(np.diff(pieces.astype(int), axis=2)).mean()
    assert 2 < neighbours < 20 < pieces.std()


def test_a_run_can_be_made_to_compute_channels_first() -> None:
    """Even with one channel, whose order could be either; runs else compute channels last."""
    run = Run(read_recipe("digits"), 2.0, random_images("digits"), torch.device("cpu"))
    assert layouts(run) == (False, True)
    make_contiguous(run)
    assert layouts(run) == (True, False)
    run.close()


def layouts(run: Run) -> tuple[bool, bool]:
    """Whether what the first convolution answers is channels first, and whether it is channels last."""
    layer = next(each for each in run.network.modules() if isinstance(each, nn.Conv2d))
    answers = list[Tensor]()
    with torch.no_grad(), layer.register_forward_hook(lambda layer, inputs, answer: answers.append(answer)):
        run.network(torch.zeros(2, 1, 8, 8), torch.ones(2), torch.eye(10)[:2])
    (answer,) = answers
    return answer.is_contiguous(), answer.is_contiguous(memory_format=torch.channels_last)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The one in which the command runs."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where one run finds what another has found out about the network."""
    return tmp_path_factory.mktemp("bench")


def bench(*arguments: str) -> Result:
    """The command as a user types it, in this process: what it starts are processes of their own."""
    with torch_threads(1):
        return CliRunner().invoke(app, ["bench", "--quick", "--rounds", "1", "--folder", ".", *arguments])


def test_an_unknown_part_is_refused(folder: Path) -> None:
    refused = bench("engine", "motor")
    assert refused.exit_code == 2
    assert "there is no part motor" in refused.stderr
    assert not (folder / "bench.json").exists()


@pytest.mark.parametrize("option", ["--output", "--plot"])
def test_a_place_that_is_not_there_is_refused_before_anything_is_measured(folder: Path, option: str) -> None:
    refused = bench("png", option, "nowhere/file")
    assert refused.exit_code == 2
    assert "there is no directory nowhere" in refused.stderr
    refused = bench("png", option, ".")
    assert refused.exit_code == 2
    assert "is a directory" in refused.stderr
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    "parts",
    [("png", "scheduler", "engine", "training", "overhead"), ("start",), ("service", "workers"), ("load",)],
    ids="+".join,
)
def test_a_short_run(folder: Path, lasting: Path, parts: tuple[str, ...]) -> None:
    """What it finds means little, but all of it is there, in the file and in the picture."""
    done = bench(*parts, "--plot", "bench.png", "--folder", str(lasting))
    assert done.exit_code == 0, done.output
    report = Report.model_validate_json((folder / "bench.json").read_text())
    assert set(report.parts) == set(parts)
    for findings in report.parts.values():
        assert findings.figures
        assert all(math.isfinite(figure.value) for figure in findings.figures)
        assert all(figure.value > 0 or figure.unit == "%" for figure in findings.figures)
    assert report.machine["cores"] >= 1
    with Image.open(folder / "bench.png") as picture:
        assert picture.width > 500


def test_a_report_survives_the_file() -> None:
    report = Report(
        machine={"cores": 2}, parts={"png": Findings(figures=[Figure(name="a", value=1.5)], details={"x": [1]})}
    )
    assert Report.model_validate(json.loads(report.model_dump_json())) == report


@pytest.mark.parametrize("how", ["mapped", "plain"])
def test_what_loading_takes_is_told_in_megabytes(tmp_path: Path, how: str) -> None:
    checkpoint = untrained_checkpoint(tmp_path, card())
    save_weights(load(checkpoint), tmp_path / "weights.pt")
    file = checkpoint if how == "mapped" else tmp_path / "weights.pt"
    told = subprocess.run(
        [sys.executable, "-m", "bench.loading", how, file], capture_output=True, text=True, check=True
    )
    assert 50 < float(told.stdout) < 2000
