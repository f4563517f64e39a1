"""Official checkpoints of PFGM++ and EDM, from the records in their files to a card and tensors of ours.

The official code is licensed CC BY-NC-SA 4.0, and so are its checkpoints. None of it is here: this was written from the
files themselves, which note the options of every module.
"""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, TypeAdapter, ValidationError
from torch import Tensor

from models.card import (
    EDM,
    IDDPM,
    VE,
    VP,
    ADMOptions,
    Card,
    CheckpointError,
    UNetOptions,
    field_errors,
    file_sha256,
    format_D,
    read_card,
)
from models.checkpoint import build, check_tensors
from models.levels import LevelsError, noise_levels, rounded
from models.pickles import Array, Container, Record, read

LICENSE = "CC BY-NC-SA 4.0"

PRECONDS: dict[str, type[EDM | VP | VE | IDDPM]] = {
    "EDMPrecond": EDM,
    "VPPrecond": VP,
    "VEPrecond": VE,
    "iDDPMPrecond": IDDPM,
}
"""The official classes of denoisers, and the preconditioning that each has."""

NETWORKS: dict[str, type[UNetOptions | ADMOptions]] = {"SongUNet": UNetOptions, "DhariwalUNet": ADMOptions}
"""The official classes of raw networks, and our options of each."""

RENAMED = {"embedding_type": "embedding", "encoder_type": "encoder"}
"""Official options that have another name here."""

DEFAULT_STEPS, MAX_STEPS = 18, 256
MAX_TENSORS = 20_000
MAX_PATH = 500
MAX_LIST = 64
MAX_CLASSES = 100_000
MAX_CLASSES_BYTES = 4 << 20


@dataclass(frozen=True)
class Official:
    """An official checkpoint, of which the weights' moving average (`ema`) is what counts."""

    path: Path
    contents: Container
    network: Record
    """The denoiser: a preconditioning, with the raw network within."""

    @cached_property
    def sha256(self) -> str:
        return file_sha256(self.path)

    @property
    def model(self) -> Record:
        """The raw network."""
        return self._part(self.network, "model")

    @property
    def step(self) -> int | None:
        """How long it was trained, in the unit that the file counts in; None when it does not say."""
        step = self._root.get("step")
        return step if type(step) is int else None

    @property
    def dataset(self) -> str | None:
        """The data set's name as its file tells it; None when that is not noted, or could not be a name here."""
        noted = self._root.get("dataset_kwargs")
        path = noted.get("path") if isinstance(noted, dict) else None
        file = path.replace("\\", "/").rpartition("/")[2] if isinstance(path, str) else ""
        name = file.removesuffix(".zip").lower()
        return name if re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,63}", name) else None

    @property
    def D(self) -> list[float]:
        """What D may be by what the file notes: nothing, one number, or a number that training may not have used.

        A network with `D` whose `pfgmpp` is off was trained as a diffusion model if its trainer set the latter.
        """
        D = self.network.state.get("D")
        if isinstance(D, bool) or not isinstance(D, int | float) or not D > 0:
            return []
        return [float(D), math.inf] if self.network.state.get("pfgmpp") is False else [float(D)]

    @property
    def parameters(self) -> int:
        return sum(array.count for _, array in self._arrays("_parameters"))

    @cached_property
    def arrays(self) -> dict[str, Array]:
        """Every tensor of the network by its name in the state dict, still in the file.

        Raises CheckpointError when they are together larger than the file, so that it must hold some of them twice.
        """
        found = dict(self._arrays("_parameters", "_buffers"))
        if sum(array.count * array.storage.dtype.itemsize for array in found.values()) > self.contents.size:
            raise CheckpointError(f"{self.path}: its tensors are together larger than the file")
        return found

    def measures(self) -> tuple[int, int, int]:
        """Channels and resolution of its images, and the number of its classes."""
        channels, resolution, classes = (
            self._number(self.network, name) for name in ("img_channels", "img_resolution", "label_dim")
        )
        return channels, resolution, classes

    def options(self) -> UNetOptions | ADMOptions:
        """The network's options: those that it was made with, and for others what its modules show.

        Raises CheckpointError naming an option that is not supported.
        """
        kind = NETWORKS[self.model.kind]
        noted = _attributes(self.model, "_init_kwargs")
        if noted.get("decoder_type", "standard") != "standard":
            raise CheckpointError(f"{self.path}: decoder_type: only the standard decoder is supported")
        made_with = {RENAMED.get(name, name): value for name, value in noted.items() if isinstance(name, str)}
        chosen = (
            self._shown() | made_with | {"precond": self._precond(), "network": kind.model_fields["network"].default}
        )
        own = {name: value for name, value in chosen.items() if name in kind.model_fields}
        for name, value in own.items():
            if isinstance(value, list | tuple | dict) and len(value) > MAX_LIST:
                raise CheckpointError(f"{self.path}: {name}: more than {MAX_LIST} values")
        try:
            return kind.model_validate(own)
        except ValidationError as error:
            raise CheckpointError(f"{self.path}: options of its network: {field_errors(error)}") from error

    def card(
        self,
        dataset: str | None = None,
        D: float | None = None,
        classes: tuple[str, ...] | None = None,
        is_aligned: bool = False,
    ) -> Card:
        """The card of the model; what is given must suit what the file notes.

        `is_aligned` is for old models of PFGM++, of which the noise levels were sqrt(1 + N/D) times as high.

        Raises CheckpointError naming what is missing, contradicts the file, or is not supported.
        """
        (channels, resolution, count), (sigma_min, sigma_max) = self.measures(), self._sigma_range()
        chosen_D = self._chosen_D(D)
        scale = math.sqrt(1 + channels * resolution**2 / chosen_D) if is_aligned else 1.0
        if is_aligned and math.isinf(chosen_D):
            raise CheckpointError(f"{self.path}: --align is for a finite D; it changes nothing for inf")
        max_steps = self._max_steps(sigma_min, sigma_max)
        fields: dict[str, Any] = {
            "dataset": self._chosen_dataset(dataset),
            "D": chosen_D,
            "resolution": resolution,
            "channels": channels,
            "classes": self._chosen_classes(classes, count),
            "architecture": self.options(),
            "sigma_min": scale * sigma_min,
            "sigma_max": scale * sigma_max,
            "default_steps": min(DEFAULT_STEPS, max_steps),
            "max_steps": max_steps,
            "label_dropout": self._label_dropout(),
            "license": LICENSE,
            "training": self.origin(),
        }
        try:
            return Card(**fields)
        except ValidationError as error:
            raise CheckpointError(f"{self.path}: {field_errors(error)}") from error

    def origin(self) -> dict[str, Any]:
        """Where the weights come from, for the card."""
        origin = {
            "source": self.path.name,
            "sha256": self.sha256,
            "container": self.contents.form,
            "class": f"{self.network.kind} of {self.model.kind}",
            "step": self.step,
        }
        return {name: value for name, value in origin.items() if value is not None}

    def tensors(self) -> dict[str, Tensor]:
        """A copy of every tensor, in float32 where it holds fractions."""
        return {name: _tensor(array) for name, array in self.arrays.items()}

    @property
    def _root(self) -> dict[str, Any]:
        return self.contents.root  # type: ignore[return-value]

    def _part(self, module: Record, name: str) -> Record:
        part = _attributes(module, "_modules").get(name)
        if not isinstance(part, Record):
            raise CheckpointError(f"{self.path}: its {module.kind!r:.100} has no part {name!r}")
        return part

    def _number(self, module: Record, name: str) -> int:
        number = module.state.get(name)
        if type(number) is not int or number < 0:
            raise CheckpointError(f"{self.path}: its {module.kind!r:.100} does not note its {name}, a whole number")
        return number

    def _arrays(self, *attributes: str) -> Iterator[tuple[str, Array]]:
        """Names and tensors of the network, from these attributes of its modules.

        Raises CheckpointError when there are too many, or when modules contain themselves.
        """
        waiting, seen = [("", self.network)], 0
        while waiting:
            prefix, module = waiting.pop()
            parts = _attributes(module, "_modules").items()
            own = [item for attribute in attributes for item in _attributes(module, attribute).items()]
            seen += len(parts) + len(own)
            if seen > MAX_TENSORS or any(len(prefix) + len(str(name)) > MAX_PATH for name, _ in [*parts, *own]):
                raise CheckpointError(f"{self.path}: its network has too many parts, or parts within parts")
            yield from ((f"{prefix}{name}", array) for name, array in own if isinstance(array, Array))
            waiting += [(f"{prefix}{name}.", part) for name, part in parts if isinstance(part, Record)]

    def _shown(self) -> dict[str, Any]:
        """The options of the raw network as far as its modules show them."""
        model, resolution = self.model, self._number(self.network, "img_resolution")
        encoder = self._part(model, "enc")
        layer, first = self._part(model, "map_layer0"), self._part(encoder, f"{resolution}x{resolution}_conv")
        inner, emb = self._number(layer, "in_features"), self._number(layer, "out_features")
        width = inner if model.kind == "DhariwalUNet" else self._number(first, "out_channels")
        layers = _attributes(encoder, "_modules")
        blocks: dict[int, list[Record]] = {}
        for name, block in layers.items():
            if isinstance(block, Record) and (match := re.fullmatch(r"(\d{1,5})x\1_block\d{1,3}", str(name))):
                blocks.setdefault(int(match[1]), []).append(block)
        if not width or not blocks:
            raise CheckpointError(f"{self.path}: its network is not built as those of the official code are")
        levels = [blocks[at][0] for at in sorted(blocks, reverse=True)]
        augment = _attributes(model, "_modules").get("map_augment")
        return {
            "model_channels": width,
            "channel_mult": [self._number(block, "out_channels") // width for block in levels],
            "channel_mult_emb": emb // width,
            "channel_mult_noise": inner // width,
            "num_blocks": max(map(len, blocks.values())),
            "attn_resolutions": [at for at in sorted(blocks, reverse=True) if self._number(blocks[at][0], "num_heads")],
            "dropout": levels[0].state.get("dropout", 0),
            "embedding": "fourier" if self._part(model, "map_noise").kind == "FourierEmbedding" else "positional",
            "encoder": "residual" if any("_aux_residual" in str(name) for name in layers) else "standard",
            "resample_filter": _attributes(levels[0], "_init_kwargs").get("resample_filter", [1, 1]),
            "augment_dim": self._number(augment, "in_features") if isinstance(augment, Record) else 0,
        }

    def _precond(self) -> EDM | VP | VE | IDDPM:
        kind = PRECONDS[self.network.kind]
        noted = {name: value for name, value in self.network.state.items() if name in kind.model_fields}
        try:
            return kind.model_validate(noted | {"kind": kind.model_fields["kind"].default})
        except ValidationError as error:
            raise CheckpointError(f"{self.path}: its {self.network.kind}: {field_errors(error)}") from error

    def _sigma_range(self) -> tuple[float, float]:
        """EDM's noise levels, .002 to 80, as far as the network was trained for them; the whole range of VE."""
        precond = self._precond()
        if not isinstance(precond, IDDPM):
            return precond.sigma_range
        levels = self.arrays["u"].values().astype(np.float64) if "u" in self.arrays else np.array([0.002, 80.0])
        trained = levels[levels > 0]
        return max(0.002, float(trained.min(initial=80))), min(80.0, float(trained.max(initial=0.002)))

    def _max_steps(self, sigma_min: float, sigma_max: float) -> int:
        """The most steps of which every one has a noise level of its own among those the network was trained at."""
        if not isinstance(self._precond(), IDDPM) or "u" not in self.arrays:
            return MAX_STEPS
        table = self.arrays["u"].values().astype(np.float64).ravel().tolist()
        for steps in range(2, MAX_STEPS + 1):
            try:
                rounded(noise_levels(steps, sigma_min, sigma_max), table)
            except LevelsError:
                return max(2, steps - 1)
        return MAX_STEPS

    def _label_dropout(self) -> float:
        """How often training left labels out, which is what guidance needs."""
        share = self.model.state.get("label_dropout")
        return float(share) if isinstance(share, int | float) and 0 < share <= 1 else 0.0

    def _chosen_dataset(self, given: str | None) -> str:
        dataset = self.dataset if given is None else given
        if dataset is None:
            raise CheckpointError(f"{self.path}: does not note its data set; name it with --dataset")
        return dataset

    def _chosen_D(self, given: float | None) -> float:
        noted = " or ".join(f"--D {format_D(each)}" for each in self.D)
        if given is None and not self.D:
            raise CheckpointError(f"{self.path}: does not note its D; give it with --D (inf for a diffusion model)")
        if given is None and len(self.D) > 1:
            raise CheckpointError(f"{self.path}: notes a D but also that pfgmpp is off; say which it is with {noted}")
        if given is not None and self.D and given not in self.D:
            raise CheckpointError(f"{self.path}: --D {format_D(given)} contradicts the file, which suits {noted}")
        return self.D[0] if given is None else given

    def _chosen_classes(self, given: tuple[str, ...] | None, count: int) -> tuple[str, ...]:
        if count > MAX_CLASSES:
            raise CheckpointError(f"{self.path}: label_dim {count} is more than {MAX_CLASSES}")
        if given is not None and len(given) != count:
            raise CheckpointError(f"{self.path}: has {count} classes, but {len(given)} names are given for them")
        return tuple(map(str, range(count))) if given is None else given


def open_official(path: Path) -> Official:
    """The official checkpoint in a file; nothing in it is executed.

    Raises CheckpointError naming the file and the reason when it is none, or has a network that is not known.
    """
    contents = read(path)
    root = contents.root
    network = root.get("ema") if isinstance(root, dict) else None
    if not isinstance(network, Record):
        raise CheckpointError(f"{path}: has no network under 'ema', so it is no official checkpoint")
    official = Official(path, contents, network)
    for record, known in ((network, PRECONDS), (official.model if network.kind in PRECONDS else network, NETWORKS)):
        if record.kind not in known:
            raise CheckpointError(f"{path}: class {record.kind!r:.100} is none of {', '.join(known)}")
    return official


def convert(
    official: Official,
    dataset: str | None = None,
    D: float | None = None,
    classes: tuple[str, ...] | None = None,
    is_aligned: bool = False,
) -> tuple[Card, dict[str, Tensor]]:
    """Card and tensors of an official checkpoint, ready to be saved.

    Raises CheckpointError as `card` does, and naming a tensor that is missing, unexpected, misshapen or not finite.
    """
    card = official.card(dataset, D, classes, is_aligned)
    expected, tensors = build(card, official.path).state_dict(), official.tensors()
    check_tensors(official.path, expected, tensors)
    return card, tensors


def read_classes(path: Path) -> tuple[str, ...]:
    """The names of classes in a file: a list in JSON, or one a line.

    Raises CheckpointError naming the file when it holds something else.
    """
    try:
        if path.exists() and not path.is_file():
            raise ValueError("not a file")
        if path.stat().st_size > MAX_CLASSES_BYTES:
            raise ValueError(f"more than {MAX_CLASSES_BYTES} bytes")
        text = path.read_text(encoding="utf-8").strip()
        names = json.loads(text) if text.startswith(("[", "{")) else text.splitlines()
        json.dumps(names, ensure_ascii=False).encode()  # half a character, as JSON may hold, could not be sent
        return TypeAdapter(tuple[str, ...]).validate_python(names)
    except ValidationError as error:
        raise CheckpointError(f"{path}: not a list of names: {field_errors(error)}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a list of names: {error}") from error


def _attributes(module: Record, name: str) -> dict[Any, Any]:
    """A dictionary among a module's attributes; empty when there is none."""
    found = module.state.get(name)
    return found if isinstance(found, dict) else {}


def _tensor(array: Array) -> Tensor:
    """A copy of a tensor in a file; what a float32 cannot hold becomes infinite, and is found by check_tensors."""
    values = array.values()
    with np.errstate(over="ignore"):
        return torch.from_numpy(np.array(values, np.float32 if values.dtype.kind == "f" else None, order="C"))


def describe(path: Path) -> dict[str, str]:
    """What a checkpoint holds, official or ours, as names and texts.

    Raises CheckpointError naming the file when it is none.
    """
    return _describe_ours(path) if _is_ours(path) else _describe_official(open_official(path))


def _is_ours(path: Path) -> bool:
    """Whether a file has what safetensors files have behind the length of their header."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(9)[8:] == b"{"
    except OSError:
        return False


def _describe_ours(path: Path) -> dict[str, str]:
    card = read_card(path)
    return {
        "container": "safetensors",
        "model": card.name,
        "D": str(format_D(card.D)),
        "images": f"{card.channels} x {card.resolution} x {card.resolution}",
        "classes": f"{len(card.classes)}",
        **_options(card.architecture),
        "noise levels": f"{card.sigma_min} to {card.sigma_max}",
        "parameters": f"{sum(each.numel() for each in build(card, path).parameters()):,}",
        "licence": card.license,
        **{f"training.{name}": json.dumps(value, ensure_ascii=False) for name, value in card.training.items()},
        "sha256": file_sha256(path),
    }


def _describe_official(official: Official) -> dict[str, str]:
    channels, resolution, classes = official.measures()
    return {
        "container": official.contents.form,
        "class": f"{official.network.kind} of {official.model.kind}",
        "D": _D_in_words(official.D),
        "data set": official.dataset or "not recorded",
        "images": f"{channels} x {resolution} x {resolution}",
        "classes": str(classes),
        **_options(official.options()),
        "parameters": f"{official.parameters:,}",
        "step": "not recorded" if official.step is None else str(official.step),
        "licence": LICENSE,
        "sha256": official.sha256,
    }


def _D_in_words(noted: list[float]) -> str:
    """What D may be, and how to tell."""
    numbers = [str(format_D(each)) for each in noted]
    if len(numbers) < 2:
        return numbers[0] if numbers else "not recorded"
    return f"{numbers[0]} is noted, but also that pfgmpp is off: {numbers[1]} if it was trained as a diffusion model"


def _options(architecture: BaseModel) -> dict[str, str]:
    """The options of a network, each in JSON."""
    return {name: json.dumps(value) for name, value in architecture.model_dump(mode="json").items()}
