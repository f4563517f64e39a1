"""What a checkpoint says about itself: the metadata of its safetensors file, readable without torch."""

import hashlib
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, ValidationError, field_validator, model_validator
from pydantic.functional_validators import AfterValidator, BeforeValidator
from safetensors import SafetensorError, safe_open

METADATA_KEY = "pfgmpp"
DATASET_NAME = r"[a-z0-9][a-z0-9_-]{0,63}"
MAX_CARD = 2**20
"""Characters: all of it is sent with every list of models."""

LEAST_D, MOST_D = 1e-3, 1e12
"""Beyond them the kernel is that of 0 or infinity to every digit that counts."""

MOST_TAPS, MOST_WEIGHT = 16, 1000
"""Of a filter by which images are halved and doubled; published ones have two or four taps of 3 at most."""

MOST_NAME = 256
"""Characters of the name of a class or of a licence."""

SHIPPED = Path(__file__).parent / "checkpoints"
"""The model store that comes with the package."""


class CheckpointError(ValueError):
    """A file is not a checkpoint this program can serve; the message names the file and the reason."""


def parse_D(value: object) -> float:
    """D as a float: a positive number, or infinity written "inf".

    Raises ValueError for anything else.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f'D must be a number > 0 or "inf", not {value!r}')
    try:
        D = float(value)
    except (ValueError, OverflowError):
        D = math.nan
    is_too_large = isinstance(value, str) and math.isinf(D) and "inf" not in value.lower()
    if is_too_large or not D > 0:
        raise ValueError(f'D must be a number > 0 or "inf", not {value!r}')
    return D


def format_D(D: float) -> int | float | str:
    """D as it is written in JSON and in names: 2048, 0.5, "inf"."""
    if math.isinf(D):
        return "inf"
    return int(D) if float(D).is_integer() else D


Dimension = Annotated[float, BeforeValidator(parse_D), PlainSerializer(format_D)]


def _checked_name(name: str) -> str:
    if len(name) > MOST_NAME or not name.isprintable():
        raise ValueError(f"must be {MOST_NAME} characters at most, all of which can be printed")
    return name


Name = Annotated[str, AfterValidator(_checked_name)]
"""Of a class or a licence: it is shown by terminals and pages."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EDM(_Frozen):
    """The preconditioning of Karras et al. (2022)."""

    kind: Literal["edm"] = "edm"
    sigma_data: float = Field(0.5, ge=1e-6, le=1e6)
    sigma_range: ClassVar[tuple[float, float]] = (0.002, 80.0)
    """Between which a model is usually sampled."""


class VP(_Frozen):
    """That of a variance-preserving process in continuous time (Song et al., 2021)."""

    kind: Literal["vp"] = "vp"
    beta_d: float = Field(19.9, gt=0, allow_inf_nan=False)
    beta_min: float = Field(0.1, gt=0, allow_inf_nan=False)
    M: int = Field(1000, ge=2, le=10**6)
    epsilon_t: float = Field(1e-5, gt=0, lt=1)

    def sigma(self, t: float) -> float:
        """The noise level at a time, epsilon_t to 1 (EDM, table 1)."""
        return math.sqrt(math.expm1(min(700.0, self.beta_d / 2 * t**2 + self.beta_min * t)))

    @property
    def sigma_range(self) -> tuple[float, float]:
        """EDM's, as far as such networks are trained for it."""
        return max(0.002, self.sigma(self.epsilon_t)), min(80.0, self.sigma(1.0))


class VE(_Frozen):
    """That of a variance-exploding process (Song et al., 2021)."""

    kind: Literal["ve"] = "ve"
    sigma_range: ClassVar[tuple[float, float]] = (0.02, 100.0)


class IDDPM(_Frozen):
    """That of a process in discrete time (Nichol and Dhariwal, 2021)."""

    kind: Literal["iddpm"] = "iddpm"
    C_1: float = Field(0.001, gt=0, lt=1)
    C_2: float = Field(0.008, gt=0, lt=1)
    sigma_range: ClassVar[tuple[float, float]] = (0.002, 80.0)
    M: int = Field(1000, ge=2, le=10**6)


Precond = EDM | VP | VE | IDDPM


class _Network(_Frozen):
    """What the options of all U-Nets share."""

    model_channels: int = Field(ge=4, le=4096)
    channel_mult: tuple[int, ...]
    num_blocks: int = Field(ge=1, le=64)
    attn_resolutions: tuple[int, ...]
    dropout: float = Field(0.0, ge=0, lt=1)
    augment_dim: int = Field(0, ge=0, le=1024)
    coordinates: Literal[0, 2] = 0
    """Channels that tell the network where in the frame each pixel lies, as training on patches needs."""
    precond: Precond = Field(EDM(), discriminator="kind")

    @model_validator(mode="before")
    @classmethod
    def _sigma_data_of_old_cards(cls, data: Any) -> Any:
        if isinstance(data, dict) and "sigma_data" in data:
            data = dict(data)
            data["precond"] = {"kind": "edm", "sigma_data": data.pop("sigma_data")}
        return data

    @property
    def unit(self) -> int:
        """Heights and widths of images must be multiples of it: they are halved for every level but the first."""
        return 1 << (len(self.channel_mult) - 1)

    @field_validator("channel_mult")
    @classmethod
    def _some_levels(cls, mult: tuple[int, ...]) -> tuple[int, ...]:
        if not 1 <= len(mult) <= 12 or not 1 <= min(mult) <= max(mult) <= 64:
            raise ValueError("must be 1 to 12 numbers from 1 to 64")
        return mult


class UNetOptions(_Network):
    """The published options of DDPM++ and NCSN++ (Song et al., 2021, as configured in EDM, table 1)."""

    network: Literal["unet"] = "unet"
    model_channels: int = Field(128, ge=4, le=4096)
    channel_mult: tuple[int, ...] = (2, 2, 2)
    num_blocks: int = Field(4, ge=1, le=64)
    attn_resolutions: tuple[int, ...] = (16,)
    embedding: Literal["positional", "fourier"] = "positional"
    encoder: Literal["standard", "residual"] = "standard"
    channel_mult_noise: int = Field(1, ge=1, le=16)
    resample_filter: tuple[int, ...] = (1, 1)

    @field_validator("resample_filter")
    @classmethod
    def _even_filter(cls, resample_filter: tuple[int, ...]) -> tuple[int, ...]:
        if len(resample_filter) not in range(2, MOST_TAPS + 1, 2) or sum(resample_filter) == 0:
            raise ValueError(f"must have an even number of taps, {MOST_TAPS} at most, that do not cancel")
        if max(map(abs, resample_filter)) > MOST_WEIGHT:
            raise ValueError(f"must have taps of {MOST_WEIGHT} at most")
        return resample_filter


class ADMOptions(_Network):
    """The published options of ADM (Dhariwal and Nichol, 2021, as configured in EDM, table 1)."""

    HEAD_CHANNELS: ClassVar[int] = 64
    network: Literal["adm"] = "adm"
    model_channels: int = Field(192, ge=64, le=4096)
    channel_mult: tuple[int, ...] = (1, 2, 3, 4)
    channel_mult_emb: int = Field(4, ge=1, le=16)
    num_blocks: int = Field(3, ge=1, le=64)
    attn_resolutions: tuple[int, ...] = (32, 16, 8)

    @field_validator("model_channels")
    @classmethod
    def _whole_heads(cls, channels: int) -> int:
        if channels % cls.HEAD_CHANNELS:
            raise ValueError(f"must be a multiple of {cls.HEAD_CHANNELS}, the channels of an attention head")
        return channels


class ExactOptions(_Frozen):
    """The exact denoiser of a finite data set, which the file holds instead of weights."""

    network: Literal["exact"] = "exact"
    examples: int = Field(ge=1)
    coordinates: ClassVar[Literal[0]] = 0
    unit: ClassVar[int] = 1


class Card(_Frozen):
    """All that is needed to rebuild and to describe a model; stored as JSON under the key `pfgmpp`."""

    format: Literal[1, 2] = 2
    """2: tensors of four axes lie with their second axis last, as networks run; 1: as torch has them."""
    dataset: str
    D: Dimension
    resolution: int = Field(ge=1, le=4096)
    channels: Literal[1, 3]
    classes: tuple[Name, ...] = ()
    architecture: UNetOptions | ADMOptions | ExactOptions = Field(discriminator="network")
    sigma_min: float = Field(0.002, ge=1e-6, allow_inf_nan=False)
    sigma_max: float = Field(80.0, le=1e6, allow_inf_nan=False)
    default_steps: int = Field(18, ge=2)
    max_steps: int = Field(256, ge=2, le=10_000)
    stored: Literal["float32", "float16", "bfloat16"] = "float32"
    """How the file holds weights of two axes or more; they are run as float32 whatever it is."""
    label_dropout: float = Field(0.0, ge=0, le=1)
    """How often training left the class out, so that the model can also be asked without one."""
    license: Name
    training: dict[str, Any] = {}

    @field_validator("dataset")
    @classmethod
    def _named(cls, dataset: str) -> str:
        if not re.fullmatch(DATASET_NAME, dataset):
            raise ValueError("must be 1 to 64 of a-z, 0-9, - and _, the first of them a letter or a digit")
        return dataset

    @field_validator("D")
    @classmethod
    def _of_use(cls, D: float) -> float:
        if not LEAST_D <= D <= MOST_D and not math.isinf(D):
            raise ValueError(f"must be from {LEAST_D:g} to {MOST_D:g}, or inf")
        return D

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min {self.sigma_min} must be below sigma_max {self.sigma_max}")
        if self.default_steps > self.max_steps:
            raise ValueError(f"default_steps {self.default_steps} exceeds max_steps {self.max_steps}")
        if self.resolution % self.architecture.unit:
            levels = self.architecture.unit.bit_length()
            raise ValueError(f"resolution {self.resolution} cannot be halved for each of {levels} levels")
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("classes must have different names")
        return self

    @property
    def name(self) -> str:
        """The model's name in file names and metrics, such as `digits-d2048`."""
        return f"{self.dataset}-d{format_D(self.D)}"

    @property
    def can_leave_out_class(self) -> bool:
        """Whether the model, which has classes, can also be asked without one."""
        return bool(self.classes) and (self.label_dropout > 0 or isinstance(self.architecture, ExactOptions))

    @property
    def shape(self) -> tuple[int, int, int]:
        """[C, H, W] of one image."""
        return (self.channels, self.resolution, self.resolution)


def read_card(path: Path) -> Card:
    """The card of a checkpoint file, from its header alone.

    Raises CheckpointError when the file cannot be read, is not safetensors, or carries no valid card.
    """
    if not path.exists():
        raise CheckpointError(f"{path}: there is no such file")
    if not path.is_file():
        raise CheckpointError(f"{path}: not a safetensors file (no file at all)")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a safetensors file ({error})") from error
    if METADATA_KEY not in metadata:
        raise CheckpointError(f"{path}: its metadata has no {METADATA_KEY!r} entry, so it is not a PFGM++ checkpoint")
    if len(metadata[METADATA_KEY]) > MAX_CARD:
        raise CheckpointError(f"{path}: its {METADATA_KEY!r} metadata is longer than {MAX_CARD:,} characters")
    try:
        data = json.loads(metadata[METADATA_KEY])
        json.dumps(data, ensure_ascii=False).encode()  # half a character, as JSON may hold, could not be sent
        return Card.model_validate(data)
    except ValidationError as error:
        raise CheckpointError(f"{path}: bad metadata: {field_errors(error)}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its {METADATA_KEY!r} metadata is not JSON ({error})") from error


def field_errors(error: ValidationError) -> str:
    """What is wrong with a card or a recipe, in one line: `field: reason; field: reason`."""
    return "; ".join(
        f"{'.'.join(map(str, each['loc'])) or 'contents'}: {each['msg'].removeprefix('Value error, ')}"
        for each in error.errors()
    )


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal: the identity of a checkpoint."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checkpoint_files(store: Path) -> Iterator[Path]:
    """The checkpoint files of a model store, in the order of their names.

    Raises CheckpointError when the store is not a directory.
    """
    if not store.is_dir():
        raise CheckpointError(f"{store}: the model store is not a directory")
    yield from sorted(store.glob("*.safetensors"))
