"""FID: features of a network that is given as a file, against the same features computed directly."""

import csv
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.card import SHIPPED
from models.checkpoint import load
from models.data import Dataset, load_digits
from models.evaluate import Evaluator
from models.generate import Generator, balanced
from models.inception import FEATURES, Inception
from models.metrics import frechet_distance, gaussian
from models.sampling import Sampling
from models.shapes import steady_shapes
from tests.models.test_commands import plain
from tests.models.test_evaluate import run

MODEL = SHIPPED / "digits-d128.safetensors"
QUICK = ["--count", "40", "--classifier-images", "128", "--threads", "1"]


class Detector(nn.Module):
    """A random convolution that fills some of its features, called as Inception's export is."""

    def __init__(self, features: int = FEATURES):
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 4)
        self.features = features

    def forward(self, images: Tensor, return_features: bool = False) -> Tensor:
        assert images.dtype == torch.uint8
        assert return_features
        found = self.convolution(images.to(torch.float32) / 255).relu().mean((2, 3))
        return torch.cat([found, torch.zeros(len(images), self.features - 8)], 1)


class OfOneArgument(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images


class OfWords(nn.Module):
    def forward(self, images: Tensor, return_features: bool = False) -> str:
        return "no features"


def exported(network: nn.Module, path: Path) -> Path:
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        torch.jit.save(torch.jit.script(network), path)
    return path


@pytest.fixture
def detector() -> Detector:
    torch.manual_seed(0)
    return Detector().eval()


@pytest.fixture
def weights(detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of the detector, and a cache of this test alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return exported(detector, tmp_path / "inception.pt")


@torch.inference_mode()
def direct(detector: Detector, images: "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]") -> Tensor:
    """Features of grey images [M, H, W, 1], each repeated to three channels."""
    return detector(torch.from_numpy(images.repeat(3, -1)).movedim(-1, 1).contiguous(), return_features=True)  # type: ignore[no-any-return]


def test_features_are_those_of_the_network_in_any_number(detector: Detector, weights: Path) -> None:
    images = load_digits().images[:100]
    found = Inception(weights).features(images)
    assert found.shape == (100, FEATURES)
    assert found == pytest.approx(direct(detector, images).numpy(), abs=1e-6)


def test_features_of_real_images_are_computed_once(weights: Path, tmp_path: Path) -> None:
    inception, digits, told = Inception(weights), load_digits().first(150), list[int]()
    for _ in range(2):
        found = inception.features_of_all(digits, digits.fingerprint(), tmp_path, lambda done, _: told.append(done))
        assert found == pytest.approx(inception.features(digits.images), abs=1e-6)
    assert told == [64, 128, 150]
    assert len(list(tmp_path.glob("inception-*.npy"))) == 1
    assert not list(tmp_path.glob("*.partial"))


def test_fid_is_the_distance_to_all_real_images(detector: Detector, weights: Path, tmp_path: Path) -> None:
    """Of the very images of those seeds, and the small classifier still tells which classes are recognised."""
    figures, sampling = tmp_path / "figures.json", Sampling(steps=3)
    asked = ["evaluate", str(MODEL), *QUICK, "--inception", str(weights), "-s", "steps=3", "--json", str(figures)]
    done = run(*asked)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert "| model | sampled with | seeds | FID | kernel distance | precision |" in done.stdout
    assert "no FID" not in done.stdout
    assert "FID is against all 1,297 images of digits" in done.stdout
    assert "Classes are recognised by a classifier of classes of digits" in done.stdout
    model = load(MODEL)
    images, _ = balanced(Generator(model, steady_shapes(model, 64)), 40, sampling)
    made, real = (direct(detector, each).to(torch.float64).numpy() for each in (images, load_digits().images))
    expected = frechet_distance(gaussian([made[:, :8]]), gaussian([real[:, :8]]))
    (result,) = json.loads(figures.read_text())["results"]
    assert result["evaluation"]["measure"] == "FID"
    assert result["evaluation"]["frechet"] == pytest.approx(expected, rel=1e-4)
    assert float(lines[-1].split(" | ")[3]) == pytest.approx(expected, abs=1e-3)
    assert 0 < result["evaluation"]["recognised"] <= 1


def test_study_says_fid(weights: Path, tmp_path: Path) -> None:
    plot = tmp_path / "steps.png"
    done = run("study", "steps", str(MODEL), *QUICK, "--values", "2", "--inception", str(weights), "-o", str(plot))
    assert done.exit_code == 0, done.output
    with plot.with_suffix(".csv").open() as file:
        assert [each["measure"] for each in csv.DictReader(file)] == ["FID"]
    assert plot.exists()


def test_without_classes_no_classifier_is_trained(weights: Path) -> None:
    digits = load_digits().first(300)
    bare = Dataset("bare", (), digits.images, np.zeros_like(digits.labels), "none")
    evaluator = Evaluator(bare, 2000, inception=Inception(weights))
    assert evaluator.classifier is None
    found = evaluator.evaluate([(digits.images[:64], []), (digits.images[64:], [])])
    assert found.frechet == pytest.approx(0, abs=1e-9)
    assert (found.recognised, found.classifier_accuracy) == (None, None)
    assert found.precision == found.recall == 1


def no_network(path: Path) -> None:
    path.write_text("no network")


def state(path: Path) -> None:
    torch.save(Detector().state_dict(), path)


def cut(path: Path) -> None:
    exported(Detector(), path)
    path.write_bytes(path.read_bytes()[:3000])


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda path: None, "cannot be read as TorchScript"),
        (Path.mkdir, "cannot be read as TorchScript"),
        (no_network, "cannot be read as TorchScript"),
        (state, "cannot be read as TorchScript"),
        (cut, "cannot be read as TorchScript"),
        (lambda path: exported(OfOneArgument(), path), "does not take images"),
        (lambda path: exported(OfWords(), path), "answers two images with str"),
        (lambda path: exported(Detector(1008), path), "answers two images with (2, 1008), not with 2048 features each"),
    ],
)
def test_other_files_are_refused(write: Callable[[Path], object], reason: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    write(path)
    done = run("evaluate", str(MODEL), *QUICK, "--inception", str(path))
    assert done.exit_code == 2
    assert len(done.stderr.splitlines()) == 1
    assert plain(f"{path}: {reason}") in plain(done.stderr)
    assert "give inception-2015-12-05.pt" in done.stderr
