"""Training: its objective, its schedules, and a run small enough to repeat."""

import json
import math
import re
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.stats import betaprime, norm, uniform
from torch import Tensor, nn

from models import checkpoint
from models.card import EDM, SHIPPED, VE, VP, Card, Precond, UNetOptions, checkpoint_files, read_card
from models.data import Dataset, load_digits
from models.objective import Draws, stable_target, weighted_error
from models.precond import vp_time
from models.recipe import RECIPES, Recipe, read_recipe
from models.train import Folder, Place, Progress, Run, TrainError, average, learning_rate_factor, train
from tests.models.helpers import FIXTURES, follows, in_proportion, relative_error, uncorrelated

CPU = torch.device("cpu")
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
    return load_digits().first(300)


def run(recipe: Recipe, data: Dataset, D: float = 128) -> tuple[list[Progress], Card, dict[str, Tensor]]:
    reports: list[Progress] = []
    run = Run(recipe, D, data, CPU)
    last = train(run, reports.append, report_every=10)
    return reports, run.card(last), run.tensors()


@pytest.fixture(scope="module")
def first(few_digits: Dataset) -> tuple[list[Progress], Card, dict[str, Tensor]]:
    return run(RECIPE, few_digits)


def test_a_share_of_the_labels_is_left_out(few_digits: Dataset) -> None:
    """As often as the recipe says, the network is told of no class; and the card notes it."""
    recipe, seen = with_changes(label_dropout=0.25, batch=160), list[Tensor]()
    trainer = Run(recipe, 128, few_digits, CPU)
    trainer.network.register_forward_pre_hook(lambda network, inputs: seen.append(inputs[2]))
    last = train(trainer, lambda progress: None)
    told = torch.cat(seen).sum(1)
    assert set(told.tolist()) == {0.0, 1.0}
    left_out = float((told == 0).sum())
    assert in_proportion(np.array([left_out, len(told) - left_out]), np.array([0.25, 0.75]))
    card = trainer.card(last)
    assert card.label_dropout == 0.25
    assert card.can_leave_out_class
    assert not card.model_copy(update={"label_dropout": 0.0}).can_leave_out_class


@pytest.mark.parametrize("D", [1, 128, 2048])
def test_the_weighted_error_is_the_recorded_one(D: int) -> None:
    output, sigma, loss = (LOSS[f"edmloss.D{D}.{name}"] for name in ("output", "sigma", "loss"))
    assert relative_error(weighted_error(output, LOSS["edmloss.images"], sigma.flatten(), EDM()), loss) < 1e-6


@pytest.mark.parametrize("D", [0.5, 1, 128])
def test_training_noise_follows_the_kernel_whatever_the_sigma(few_digits: Dataset, D: float) -> None:
    drawn = Draws(RECIPE, D, few_digits).examples(3, 0, 3000)
    squared = drawn.noise.to(torch.float64).square().sum((1, 2, 3)).numpy() / D
    assert follows(squared, betaprime(64 / 2, D / 2).cdf)
    assert follows((drawn.sigma.log().numpy() - RECIPE.P_mean) / RECIPE.P_std, norm.cdf)
    assert uncorrelated(np.log(squared), drawn.sigma.log().numpy())


def test_at_infinite_D_training_noise_is_gaussian(few_digits: Dataset) -> None:
    assert follows(Draws(RECIPE, math.inf, few_digits).examples(0, 0, 100).noise.flatten().numpy(), norm.cdf)


def test_other_preconditionings_have_noise_of_their_own(few_digits: Dataset) -> None:
    """ln sigma uniform for VE, the time uniform for VP; the error weighs by 1 / sigma^2 (EDM, table 1)."""
    levels = dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float64]]]()
    preconds: tuple[Precond, ...] = (VE(), VP())
    for precond in preconds:
        recipe = with_changes(architecture=RECIPE.architecture.model_copy(update={"precond": precond}))
        levels[precond.kind] = Draws(recipe, 128, few_digits).examples(0, 0, 2000).sigma.numpy()
        sigma = torch.tensor([0.1, 5.0])
        error = weighted_error(torch.zeros(2, 1, 1, 1), torch.ones(2, 1, 1, 1), sigma, precond)
        torch.testing.assert_close(error.flatten(), sigma**-2)
        card = Run(recipe, 128, few_digits, CPU).card(Progress(0, 0.0, 0.0, 0.0))
        assert (card.sigma_min, card.sigma_max) == precond.sigma_range
        assert np.isfinite(run(recipe.model_copy(update={"images": 64}), few_digits)[0][-1].loss)
    assert follows(np.log(levels["ve"]), uniform(math.log(0.02), math.log(100 / 0.02)).cdf)
    times = [vp_time(torch.tensor(sigma), VP()).item() for sigma in levels["vp"]]
    assert follows(np.array(times), uniform(1e-5, 1 - 1e-5).cdf)


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


def test_a_run_that_goes_on_is_the_run_that_was_never_interrupted(few_digits: Dataset, tmp_path: Path) -> None:
    """Stopped at any step, and its log cut off in the middle of a line."""
    recipe, whole, parts = with_changes(images=800), Folder(tmp_path / "whole"), Folder(tmp_path / "parts")
    whole.begin(0)
    unbroken = Run(recipe, 128, few_digits, CPU)
    train(unbroken, lambda progress: None, whole, report_every=5)
    for begun, stops in pairwise((0, 160, 224, 256, 480, 0)):
        run = Run(recipe, 128, few_digits, CPU)
        if begun:
            run.load(parts.state)
        assert run.images_seen == begun
        parts.begin(run.images_seen)
        train(run, lambda progress: None, parts, report_every=5, is_to_stop=partial(has_seen, run, stops))
        with parts.log.open("a") as file:
            file.write('{"images": 99999, "lo')
    assert run.is_done
    assert all(torch.equal(tensor, unbroken.tensors()[name]) for name, tensor in run.tensors().items())
    assert losses(whole) == losses(parts)


def has_seen(run: Run, images: int) -> bool:
    return run.images_seen == images


def losses(folder: Folder) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in folder.log.read_text().splitlines() if line.endswith("}")]
    return [(line["images"], line["loss"]) for line in lines]


def test_a_state_of_another_run_is_refused(few_digits: Dataset, tmp_path: Path) -> None:
    state = tmp_path / "state.safetensors"
    Run(RECIPE, 128, few_digits, CPU).save(state)
    Run(with_changes(images=3200), 128, few_digits, CPU).load(state)
    with pytest.raises(TrainError, match=f"{state}: is of another run: D was 128, not 2"):
        Run(RECIPE, 2, few_digits, CPU).load(state)
    with pytest.raises(TrainError, match=r"run: P_mean was -1\.2, not 0\.0; learning_rate was 0\.003, not 0\.1"):
        Run(with_changes(learning_rate=0.1, P_mean=0.0), 128, few_digits, CPU).load(state)
    state.write_bytes(b"nonsense")
    with pytest.raises(TrainError, match="not a state of a training run"):
        Run(RECIPE, 128, few_digits, CPU).load(state)


def test_a_run_may_begin_with_the_weights_of_another(
    first: tuple[list[Progress], Card, dict[str, Tensor]], few_digits: Dataset, tmp_path: Path
) -> None:
    _, card, tensors = first
    checkpoint.save(tmp_path / "m.safetensors", card, tensors)
    fine = Run(with_changes(images=320, learning_rate=1e-5), 2048, few_digits, CPU)
    fine.transfer(tmp_path / "m.safetensors")
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in fine.tensors().items())
    assert train(fine, lambda progress: None).loss < first[0][0].loss
    other = RECIPE.architecture.model_copy(update={"model_channels": 8})
    with pytest.raises(TrainError, match=r"m\.safetensors: tensor '.*: architecture\.model_channels was 16"):
        Run(with_changes(architecture=other), 128, few_digits, CPU).transfer(tmp_path / "m.safetensors")


@pytest.mark.parametrize("D", [2.0, math.inf])
def test_parts_of_a_batch_are_those_of_the_whole(few_digits: Dataset, D: float) -> None:
    """Whatever the pieces in which it is drawn, by however many processes."""
    draws = Draws(with_changes(batch=40, label_dropout=0.3), D, few_digits)
    whole = draws.examples(7, 0, 40)
    for start, stop in ((0, 40), (0, 20), (20, 40), (8, 16), (15, 33)):
        part = draws.examples(7, start, stop)
        for name in ("y", "noise", "sigma", "labels"):
            assert torch.equal(getattr(part, name), getattr(whole, name)[start:stop]), name


def test_every_image_comes_once_in_an_epoch(few_digits: Dataset) -> None:
    draws = Draws(with_changes(batch=100), 2, few_digits)
    for epoch in (0, 5):
        images = torch.cat([draws.examples(3 * epoch + step, 0, 100).y for step in range(3)])
        found = {image.numpy().tobytes() for image in images}
        assert found == {image.numpy().tobytes() for image in few_digits.take(np.arange(300))}


def test_a_mirrored_data_set_is_twice_as_large(few_digits: Dataset) -> None:
    """In an epoch every image comes once as it is, and once as a mirror shows it, with its class."""
    examples = Draws(with_changes(batch=600, mirrored=True), 2, few_digits).examples(0, 0, 600)
    own = few_digits.take(np.arange(300))
    expected = Counter(image.numpy().tobytes() for image in torch.cat([own, own.flip(3)]).contiguous())
    assert Counter(image.numpy().tobytes() for image in examples.y.contiguous()) == expected
    assert examples.labels is not None
    classes = {image.numpy().tobytes(): int(label) for image, label in zip(own, few_digits.labels, strict=True)}
    told = zip(examples.y.contiguous(), examples.labels.argmax(1).tolist(), strict=True)
    assert all(classes.get(image.numpy().tobytes(), label) == label for image, label in told)


def test_small_pieces_make_the_same_step(few_digits: Dataset) -> None:
    """Of a network without dropout."""
    architecture = RECIPE.architecture.model_copy(update={"dropout": 0.0})
    recipe = with_changes(images=160, architecture=architecture)
    whole, pieces = (run(recipe.model_copy(update={"micro_batch": size}), few_digits) for size in (None, 8))
    assert [report.loss for report in pieces[0]] == pytest.approx([report.loss for report in whole[0]], rel=1e-4)
    assert all(relative_error(tensor, whole[2][name]) < 1e-3 for name, tensor in pieces[2].items())


def test_bfloat16_learns_as_float32_does(few_digits: Dataset) -> None:
    """A smaller network, for without units for it half precision is slow."""
    architecture = RECIPE.architecture.model_copy(update={"model_channels": 8})
    recipe = with_changes(architecture=architecture, images=640)
    full, half = (run(recipe.model_copy(update={"precision": each}), few_digits) for each in ("float32", "bfloat16"))
    assert [each.loss for each in half[0]] == pytest.approx([each.loss for each in full[0]], rel=0.05)
    assert half[0][-1].loss < 0.9 * half[0][0].loss
    assert [each.loss for each in half[0]] != [each.loss for each in full[0]]
    assert {tensor.dtype for tensor in half[2].values()} == {torch.float32}


@pytest.mark.parametrize("D", ["1", "128", "2048"])
def test_the_stable_target_is_the_recorded_one(D: str) -> None:
    sigma = LOSS[f"stf.D{D}.r"] / math.sqrt(float(D))
    x, reference = LOSS[f"stf.D{D}.perturbed"].to(torch.float64), LOSS["stf.reference"].to(torch.float64)
    found = stable_target(x, sigma, None, reference, None, float(D))
    assert relative_error(found, LOSS[f"stf.D{D}.target"]) < 2e-6


@pytest.mark.parametrize("D", [1, 16, 2048, 1e6, math.inf])
@pytest.mark.parametrize("sigma", [1e-3, 1.0, 1e3])
def test_the_stable_target_is_finite_and_keeps_to_the_class(D: float, sigma: float) -> None:
    rng = torch.Generator().manual_seed(0)
    reference, classes = torch.rand(12, 3, 8, 8, generator=rng), torch.eye(2)[torch.arange(12) % 2]
    x = reference[:4] + sigma * torch.randn(4, 3, 8, 8, generator=rng)
    level = torch.full((4,), sigma)
    target = stable_target(x, level, classes[:4], reference, classes, D)
    assert target.isfinite().all()
    own = torch.cat([stable_target(x[k : k + 1], level[:1], None, reference[k % 2 :: 2], None, D) for k in range(4)])
    torch.testing.assert_close(target, own)


def test_a_stable_target_lowers_the_loss_it_cannot_explain(
    first: tuple[list[Progress], Card, dict[str, Tensor]], few_digits: Dataset
) -> None:
    reports, _, _ = run(with_changes(stable_target=128), few_digits)
    assert reports[-1].loss < first[0][-1].loss


def test_the_cap_is_that_of_the_official_code_and_off(few_digits: Dataset) -> None:
    """Of the kernel at D = 1 it cuts nine tenths of the draws in 3,072 dimensions, and in 64 about half."""
    plain, clipped = (
        Draws(with_changes(kernel_cap=cap), 1, few_digits).examples(0, 0, 4000).noise.to(torch.float64)
        for cap in (0, 1e-3)
    )
    B = plain.square().sum((1, 2, 3))
    s, cut = B / (1 + B), clipped.square().sum((1, 2, 3))
    assert RECIPE.kernel_cap == 0
    torch.testing.assert_close(cut / (1 + cut), s.clamp(1e-3, 1 - 1e-3))
    assert 0.05 < float((s > 1 - 1e-3).double().mean()) < 0.5
    torch.testing.assert_close(clipped / cut.sqrt()[:, None, None, None], plain / B.sqrt()[:, None, None, None])


def test_the_average_by_a_power_of_time_weighs_so() -> None:
    """Weights at a time t count as t^gamma (Karras et al., 2024, eq. 1)."""
    recipe = with_changes(batch=10, ema_power=6.0)
    mean = average_of_ones(lambda update: 10 * (update + 50), recipe, 50)
    assert mean == pytest.approx(1 - (50 / 100) ** 7, rel=0.05)


def test_the_rate_may_stay(few_digits: Dataset) -> None:
    assert learning_rate_factor(1500, with_changes(decay="none")) == 1
    assert learning_rate_factor(160, with_changes(decay="none")) == 0.5


def test_processes_must_share_a_batch(few_digits: Dataset) -> None:
    with pytest.raises(TrainError, match="batch, 32, must be a multiple of the processes, 3"):
        Run(RECIPE, 2, few_digits, CPU, Place(0, 3))


def test_the_shipped_models_were_trained_by_the_shipped_recipe() -> None:
    for path in checkpoint_files(SHIPPED):
        card = read_card(path)
        noted = card.training["recipe"] | {"architecture": card.architecture.model_dump()}
        assert Recipe.model_validate(noted) == read_recipe("digits")


def test_single_settings_may_be_changed() -> None:
    recipe = read_recipe(
        "digits", ["batch=64", "decay=none", "architecture.dropout=0.2", "architecture.channel_mult=[1]"]
    )
    plain = read_recipe("digits")
    architecture = plain.architecture.model_copy(update={"dropout": 0.2, "channel_mult": (1,)})
    assert recipe == plain.model_copy(update={"batch": 64, "decay": "none", "architecture": architecture})
    assert read_recipe("digits", ["augment=0.1"]).architecture.augment_dim == 9


@pytest.mark.parametrize(
    ("change", "named"),
    [("batch", "batch: must be SETTING=VALUE"), ("=3", "=3: must be SETTING=VALUE"), ("batches=3", "batches: Extra")],
)
def test_a_change_that_is_wrong_is_named(change: str, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        read_recipe("digits", [change])


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
        ("\ndropout = 0.1", "\ndropout = 1.0", "architecture.unet.dropout"),
        ("\ndropout = 0.1", "\ndropuot = 0.1", "architecture.unet.dropuot"),
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
    with pytest.raises(ValueError, match=f"no recipe '{name}'; shipped are: cifar10, cifar10-16, digits"):
        read_recipe(name)
