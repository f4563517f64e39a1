"""Recipes: what a training run is made by, in a TOML file; the same recipe serves every D."""

import json
import tomllib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from models.card import IDDPM, ADMOptions, UNetOptions, field_errors
from models.patches import Patches

RECIPES = Path(__file__).parent / "recipes"
AUGMENT_LABELS = 9
"""Numbers that tell a network how an image was changed."""

Share = Annotated[float, Field(ge=0, le=1)]


class Recipe(BaseModel):
    """What a recipe file says. Lengths are in images seen, so that they hold for any batch."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    dataset: str
    """`digits`, or the name that models trained on other data get."""
    images: int = Field(ge=1)
    batch: int = Field(ge=1, le=1_000_000)
    micro_batch: int | None = Field(None, ge=1)
    """Images at once on a device; the whole batch if left out."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the network's arithmetic; weights and everything around it are float32."""
    learning_rate: float = Field(gt=0)
    warmup_images: int = Field(ge=0)
    decay: Literal["cosine", "none"] = "cosine"
    """How the learning rate falls after the warm-up: to zero, or not at all (EDM)."""
    gradient_clip: float | None = Field(None, gt=0)
    """Of the global norm; none if left out."""
    ema_halflife_images: float = Field(gt=0)
    ema_rampup: float = Field(0.05, gt=0)
    """The half-life of the average is at most this share of the run so far (EDM, F.2)."""
    ema_power: float | None = Field(None, gt=0)
    """If given, weights count by this power of the time instead (Karras et al., 2024), with no half-life."""
    P_mean: float = -1.2
    P_std: float = Field(1.2, gt=0)
    noise_scale: float = Field(1.0, gt=0)
    """Of all noise levels: 4.75 at 256x256."""
    kernel_cap: float = Field(0.0, ge=0, lt=0.5)
    """Clips the kernel's beta draw to [cap, 1 - cap], as official models were trained (0.001); wrong, so off."""
    stable_target: int = Field(0, ge=0)
    """Images over which the target is the posterior mean (stable target field); 0 for the image itself."""
    label_dropout: Share = 0.0
    """How often the class is left out, so that the model can guide itself."""
    augment: Share = 0.0
    """How likely each kind of change is (EDM, F.2); the network is told of it."""
    mirrored: bool = False
    """Whether the data set also holds every image as a mirror shows it."""
    patch: Patches | None = None
    """Trains on patches too; the network is told where they lie."""
    stored: Literal["float32", "float16", "bfloat16"] = "float32"
    """How the checkpoint holds the weights; half the bytes are hardly worse."""
    default_steps: int = Field(ge=2)
    max_steps: int = Field(ge=2)
    seed: int = Field(ge=0, lt=2**63)
    architecture: UNetOptions | ADMOptions = Field(discriminator="network")

    @model_validator(mode="before")
    @classmethod
    def _what_follows(cls, data: object) -> object:
        """A U-Net unless it is said, with the inputs that the other settings ask for."""
        match data:
            case {"architecture": dict(options), **rest}:
                inputs = {
                    "augment_dim": AUGMENT_LABELS if rest.get("augment") else 0,
                    "coordinates": 2 if rest.get("patch") is not None else 0,
                }
                return rest | {"architecture": {"network": "unet"} | inputs | options}
        return data

    @field_validator("architecture")
    @classmethod
    def _trainable(cls, architecture: UNetOptions | ADMOptions) -> UNetOptions | ADMOptions:
        if isinstance(architecture.precond, IDDPM):
            raise ValueError("precond must be edm, vp or ve: iddpm is for models that are imported")
        return architecture

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.default_steps > self.max_steps:
            raise ValueError(f"default_steps: must be at most max_steps, {self.max_steps}")
        if self.batch % (self.micro_batch or self.batch):
            raise ValueError(f"micro_batch: must divide batch, {self.batch}")
        if self.stable_target and self.augment:
            raise ValueError("stable_target: cannot be combined with augment, which changes images one by one")
        if self.stable_target and self.stable_target < self.batch:
            raise ValueError(f"stable_target: must be at least batch, {self.batch}, which it contains")
        if bool(self.augment) != (self.architecture.augment_dim == AUGMENT_LABELS):
            raise ValueError(f"architecture.augment_dim: must be {AUGMENT_LABELS} with augment, and 0 without")
        if self.patch and (self.augment or self.stable_target):
            raise ValueError("patch: cannot be combined with augment or stable_target, which are of whole images")
        if bool(self.patch) != bool(self.architecture.coordinates):
            raise ValueError("architecture.coordinates: must be 2 with patch, and 0 without")
        return self


def read_recipe(name: str, changes: Sequence[str] = ()) -> Recipe:
    """The recipe in a TOML file, or the shipped one of that name; `changes`, each `setting=value`, come on top of it.

    Raises ValueError naming the file and the setting that is wrong, or the recipes that exist.
    """
    path = Path(name) if name.endswith(".toml") else RECIPES / f"{name}.toml"
    try:
        settings: dict[str, Any] = tomllib.loads(path.read_text())
        for change in changes:
            settings = _merged(settings, _setting(change))
        return Recipe.model_validate(settings)
    except FileNotFoundError as error:
        shipped = ", ".join(sorted(recipe.stem for recipe in RECIPES.glob("*.toml")))
        raise ValueError(f"there is no recipe {name!r}; shipped are: {shipped}") from error
    except ValidationError as error:
        changed = f" with {' '.join(changes)}" if changes else ""
        raise ValueError(f"{name}{changed}: {field_errors(error)}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a TOML file ({error})") from error


def _setting(change: str) -> dict[str, Any]:
    """What `setting=value` says in TOML, where quotes may be left out; `architecture.dropout` is one in a table.

    Raises ValueError when it says nothing.
    """
    name, _, value = change.partition("=")
    for written in (value, json.dumps(value)) if value else ():
        with suppress(tomllib.TOMLDecodeError):
            return tomllib.loads(f"{name} = {written}")
    raise ValueError(f"{change}: must be SETTING=VALUE, such as batch=64 or architecture.dropout=0.1")


def _merged(settings: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Settings with others on top, table by table."""
    tables = {
        name: _merged(settings[name], each)
        for name, each in more.items()
        if isinstance(each, dict) and isinstance(settings.get(name), dict)
    }
    return settings | more | tables
