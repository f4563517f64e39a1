"""Training: the PFGM++ objective, Adam, and an average of the weights that becomes the checkpoint."""

import math
import time
import tomllib
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from torch import Tensor, nn

from models.card import EDM, Card, UNetOptions, field_errors
from models.data import Dataset
from models.kernel import FloatArray, stretch
from models.precond import Denoiser

RECIPES = Path(__file__).parent / "recipes"


class Recipe(BaseModel):
    """What a recipe file says; the same recipe serves every D."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str
    images: int = Field(ge=1)
    batch: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    warmup_images: int = Field(ge=1)
    ema_halflife_images: float = Field(gt=0)
    gradient_clip: float = Field(gt=0)
    P_mean: float
    P_std: float = Field(gt=0)
    label_dropout: float = Field(0.0, ge=0, le=1)
    """How often the class is left out, so that the model can guide itself."""
    default_steps: int = Field(ge=2)
    max_steps: int = Field(ge=2)
    seed: int
    architecture: UNetOptions

    @field_validator("architecture")
    @classmethod
    def _trainable(cls, architecture: UNetOptions) -> UNetOptions:
        if not isinstance(architecture.precond, EDM):
            raise ValueError("precond must be edm: the others are for models that are imported")
        return architecture


class Progress(NamedTuple):
    """Where a training run stands: images seen, and the mean loss since the last report."""

    images: int
    loss: float


def read_recipe(name: str) -> Recipe:
    """The recipe in a TOML file, or the shipped one of that name.

    Raises ValueError naming the file and the setting that is wrong, or the recipes that exist.
    """
    path = Path(name) if name.endswith(".toml") else RECIPES / f"{name}.toml"
    try:
        return Recipe.model_validate(tomllib.loads(path.read_text()))
    except FileNotFoundError as error:
        shipped = ", ".join(sorted(recipe.stem for recipe in RECIPES.glob("*.toml")))
        raise ValueError(f"there is no recipe {name!r}; shipped are: {shipped}") from error
    except ValidationError as error:
        raise ValueError(f"{path}: {field_errors(error)}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a TOML file ({error})") from error


def weighted_error(denoised: Tensor, y: Tensor, sigma: Tensor, sigma_data: float = 0.5) -> Tensor:
    """w(sigma) (D_theta(x, sigma) - y)^2 per element, w = (sigma^2 + s^2) / (sigma s)^2 (EDM, section 5)."""
    weight = (sigma.square() + sigma_data**2) / (sigma * sigma_data).square()
    return weight[:, None, None, None] * (denoised - y).square()


def perturb(y: Tensor, sigma: FloatArray, D: float, rng: np.random.Generator) -> Tensor:
    """x ~ p_r(x | y), r = sigma sqrt(D), for a batch y [B, C, H, W] and sigma [B]; drawn in float64, in y's dtype."""
    noise = rng.standard_normal(y.shape) * (sigma * stretch(rng, len(y), D))[:, None, None, None]
    return (y.cpu().to(torch.float64) + torch.from_numpy(noise)).to(y)


def learning_rate_factor(images: int, recipe: Recipe) -> float:
    """The share of the learning rate in use after so many images: a linear rise, then half a cosine to zero."""
    if images < recipe.warmup_images:
        return images / recipe.warmup_images
    done = (images - recipe.warmup_images) / max(1, recipe.images - recipe.warmup_images)
    return (1 + math.cos(math.pi * min(1.0, done))) / 2


@torch.no_grad()
def average(ema: nn.Module, network: nn.Module, images: int, recipe: Recipe) -> None:
    """Move the average of the weights towards the weights; its half-life grows with the run at first (EDM, F.2)."""
    halflife = min(recipe.ema_halflife_images, 0.05 * images)
    towards = 1 - 0.5 ** (recipe.batch / halflife)
    for mean, weight in zip(ema.parameters(), network.parameters(), strict=True):
        mean.lerp_(weight, towards)


class Trainer:
    """One training run: `step` until `is_done`, then `tensors` and `card` make the checkpoint."""

    def __init__(self, recipe: Recipe, D: float, data: Dataset, device: torch.device):
        torch.manual_seed(recipe.seed)
        self.recipe, self.D, self.data, self.device = recipe, D, data, device
        self.rng = np.random.default_rng(recipe.seed)
        channels, resolution = data.images.shape[1:3]
        network = Denoiser(recipe.architecture, resolution, channels, len(data.classes))
        network.model.init_weights()
        self.network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.ema = deepcopy(self.network).eval().requires_grad_(False)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=recipe.learning_rate)
        self.images_seen = 0

    @property
    def steps_left(self) -> int:
        return max(0, -(-(self.recipe.images - self.images_seen) // self.recipe.batch))

    @property
    def is_done(self) -> bool:
        return self.steps_left == 0

    def step(self) -> Tensor:
        """One batch and one update; the loss per element, before the update."""
        loss = self._loss()
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.gradient_clip)
        self.images_seen += self.recipe.batch
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate * learning_rate_factor(self.images_seen, self.recipe)
        self.optimizer.step()
        average(self.ema, self.network, self.images_seen, self.recipe)
        return loss.detach()

    def _loss(self) -> Tensor:
        chosen = torch.from_numpy(self.rng.integers(len(self.data.images), size=self.recipe.batch))
        y = self.data.images[chosen].to(self.device)
        labels = nn.functional.one_hot(self.data.labels[chosen], len(self.data.classes)).to(y)
        if self.recipe.label_dropout:
            is_left_out = self.rng.random(self.recipe.batch) < self.recipe.label_dropout
            labels[torch.from_numpy(is_left_out)] = 0
        sigma = np.exp(self.rng.normal(self.recipe.P_mean, self.recipe.P_std, self.recipe.batch))
        x = perturb(y, sigma, self.D, self.rng).contiguous(memory_format=torch.channels_last)
        level = torch.from_numpy(sigma).to(y)
        denoised = self.network(x, level, labels)
        return weighted_error(denoised, y, level, self.network.precond.sigma_data).mean()

    def tensors(self) -> dict[str, Tensor]:
        """The averaged weights: what the checkpoint holds."""
        return dict(self.ema.state_dict())

    def card(self, seconds: float, loss: float) -> Card:
        """The card of the checkpoint, with the facts of this run."""
        channels, resolution = self.data.images.shape[1:3]
        return Card(
            dataset=self.data.name,
            D=self.D,
            resolution=resolution,
            channels=channels,
            classes=self.data.classes,
            architecture=self.recipe.architecture,
            default_steps=self.recipe.default_steps,
            max_steps=self.recipe.max_steps,
            label_dropout=self.recipe.label_dropout,
            license=self.data.license,
            training={
                "recipe": self.recipe.model_dump(exclude={"architecture"}),
                "images": self.images_seen,
                "seconds": round(seconds, 1),
                "images_per_second": round(self.images_seen / seconds, 1),
                "final_loss": round(loss, 4),
                "device": str(self.device),
                "torch": torch.__version__,
            },
        )


def train(
    recipe: Recipe,
    D: float,
    data: Dataset,
    device: torch.device,
    report: Callable[[Progress], object],
    report_every: int = 20,
) -> tuple[Card, dict[str, Tensor]]:
    """The card and the averaged weights of a model trained by a recipe for one D.

    Raises FloatingPointError at the report that finds the loss not finite.
    """
    run = Trainer(recipe, D, data, device)
    started = time.perf_counter()
    loss = math.nan
    while not run.is_done:
        recent = [run.step() for _ in range(min(report_every, run.steps_left))]
        loss = torch.stack(recent).mean().item()
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss} after {run.images_seen:,} images at D = {D}")
        report(Progress(run.images_seen, loss))
    return run.card(time.perf_counter() - started, loss), run.tensors()
