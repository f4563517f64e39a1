"""Training: its objective, its schedules, and a run small enough to repeat."""

import dataclasses
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.stats import betaprime
from torch import Tensor, nn

from models import checkpoint
from models.card import SHIPPED, Card, UNetOptions, checkpoint_files, read_card
from models.data import Dataset, load_digits
from models.train import (
    RECIPES,
    Progress,
    Recipe,
    Trainer,
    average,
    learning_rate_factor,
    perturb,
    read_recipe,
    train,
    weighted_error,
)
from tests.models.helpers import FIXTURES, follows, in_proportion, relative_error, uncorrelated

LOSS = load_file(FIXTURES / "loss.safetensors")
RECIPE = Recipe(
    dataset="digits",
    images=1600,
    batch=32,
    learning_rate=3e-3,
    warmup_images=320,
    ema_halflife_images=300,
    gradient_clip=1,
    P_mean=-1.2,
    P_std=1.2,
    default_steps=5,
    max_steps=8,
    seed=0,
    architecture=UNetOptions(model_channels=16, channel_mult=(1,), num_blocks=1, attn_resolutions=(), dropout=0.1),
)


def with_changes(**changes: Any) -> Recipe:
    return RECIPE.model_copy(update=changes)


@pytest.fixture(scope="module")
def few_digits() -> Dataset:
    data = load_digits()
    return dataclasses.replace(data, images=data.images[:300], labels=data.labels[:300])


def run(recipe: Recipe, data: Dataset, D: float = 128) -> tuple[list[Progress], Card, dict[str, Tensor]]:
    reports: list[Progress] = []
    card, tensors = train(recipe, D, data, torch.device("cpu"), reports.append, report_every=10)
    return reports, card, tensors


@pytest.fixture(scope="module")
def first(few_digits: Dataset) -> tuple[list[Progress], Card, dict[str, Tensor]]:
    return run(RECIPE, few_digits)


def test_a_share_of_the_labels_is_left_out(few_digits: Dataset) -> None:
    """As often as the recipe says, the network is told of no class; and the card notes it."""
    recipe, seen = with_changes(label_dropout=0.25), list[Tensor]()
    trainer = Trainer(recipe, 128, few_digits, torch.device("cpu"))
    trainer.network.register_forward_pre_hook(lambda network, inputs: seen.append(inputs[2]))
    while not trainer.is_done:
        trainer.step()
    told = torch.cat(seen).sum(1)
    assert set(told.tolist()) == {0.0, 1.0}
    left_out = float((told == 0).sum())
    assert in_proportion(np.array([left_out, len(told) - left_out]), np.array([0.25, 0.75]))
    card = trainer.card(1.0, 1.0)
    assert card.label_dropout == 0.25
    assert card.can_leave_out_class
    assert not trainer.card(1.0, 1.0).model_copy(update={"label_dropout": 0.0}).can_leave_out_class


@pytest.mark.parametrize("D", [1, 128, 2048])
def test_the_weighted_error_is_the_recorded_one(D: int) -> None:
    output, sigma, loss = (LOSS[f"edmloss.D{D}.{name}"] for name in ("output", "sigma", "loss"))
    assert relative_error(weighted_error(output, LOSS["edmloss.images"], sigma.flatten()), loss) < 1e-6


@pytest.mark.parametrize("D", [0.5, 1, 128])
def test_training_noise_follows_the_kernel_at_each_image_s_sigma(D: float) -> None:
    rng = np.random.default_rng(0)
    y = torch.rand(3000, 1, 8, 8, dtype=torch.float64)
    sigma = np.exp(rng.normal(-1.2, 1.2, len(y)))
    noise = (perturb(y, sigma, D, rng) - y).flatten(1).numpy() / sigma[:, None]
    squared = np.square(noise).sum(1) / D
    assert follows(squared, betaprime(64 / 2, D / 2).cdf)
    assert uncorrelated(np.log(squared), np.log(sigma))


def test_at_infinite_D_training_noise_is_gaussian() -> None:
    y = torch.full((4, 3, 64, 64), 100.0)
    x = perturb(y, np.array([0.1, 1, 10, 100]), math.inf, np.random.default_rng(0))
    assert x.dtype == torch.float32
    assert (x - y).std((1, 2, 3)).tolist() == pytest.approx([0.1, 1, 10, 100], rel=0.03)


@pytest.mark.parametrize(
    ("images", "factor"), [(0, 0), (160, 0.5), (319, 319 / 320), (320, 1), (960, 0.5), (1600, 0), (10_000, 0)]
)
def test_the_learning_rate_rises_and_then_falls_as_a_cosine(images: int, factor: float) -> None:
    assert learning_rate_factor(images, RECIPE) == pytest.approx(factor, abs=1e-15)


def test_a_run_that_is_all_warm_up_divides_by_nothing() -> None:
    assert learning_rate_factor(1600, with_changes(warmup_images=1600)) == 1


def average_of_ones(images_at: Callable[[int], int], recipe: Recipe, updates: int) -> float:
    """What an average that begins at 0 has become after seeing a weight of 1 so many times."""
    mean, weight = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    nn.init.zeros_(mean.weight)
    nn.init.ones_(weight.weight)
    for update in range(1, updates + 1):
        average(mean, weight, images_at(update), recipe)
    return mean.weight.item()


def test_the_average_forgets_half_in_its_halflife() -> None:
    recipe = with_changes(batch=10, ema_halflife_images=500)
    for updates in (1, 50, 100):
        expected = 1 - 0.5 ** (10 * updates / 500)
        assert average_of_ones(lambda update: 10**6, recipe, updates) == pytest.approx(expected, rel=1e-5)


def test_the_halflife_is_a_twentieth_of_the_run_at_first() -> None:
    recipe = with_changes(batch=10, ema_halflife_images=500)
    kept = math.prod(0.5 ** (10 / (0.05 * (2000 + 10 * update))) for update in range(1, 11))
    assert 0.4 < kept < 0.6
    assert average_of_ones(lambda update: 2000 + 10 * update, recipe, 10) == pytest.approx(1 - kept, rel=1e-5)


def test_training_lowers_the_loss(first: tuple[list[Progress], Card, dict[str, Tensor]]) -> None:
    reports, card, _ = first
    assert [report.images for report in reports] == [320, 640, 960, 1280, 1600]
    assert reports[-1].loss < 0.8 * reports[0].loss
    assert card.training["images"] == 1600
    assert card.training["final_loss"] == round(reports[-1].loss, 4)
    assert card.training["recipe"]["learning_rate"] == RECIPE.learning_rate


def test_training_stops_at_the_recipe_s_number_of_images(few_digits: Dataset) -> None:
    """At the batch that reaches it, wherever the next report would be due."""
    reports, card, _ = run(with_changes(images=100), few_digits)
    assert reports[-1].images == card.training["images"] == 128


def test_training_again_gives_the_same_bits(
    first: tuple[list[Progress], Card, dict[str, Tensor]], few_digits: Dataset
) -> None:
    torch.rand(3)
    reports, _, tensors = run(RECIPE, few_digits)
    assert reports == first[0]
    assert tensors.keys() == first[2].keys()
    assert all(torch.equal(tensor, first[2][name]) for name, tensor in tensors.items())


@pytest.mark.parametrize("changes", [{"seed": 1}, {"D": 1.0}])
def test_another_seed_or_D_gives_another_model(
    first: tuple[list[Progress], Card, dict[str, Tensor]], few_digits: Dataset, changes: dict[str, Any]
) -> None:
    D = changes.pop("D", 128)
    reports, _, _ = run(with_changes(images=320, **changes), few_digits, D)
    assert reports[0].loss != first[0][0].loss


def test_what_is_trained_can_be_saved_and_loaded(
    first: tuple[list[Progress], Card, dict[str, Tensor]], tmp_path: Path
) -> None:
    _, card, tensors = first
    checkpoint.save(tmp_path / "m.safetensors", card, tensors)
    model = checkpoint.load(tmp_path / "m.safetensors")
    assert model.card == card
    assert model.card.name == "digits-d128"
    assert model.card.classes == tuple("0123456789")


def test_a_loss_that_is_not_finite_ends_the_run(few_digits: Dataset) -> None:
    with pytest.raises(FloatingPointError, match="after 320 images at D = 128"):
        run(with_changes(learning_rate=1e30, warmup_images=1), few_digits)


def test_the_shipped_models_were_trained_by_the_shipped_recipe() -> None:
    recipe = read_recipe("digits").model_dump(exclude={"architecture"})
    for path in checkpoint_files(SHIPPED):
        card = read_card(path)
        assert card.training["recipe"] == recipe
        assert card.architecture == read_recipe("digits").architecture


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("images = 300_000", "images = 0", "images"),
        ("batch = 128", 'batch = "many"', "batch"),
        ("learning_rate = 2e-3", "learning_rate = -1", "learning_rate"),
        ("gradient_clip = 1.0", "gradient_clip = 0", "gradient_clip"),
        ("P_std = 1.2", "P_std = nan", "P_std"),
        ("seed = 0", "", "seed"),
        ("seed = 0", "seed = 0\nsede = 1", "sede"),
        ("\ndropout = 0.1", "\ndropout = 1.0", "architecture.dropout"),
        ("\ndropout = 0.1", "\ndropuot = 0.1", "architecture.dropuot"),
    ],
)
def test_a_setting_that_is_wrong_is_named(tmp_path: Path, old: str, new: str, named: str) -> None:
    text = (RECIPES / "digits.toml").read_text()
    assert text.count(old) == 1
    (tmp_path / "recipe.toml").write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=rf"recipe\.toml: {re.escape(named)}: "):
        read_recipe(str(tmp_path / "recipe.toml"))


def test_a_recipe_that_is_not_toml_is_refused(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text("images = = 3")
    with pytest.raises(ValueError, match="line 1"):
        read_recipe(str(tmp_path / "recipe.toml"))


@pytest.mark.parametrize("name", ["none", "none.toml"])
def test_a_recipe_that_does_not_exist_is_named_beside_those_that_do(name: str) -> None:
    with pytest.raises(ValueError, match=f"no recipe '{name}'; shipped are: digits"):
        read_recipe(name)
