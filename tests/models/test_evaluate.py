"""Evaluation: distances against closed forms, a classifier that learns, and the commands that print and draw."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from bench.stores import exact_checkpoint
from models.card import SHIPPED
from models.data import DataError, Dataset, load_digits
from models.evaluate import Evaluator
from models.features import FEATURES, Classifier
from models.kernel import FloatArray
from models.metrics import frechet_distance, kernel_distance, manifolds
from service.cli import app
from tests.models.helpers import torch_threads
from tests.models.test_commands import plain

RNG = np.random.default_rng(0)
QUICK = ["--count", "20", "--classifier-images", "2560", "--threads", "1"]
MODELS = [str(SHIPPED / f"digits-d{D}.safetensors") for D in ("128", "inf")]


def gaussian(mean: float, deviation: float, count: int = 20_000) -> FloatArray:
    numbers: FloatArray = mean + deviation * RNG.standard_normal((count, 4))
    return numbers


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (1.5, 1.0), (0.0, 3.0), (-2.0, 0.5)])
def test_the_frechet_distance_is_that_of_gaussians(mean: float, deviation: float) -> None:
    """Of independent numbers: 4 (m^2 + (s - s')^2)."""
    found = frechet_distance(gaussian(0, 1), gaussian(mean, deviation))
    assert found == pytest.approx(4 * (mean**2 + (1 - deviation) ** 2), rel=0.05, abs=0.01)


def test_the_frechet_distance_knows_how_features_hang_together() -> None:
    """Two unit normals, independent against fully correlated: tr(C + C') - 2 tr (C C')^(1/2) = 4 - 2 sqrt 2."""
    independent = RNG.standard_normal((50_000, 2))
    same = np.repeat(RNG.standard_normal((50_000, 1)), 2, axis=1)
    assert frechet_distance(independent, same) == pytest.approx(4 - 2 * math.sqrt(2), rel=0.02)


def test_the_kernel_distance_is_zero_in_the_mean_for_one_law_alone() -> None:
    same = [kernel_distance(gaussian(0, 1, 200), gaussian(0, 1, 200)) for _ in range(50)]
    assert abs(np.mean(same)) < 3 * np.std(same) / math.sqrt(50)
    assert kernel_distance(gaussian(0, 1, 200), gaussian(1, 1, 200)) > 5 * np.std(same)


def test_precision_and_recall_tell_what_lies_within_what() -> None:
    wide, narrow, far = gaussian(0, 1, 1000), gaussian(0, 0.2, 1000), gaussian(50, 1, 1000)
    assert manifolds(narrow, wide).precision > 0.95
    assert manifolds(narrow, wide).recall < 0.2
    assert manifolds(far, wide) == (0, 0)
    both = manifolds(gaussian(0, 1, 1000), wide)
    assert min(both) > 0.6


@pytest.fixture(scope="module")
def evaluator() -> Evaluator:
    with torch_threads(1):
        return Evaluator(load_digits(), 100, classifier_images=25_600)


def test_the_classifier_learns_the_classes(evaluator: Evaluator) -> None:
    held_out = load_digits(held_out=True)
    assert evaluator.classifier.accuracy > 0.95
    assert evaluator.classifier.recognised(held_out.images, held_out.labels.tolist()) > 0.95
    assert evaluator.classifier.features(held_out.images).shape == (500, FEATURES)


def test_real_images_are_as_near_as_real_ones_and_noise_is_far(evaluator: Evaluator) -> None:
    held_out = load_digits(held_out=True).first(100)
    real = evaluator.evaluate(held_out.images, held_out.labels.tolist())
    noise = RNG.integers(0, 256, held_out.images.shape, dtype=np.uint8)
    worse = evaluator.evaluate(noise, held_out.labels.tolist())
    assert real.frechet < 2 * evaluator.floor < worse.frechet / 2
    assert real.kernel < worse.kernel
    assert real.precision > worse.precision
    assert (real.recognised or 0) > 0.9
    assert (worse.recognised or 0) < 0.5
    assert real.nearest < worse.nearest


def test_a_training_image_is_its_own_neighbour(evaluator: Evaluator) -> None:
    images = evaluator.data.images[[5, 900, 1200]]
    found, distances = evaluator.neighbours(images)
    assert (found == images).all()
    assert not distances.any()


def test_without_classes_the_classifier_learns_how_images_are_turned() -> None:
    digits = load_digits()
    bare = Dataset("bare", (), digits.images, np.zeros_like(digits.labels), "none")
    with torch_threads(1):
        classifier = Classifier(bare, 25_600)
    assert classifier.task == "how an image is turned"
    assert classifier.accuracy > 0.8


def test_too_few_images_are_refused() -> None:
    with pytest.raises(DataError, match="digits has 1,297 images: too few"):
        Evaluator(load_digits(), 700)


def run(*arguments: str) -> Result:
    threads = torch.get_num_threads()
    done = CliRunner().invoke(app, list(arguments))
    torch.set_num_threads(threads)
    return done


def test_evaluate_prints_a_row_for_each_model_and_writes_all(tmp_path: Path) -> None:
    figures, picture = tmp_path / "figures.json", tmp_path / "neighbours.png"
    asked = ["evaluate", *MODELS, *QUICK, "-s", "steps=4", "-s", "solver=ipndm", "--json", str(figures)]
    done = run(*asked, "--neighbours", str(picture))
    assert done.exit_code == 0, done.output
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| digits")]
    assert [row[:2] for row in rows] == [[f"| digits-d{D}", "steps 4, solver ipndm"] for D in ("128", "inf")]
    assert "so this is no FID" in done.stdout
    found = json.loads(figures.read_text())
    assert [each["D"] for each in found["results"]] == [128, "inf"]
    assert found["results"][0]["frechet"] == pytest.approx(float(rows[0][2]), abs=1e-3)
    with Image.open(picture) as drawn:
        assert drawn.size == (16 * 80, 2 * 80)


def test_study_draws_and_writes_a_curve_for_each_model(tmp_path: Path) -> None:
    plot = tmp_path / "alpha.png"
    done = run("study", "alpha", *MODELS, *QUICK, "--values", "0,0.4", "-o", str(plot))
    assert done.exit_code == 0, done.output
    with plot.with_suffix(".csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [(each["model"], each["alpha"]) for each in lines] == [
        (model, value) for model in ("digits-d128", "digits-dinf") for value in ("0", "0.4")
    ]
    assert float(lines[1]["nearest"]) > float(lines[0]["nearest"])
    with Image.open(plot) as drawn:
        assert drawn.width > 1000
    by_D = run("study", "D", *MODELS, *QUICK, "-o", str(tmp_path / "D.png"))
    assert by_D.exit_code == 0, by_D.output
    with (tmp_path / "D.csv").open() as file:
        assert [each["D"] for each in csv.DictReader(file)] == ["128", "inf"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["evaluate", "none.safetensors"], "none.safetensors"),
        (["evaluate", *MODELS, "--data", "none.zip"], "there is no such file or folder"),
        (["evaluate", *MODELS, "--count", "700"], "too few to compare"),
        (["evaluate", *MODELS, *QUICK, "-s", "stpes=4"], "stpes=4: must be NAME=VALUE, a field of how to sample"),
        (["evaluate", *MODELS, *QUICK, "-s", "steps=1"], "steps: "),
        (["evaluate", *MODELS, *QUICK, "-s", "solver=unipc", "-s", "steps=2"], "steps must be at least 3"),
        (["study", "alpha", *MODELS, *QUICK], "--values: needed"),
        (["study", "D", *MODELS, *QUICK, "--values", "1,2"], "--values: needed"),
        (["study", "alpha", *MODELS, *QUICK, "--values", "0", "-o", "plot.pdf"], "must be a .png"),
    ],
)
def test_what_cannot_be_evaluated_is_named(arguments: list[str], reason: str) -> None:
    done = run(*arguments)
    assert done.exit_code == 2
    assert plain(reason) in plain(done.stderr)


def test_a_model_of_other_images_is_refused(tmp_path: Path) -> None:
    done = run("evaluate", str(exact_checkpoint(tmp_path, 2.0)), *QUICK)
    assert done.exit_code == 2
    assert plain("are not those of digits") in plain(done.stderr)
