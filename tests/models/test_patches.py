"""Training on patches: the kernel of a part, what a step draws, and what the network is told of it."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from scipy.stats import betaprime, kstest, t
from typer.testing import CliRunner

from models.card import UNetOptions
from models.checkpoint import Model
from models.data import Dataset
from models.generate import Generator
from models.kernel import kernel_noise
from models.objective import Draws
from models.patches import Patches, coordinates
from models.precond import Denoiser
from models.recipe import Recipe, read_recipe
from models.sampling import Window
from models.shapes import Shapes
from models.train import Run, TrainError, train
from models.window import windowed
from service.cli import app as pfgmpp
from tests import windows
from tests.models.helpers import FALSE_ALARM, card, follows, in_proportion

CPU = torch.device("cpu")
ARCHITECTURE = UNetOptions(
    model_channels=16, channel_mult=(1, 1), num_blocks=1, attn_resolutions=(), dropout=0.1, coordinates=2
)


def recipe(**changes: Any) -> Recipe:
    fields = {
        "dataset": "ramps",
        "images": 64,
        "batch": 16,
        "learning_rate": 3e-3,
        "warmup_images": 16,
        "ema_halflife_images": 100,
        "patch": {"real_p": 0.5},
        "default_steps": 5,
        "max_steps": 8,
        "seed": 0,
        "architecture": ARCHITECTURE,
    }
    return Recipe.model_validate(fields | changes)


@pytest.fixture(scope="module")
def ramps() -> Dataset:
    """Images 32x32 in which every pixel tells where it is: across in red, down in green, the image in blue."""
    images = np.zeros((40, 32, 32, 3), dtype=np.uint8)
    images[..., 0], images[..., 1] = np.arange(32), np.arange(32)[:, None]
    images[..., 2] = np.arange(40)[:, None, None]
    return Dataset("ramps", (), images, np.zeros(40, dtype=np.int64), "none")


def radii(D: float, pixels: int, count: int = 4000) -> "np.ndarray[tuple[int, ...], np.dtype[np.float64]]":
    """(R / r)^2 of the first pixels of noise in 192 dimensions."""
    rng = np.random.default_rng(0)
    noise = np.stack([kernel_noise(rng, (192,), D)[:pixels] for _ in range(count)])
    found: np.ndarray[tuple[int, ...], np.dtype[np.float64]] = np.square(noise).sum(1) / D
    return found


@pytest.mark.parametrize("D", [0.5, 1, 4, 128])
def test_a_part_of_the_noise_is_noise_of_the_part(D: float) -> None:
    """The kernel in N of the patch is the marginal of that in N of the frame, for the same sigma and D."""
    assert follows(radii(D, 48), betaprime(48 / 2, D / 2).cdf)
    one = np.stack([kernel_noise(np.random.default_rng(k), (192,), D)[100] for k in range(2000)])
    assert follows(one, t(D).cdf)


@pytest.mark.parametrize("D", [1, 4, 128])
def test_the_kernel_with_N_of_the_frame_is_wrong_for_a_part(D: float) -> None:
    """The test above can fail: of the Beta form with all of N."""
    assert kstest(radii(D, 48), betaprime(192 / 2, D / 2).cdf).pvalue < FALSE_ALARM


def test_sizes_come_as_often_as_they_should(ramps: Dataset) -> None:
    draws = Draws(recipe(), 128, ramps)
    assert draws.shares == pytest.approx({32: 0.5, 16: 0.3, 8: 0.2})
    counts = Counter(draws.size(step) for step in range(3000))
    assert in_proportion(np.array([counts[size] for size in draws.shares]), np.array(list(draws.shares.values())))
    assert {draws.size(step) * draws.growth(step) for step in range(30)} == {32}


@pytest.mark.parametrize(
    ("patches", "unit", "shares"),
    [
        (Patches(real_p=1), 1, {64: 1, 32: 0, 16: 0}),
        (Patches(real_p=0), 1, {64: 0, 32: 0.6, 16: 0.4}),
        (Patches(real_p=0.4), 32, {64: 0.4, 32: 0.6}),
        (Patches(sizes=(8, 24)), 8, {64: 0.5, 24: 0.3, 8: 0.2}),
    ],
)
def test_patches_are_those_that_the_network_can_halve(patches: Patches, unit: int, shares: dict[int, float]) -> None:
    assert patches.shares(64, unit) == pytest.approx(shares)


@pytest.mark.parametrize(
    ("sizes", "reason"), [("auto", "half of 8 pixels is too small"), ((8,), "multiples of 2 below 8"), ((3,), "not 3")]
)
def test_patches_that_do_not_fit_are_refused(sizes: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Patches(sizes=sizes).shares(8, 2)


@pytest.mark.parametrize("mirrored", [False, True])
def test_what_a_step_draws_lies_where_it_says(ramps: Dataset, mirrored: bool) -> None:
    """And small patches are as many more; their corners are everywhere; a mirrored image is a mirrored image's part."""
    draws = Draws(recipe(mirrored=mirrored), 128, ramps)
    seen: dict[int, set[int]] = {8: set(), 16: set(), 32: set()}
    flips = set[bool]()
    for step in range(120):
        size, growth = draws.size(step), draws.growth(step)
        examples = draws.examples(step, 0, 16 * growth)
        assert examples.y.shape == examples.noise.shape == (16 * growth, 3, size, size)
        pixels, corners = ((examples.y + 1) * 127.5).round().long(), examples.corners
        assert corners is not None
        across, down = corners[:, 0, None] + torch.arange(size), corners[:, 1, None] + torch.arange(size)
        is_flipped = pixels[:, 0, 0, 0] > pixels[:, 0, 0, -1]
        assert torch.equal(pixels[:, 0, 0], torch.where(is_flipped[:, None], 31 - across, across))
        assert torch.equal(pixels[:, 1, :, 0], down)
        seen[size].update(corners.flatten().tolist())
        flips.update(is_flipped.tolist())
    assert seen == {8: set(range(25)), 16: set(range(17)), 32: {0}}
    assert flips == ({False, True} if mirrored else {False})


def test_parts_of_a_batch_of_patches_are_those_of_the_whole(ramps: Dataset) -> None:
    draws = Draws(recipe(patch={"real_p": 0.0}), 2.0, ramps)
    whole = draws.examples(3, 0, 32)
    for start, stop in ((0, 16), (16, 32), (5, 21)):
        part = draws.examples(3, start, stop)
        for name in ("y", "noise", "sigma", "corners"):
            assert torch.equal(getattr(part, name), getattr(whole, name)[start:stop]), name


def test_coordinates_are_those_of_the_frame() -> None:
    """From -1 to 1 across it and down it; a part has its part of them, and beyond the frame they go on."""
    whole = coordinates(None, torch.zeros(1, 1, 8, 8), 8)
    assert torch.allclose(whole[0, 0, 3], torch.linspace(-1, 1, 8))
    assert torch.allclose(whole[0, 1, :, 5], torch.linspace(-1, 1, 8))
    part = coordinates(torch.tensor([[2, 5], [-8, 16]]), torch.zeros(2, 3, 2, 4), 8)
    assert torch.equal(part[0], whole[0, :, 5:7, 2:6])
    assert torch.allclose(part[1, :, 0, 0], torch.tensor([-1 - 8 * 2 / 7, -1 + 16 * 2 / 7]))


def test_what_is_trained_on_patches_is_told_where_they_lie(ramps: Dataset) -> None:
    """Patches of 8 pixels of 32; and the run is the same in small pieces as far as its draws go."""
    runs = [Run(recipe(micro_batch=micro, images=80), 128, ramps, CPU) for micro in (None, 4)]
    shapes: list[list[tuple[int, ...]]] = [[], []]
    for run, noted in zip(runs, shapes, strict=True):
        run.network.model.register_forward_pre_hook(
            lambda network, inputs, noted=noted: noted.append((len(inputs[0]), *inputs[0].shape[1:3]))
        )
        train(run, lambda progress: None)
    sizes = [runs[0]._draws.size(step) for step in range(5)]
    assert len(set(sizes)) > 1
    assert shapes[0] == [(16 * 32 // size, 5, size) for size in sizes]
    assert shapes[1] == [(4 * 32 // size, 5, size) for size in sizes for _ in range(4)]
    assert runs[0].card(train(runs[0], lambda progress: None)).architecture.coordinates == 2


def test_a_run_on_patches_goes_on_as_if_uninterrupted(ramps: Dataset, tmp_path: Path) -> None:
    whole, first, second = (Run(recipe(), 128, ramps, CPU) for _ in range(3))
    train(whole, lambda progress: None)
    train(first, lambda progress: None, is_to_stop=lambda: first.images_seen == 32)
    first.save(tmp_path / "state")
    second.load(tmp_path / "state")
    train(second, lambda progress: None)
    assert all(torch.equal(tensor, whole.tensors()[name]) for name, tensor in second.tensors().items())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"augment": 0.1}, "patch: cannot be combined with augment"),
        ({"stable_target": 64}, "patch: cannot be combined"),
        ({"patch": None}, "architecture.coordinates: must be 2 with patch, and 0 without"),
        ({"patch": {"real_p": 1.5}}, "patch.real_p"),
    ],
)
def test_what_cannot_go_with_patches_is_named(changes: dict[str, Any], reason: str) -> None:
    architecture = ARCHITECTURE.model_copy(update={"augment_dim": 9 if "augment" in changes else 0})
    with pytest.raises(ValueError, match=reason):
        recipe(architecture=architecture, **changes)


def test_a_recipe_needs_only_say_that_it_is_for_patches(ramps: Dataset) -> None:
    patched = read_recipe("digits", ["patch.sizes=[4]", "patch.real_p=0.25"])
    assert patched.architecture.coordinates == 2
    assert patched.patch == Patches(real_p=0.25, sizes=(4,))
    with pytest.raises(
        TrainError, match=r"does not suit its data: patch\.sizes: must be multiples of 2 below 32, not 5"
    ):
        Run(recipe(patch={"sizes": [5]}), 2, ramps, CPU)


@torch.inference_mode()
def test_a_window_is_the_network_s_answer_at_its_place() -> None:
    """The whole frame as a window is the frame; an image of a window has its size."""
    torch.manual_seed(0)
    network = Denoiser(ARCHITECTURE, 8, 3, 0).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    for tensor in network.parameters():
        torch.nn.init.normal_(tensor, std=0.1)
    model = Model(card(classes=(), architecture=ARCHITECTURE), network, "", CPU)
    x, sigma = torch.randn(2, 3, 8, 8), torch.tensor([1.0, 2.0])
    whole = network(x, sigma)
    assert torch.equal(windowed(model, Window(width=8, height=8)).network(x, sigma), whole)
    moved = windowed(model, Window(x=4, y=2, width=8, height=8)).network(x, sigma)
    assert not torch.allclose(moved, whole)
    corner = torch.tensor([[4, 2], [4, 2]])
    assert torch.equal(moved, network(x, sigma, corner=corner))
    wide = windowed(model, Window(x=-4, width=16, height=4))
    assert wide.shape == (3, 4, 16)
    assert Generator(wide, Shapes((1,), (1.0,))).images([3, 4], [None, None], 3).shape == (2, 4, 16, 3)


def test_what_coordinates_and_windows_are_worth_is_measured(tmp_path: Path) -> None:
    """The command of `tests.windows`, on a model that has hardly begun: other coordinates give other images."""
    file = tmp_path / "model.safetensors"
    options = ["--set", "patch.sizes=[4]", "--set", "default_steps=4", "--images", "256", "--threads", "1"]
    where = ["--run-dir", str(tmp_path / "run"), "-o", str(file)]
    assert CliRunner().invoke(pfgmpp, ["train", "digits", "--D", "128", *options, *where]).exit_code == 0
    measure = typer.Typer()
    measure.command()(windows.main)
    done = CliRunner().invoke(measure, [str(file), "--count", "20", "--classifier-images", "2560"])
    assert done.exit_code == 0, done.output
    found = dict(re.findall(r"\| (true|zeroed|transposed) \| (\S+) \|", done.output))
    assert len(set(found.values())) == 3
    assert re.search(r"\| left \|.*\n\| right \|", done.output)
