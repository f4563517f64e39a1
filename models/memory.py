"""What was found out about running networks on this machine, kept on disk: later starts need not measure again."""

import hashlib
import os
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import TypeAdapter, ValidationError

from models.card import Card

T = TypeVar("T")

SOURCES = (
    "layers.py",
    "unet.py",
    "adm.py",
    "precond.py",
    "patches.py",
    "window.py",
    "shapes.py",
    "fast.py",
    "compiled.py",
)
"""The files that decide how a network is run."""


@dataclass
class Memory:
    """Findings by key; in this process alone without a folder."""

    folder: Path | None = None
    _known: dict[str, Any] = field(default_factory=dict)

    def recall(self, key: str, kind: type[T]) -> T | None:
        """The finding kept under a key; None when there is none, or none that can be read."""
        if key not in self._known and self.folder:
            try:
                self._known[key] = TypeAdapter(kind).validate_json((self.folder / f"{key}.json").read_bytes())
            except (OSError, ValidationError):
                return None
        found: T | None = self._known.get(key)
        return found

    def keep(self, key: str, finding: object) -> None:
        """Keep a finding. Raises OSError when the folder cannot be written; then it is kept for this process."""
        self._known[key] = finding
        if self.folder:
            self.folder.mkdir(parents=True, exist_ok=True)
            temporary = self.folder / f".{key}.{os.getpid()}"
            temporary.write_bytes(TypeAdapter(type(finding)).dump_json(finding))
            os.replace(temporary, self.folder / f"{key}.json")


def fingerprint(card: Card, device: torch.device, *more: object) -> str:
    """A word for all that decides how a network runs: its make, the machine and its threads, this code, and more."""
    parts = [make_of(card).model_dump_json(), _machine(device), torch.get_num_threads(), *more]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def make_of(card: Card) -> Card:
    """The card of all models that run alike: the same network, whatever its weights were trained on."""
    return Card(
        dataset="any",
        D=1,
        resolution=card.resolution,
        channels=card.channels,
        classes=tuple(map(str, range(len(card.classes)))),
        architecture=card.architecture,
        license="none",
    )


@cache
def _machine(device: torch.device) -> tuple[object, ...]:
    """The libraries, this code, and what the processor or accelerator can do: code for one may not run on another."""
    sources = [Path(__file__).with_name(name).read_bytes() for name in SOURCES]
    if device.type == "cuda":
        return torch.__version__, torch.version.cuda, torch.cuda.get_device_name(device), *sources
    lines = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return torch.__version__, torch.backends.cpu.get_cpu_capability(), flags, *sources
