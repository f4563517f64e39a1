"""Evaluation: distances against closed forms, a classifier that learns, and the commands that print and draw."""

import csv
import json
import math
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.linalg import sqrtm
from typer.testing import CliRunner
from typer.testing import Result as Done

from bench.stores import exact_checkpoint
from models.card import SHIPPED
from models.checkpoint import load, save
from models.data import DataError, Dataset, load_digits
from models.evaluate import Evaluator
from models.features import FEATURES, Classifier
from models.figures import Figures, Minimum, Result
from models.kernel import FloatArray
from models.metrics import SLICE, frechet_distance, gaussian, kernel_distance, manifolds
from models.recipe import RECIPES
from models.report import Contestant, files_of, results
from models.sampling import Sampling
from service.cli import app
from tests.models.helpers import card, random_tensors, torch_threads
from tests.models.test_commands import plain

RNG = np.random.default_rng(0)
QUICK = ["--count", "20", "--classifier-images", "2560", "--threads", "1"]
MODELS = [str(SHIPPED / f"digits-d{D}.safetensors") for D in ("128", "inf")]


def drawn(mean: float, deviation: float, count: int = 20_000) -> FloatArray:
    numbers: FloatArray = mean + deviation * RNG.standard_normal((count, 4))
    return numbers


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (1.5, 1.0), (0.0, 3.0), (-2.0, 0.5)])
def test_the_frechet_distance_is_that_of_gaussians(mean: float, deviation: float) -> None:
    """Of independent numbers: 4 (m^2 + (s - s')^2)."""
    found = frechet_distance(gaussian([drawn(0, 1)]), gaussian([drawn(mean, deviation)]))
    assert found == pytest.approx(4 * (mean**2 + (1 - deviation) ** 2), rel=0.05, abs=0.01)


def test_the_frechet_distance_knows_how_features_hang_together() -> None:
    """Two unit normals, independent against fully correlated: tr(C + C') - 2 tr (C C')^(1/2) = 4 - 2 sqrt 2."""
    independent = RNG.standard_normal((50_000, 2))
    same = np.repeat(RNG.standard_normal((50_000, 1)), 2, axis=1)
    found = frechet_distance(gaussian([independent]), gaussian([same]))
    assert found == pytest.approx(4 - 2 * math.sqrt(2), rel=0.02)


@pytest.mark.parametrize("count", [50, 400])
def test_the_frechet_distance_is_that_of_the_matrix_square_root(count: int) -> None:
    """Of 100 features that hang together, from fewer images than features and from more."""
    mixing = RNG.standard_normal((100, 100)) * np.exp(-np.arange(100) / 20)
    sets = [np.maximum(RNG.standard_normal((count, 100)) @ mixing.T, 0) for _ in range(2)]
    one, other = (np.cov(each, rowvar=False) for each in sets)
    # Of a singular product it warns, and adds numbers of the size of rounding.
    with warnings.catch_warnings(action="ignore"):
        root = sqrtm(one @ other)
    apart = np.square(sets[0].mean(0) - sets[1].mean(0)).sum()
    expected = apart + np.trace(one + other - 2 * root.real)
    assert frechet_distance(*(gaussian([each]) for each in sets)) == pytest.approx(expected, rel=1e-5)


def test_a_gaussian_is_the_same_in_parts() -> None:
    numbers = drawn(5, 1, 1000)
    found = gaussian(np.split(numbers, [1, 300, 310]))
    assert found.mean == pytest.approx(numbers.mean(0), rel=1e-12)
    assert found.covariance == pytest.approx(np.cov(numbers, rowvar=False), rel=1e-9, abs=1e-12)


def test_the_kernel_distance_is_the_same_in_slices() -> None:
    one, other = drawn(0, 1, SLICE + 100), drawn(1, 1, 300)
    own, others, crossed = ((a @ b.T / 4 + 1) ** 3 for a, b in ((one, one), (other, other), (one, other)))
    without_themselves = [(each.sum() - np.trace(each)) / (len(each) * (len(each) - 1)) for each in (own, others)]
    assert kernel_distance(one, other) == pytest.approx(sum(without_themselves) - 2 * crossed.mean(), rel=1e-9)


def test_the_kernel_distance_is_zero_in_the_mean_for_one_law_alone() -> None:
    same = [kernel_distance(drawn(0, 1, 200), drawn(0, 1, 200)) for _ in range(50)]
    assert abs(np.mean(same)) < 3 * np.std(same) / math.sqrt(50)
    assert kernel_distance(drawn(0, 1, 200), drawn(1, 1, 200)) > 5 * np.std(same)


def test_precision_and_recall_tell_what_lies_within_what() -> None:
    wide, narrow, far = drawn(0, 1, 1000), drawn(0, 0.2, 1000), drawn(50, 1, 1000)
    assert manifolds(narrow, wide).precision > 0.95
    assert manifolds(narrow, wide).recall < 0.2
    assert manifolds(far, wide) == (0, 0)
    both = manifolds(drawn(0, 1, 1000), wide)
    assert min(both) > 0.6


@pytest.fixture(scope="module")
def evaluator() -> Evaluator:
    with torch_threads(1):
        return Evaluator(load_digits(), 100, classifier_images=25_600)


def test_the_classifier_learns_the_classes(evaluator: Evaluator) -> None:
    held_out = load_digits(held_out=True)
    classifier = evaluator.classifier
    assert classifier
    assert classifier.accuracy > 0.95
    assert classifier.recognised(held_out.images, held_out.labels.tolist()) > 0.95
    assert classifier.features(held_out.images).shape == (500, FEATURES)


def test_a_classifier_is_trained_once(tmp_path: Path) -> None:
    data, known = load_digits().first(200), tmp_path / "new" / "classifier.safetensors"
    with torch_threads(1):
        first = Classifier(data, 2560, known)
        trained = known.read_bytes()
        again = Classifier(data, 2560, known)
        assert (again.features(data.images) == first.features(data.images)).all()
        assert again.accuracy == first.accuracy
        other = Classifier(data, 128, known)  # had it been trained, it would be another
        assert (other.features(data.images) == first.features(data.images)).all()
        known.write_bytes(trained[:1000])
        assert (Classifier(data, 2560, known).features(data.images) == first.features(data.images)).all()
    assert known.read_bytes() == trained
    assert list(known.parent.iterdir()) == [known]


def test_real_images_are_as_near_as_real_ones_and_noise_is_far(evaluator: Evaluator) -> None:
    held_out = load_digits(held_out=True).first(100)
    labels = held_out.labels.tolist()
    real = evaluator.evaluate([(held_out.images[:70], labels[:70]), (held_out.images[70:], labels[70:])])
    noise = RNG.integers(0, 256, held_out.images.shape, dtype=np.uint8)
    worse = evaluator.evaluate([(noise, labels)])
    assert evaluator.floor
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


def run(*arguments: str) -> Done:
    threads = torch.get_num_threads()
    done = CliRunner().invoke(app, list(arguments))
    torch.set_num_threads(threads)
    return done


def test_evaluate_prints_rows_for_each_model_of_a_folder_and_writes_all(tmp_path: Path) -> None:
    figures, picture, folder = tmp_path / "figures.json", tmp_path / "neighbours.png", tmp_path / "states"
    folder.mkdir()
    for model in MODELS:
        shutil.copy(model, folder)
    asked = ["evaluate", str(folder), *QUICK, "-s", "steps=4", "-s", "solver=ipndm", "--json", str(figures)]
    done = run(*asked, "--first-seed", "7", "--rounds", "2", "--neighbours", str(picture))
    assert done.exit_code == 0, done.output
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| digits")]
    assert [row[:3] for row in rows] == [
        [f"| digits-d{D}", "solver ipndm, steps 4", seeds]
        for D in ("128", "inf")
        for seeds in ("7-26", "27-46", "minimum of 2 rounds")
    ]
    assert rows[2][3] == min(rows[0][3], rows[1][3], key=float)
    assert "so this is no FID" in done.stdout
    assert "Fréchet distance | kernel distance" in done.stdout
    found = json.loads(figures.read_text())
    assert [each["D"] for each in found["results"]] == [128, 128, "inf", "inf"]
    assert found["results"][0]["evaluation"]["measure"] == "Fréchet distance"
    assert found["results"][0]["evaluation"]["frechet"] == pytest.approx(float(rows[0][3]), abs=1e-3)
    assert [each["minimum"] for each in found["minima"]] == pytest.approx(
        [float(rows[2][3]), float(rows[5][3])], abs=1e-3
    )
    with Image.open(picture) as drawn:
        assert drawn.size == (16 * 80, 2 * 80)


def test_what_is_finished_is_not_found_again(evaluator: Evaluator, tmp_path: Path) -> None:
    """After a stop in the second of three rounds: the first is taken as it was, the other two are found."""
    file, choice = tmp_path / "figures.json", {"steps": 2}
    small = card(channels=1, classes=tuple("0123456789"))
    save(tmp_path / "small.safetensors", small, random_tensors(small))
    contestant = Contestant("small", load(tmp_path / "small.safetensors"))
    rounds = [range(20), range(20, 40), range(40, 60)]
    first = next(results(evaluator, [contestant], [choice], rounds))
    kept = first.model_copy(update={"evaluation": first.evaluation.model_copy(update={"frechet": 123.0})})
    figures = Figures(results=[kept])
    figures.write(file)
    found = list(results(evaluator, [contestant], [choice], rounds, Figures.read(file).find))
    assert found[0] == kept
    assert len({each.evaluation.frechet for each in found}) == 3
    assert Minimum.of(found).minimum == min(each.evaluation.frechet for each in found[1:])


@pytest.mark.parametrize(
    "changed",
    [
        {"sha256": "0" * 64},
        {"sampling": Sampling(steps=3)},
        {"first_seed": 1},
        {"images": 21},
        {"fingerprint": "0" * 64},
        {"features": "Inception of 2015-12-05"},
        {"classifier": "a classifier trained with fewer images"},
    ],
)
def test_what_decides_the_figures_decides_what_is_known(changed: dict[str, object]) -> None:
    result = Result.model_validate(RESULT)
    figures = Figures(results=[result])
    assert figures.find(result.trial) == result
    assert figures.find(result.trial.model_copy(update=changed)) is None


RESULT = {
    "model": "digits-dinf",
    "D": "inf",
    "trial": {
        "sha256": "1" * 64,
        "sampling": {"steps": 2},
        "first_seed": 0,
        "images": 20,
        "data": "digits",
        "fingerprint": "2" * 64,
        "features": "a classifier",
        "classifier": "a classifier",
    },
    "evaluation": {
        "images": 20,
        "measure": "Fréchet distance",
        "frechet": 1.0 / 3.0,
        "kernel": 0.1,
        "precision": 0.5,
        "recall": 0.5,
        "recognised": None,
        "nearest": 1.0,
        "frechet_of_real_images": None,
        "classifier_accuracy": None,
    },
    "torch": "2.13.0",
}


def test_figures_are_read_as_they_were_written(tmp_path: Path) -> None:
    figures, file = Figures(), tmp_path / "figures.json"
    result = Result.model_validate(RESULT)
    for found in (result, Minimum.of([result]), result):
        figures.add(found)
    assert Figures.read(file) == Figures()
    figures.write(file)
    assert Figures.read(file) == figures
    assert len(figures.results) == len(figures.minima) == 1
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"results": [{"model": "digits"}]}', '{"dataset": "digits"}'])
def test_a_file_of_something_else_is_left_alone(content: str, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    file.write_text(content)
    done = run("evaluate", *MODELS, *QUICK, "--json", str(file))
    assert done.exit_code == 2
    assert plain(f"{file}: holds no results of this program") in plain(done.stderr)
    assert file.read_text() == content


def test_checkpoints_of_a_folder_come_by_the_images_they_were_trained_on(tmp_path: Path) -> None:
    for name, training in {"a": {"images": 3000}, "b": {"images": 200}, "d": {}, "c": {"images": "many"}}.items():
        own = card(training=training)
        save(tmp_path / f"{name}.safetensors", own, random_tensors(own))
    assert [file.stem for file in files_of([tmp_path, Path("other.safetensors")])] == ["b", "a", "c", "d", "other"]


def quickly_sampled(model: Path, folder: Path) -> str:
    """A copy of a checkpoint that is sampled in few steps."""
    loaded = load(model)
    save(folder / model.name, loaded.card.model_copy(update={"default_steps": 4}), loaded.network.state_dict())
    return str(folder / model.name)


def test_study_draws_and_writes_a_curve_for_each_model(tmp_path: Path) -> None:
    models = [quickly_sampled(Path(model), tmp_path) for model in MODELS]
    plot = tmp_path / "alpha.png"
    done = run("study", "alpha", *models, *QUICK, "--values", "0,0.4", "-o", str(plot))
    assert done.exit_code == 0, done.output
    with plot.with_suffix(".csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [(each["model"], each["alpha"]) for each in lines] == [
        (model, value) for model in ("digits-d128", "digits-dinf") for value in ("0.0", "0.4")
    ]
    assert float(lines[1]["nearest"]) > float(lines[0]["nearest"])
    with Image.open(plot) as drawn:
        assert drawn.width > 1000
    by_D = run("study", "D", *models, *QUICK, "-o", str(tmp_path / "D.png"))
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
        (["evaluate", str(RECIPES)], "recipes: holds no .safetensors files"),
        (["evaluate", *MODELS, "--json", "nowhere/figures.json"], "there is no directory nowhere"),
        (["evaluate", *MODELS, "--neighbours", "nowhere/n.png"], "--neighbours nowhere/n.png: must be a .png"),
        (["study", "steps", *MODELS, "--values", "9,1"], "steps: "),
        (["study", "alpha", *MODELS, *QUICK], "--values: needed"),
        (["study", "D", *MODELS, *QUICK, "--values", "1,2"], "--values: needed"),
        (["study", "alpha", *MODELS, *QUICK, "--values", "0", "-o", "plot.pdf"], "must be a .png"),
    ],
)
def test_what_cannot_be_evaluated_is_named(arguments: list[str], reason: str) -> None:
    """Before anything is trained to judge with."""
    done = run(*arguments)
    assert done.exit_code == 2
    assert not done.stdout
    assert plain(reason) in plain(done.stderr)


def test_a_model_of_other_images_is_refused(tmp_path: Path) -> None:
    done = run("evaluate", str(exact_checkpoint(tmp_path, 2.0)), *QUICK)
    assert done.exit_code == 2
    assert plain("are not those of digits") in plain(done.stderr)
