"""What the benchmarks run: networks, and how much of them."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from bench.stores import CIFAR10, untrained_checkpoint
from models.card import SHIPPED
from models.checkpoint import Model, load


@dataclass(frozen=True)
class Network:
    """A network to run, the store that holds it alone, and how many solver steps make a run of sensible length."""

    name: str
    store: Path
    steps: int

    def model(self, device: torch.device) -> Model:
        """Its model, loaded."""
        (path,) = self.store.glob("*.safetensors")
        return load(path, device)


@dataclass(frozen=True)
class Workbench:
    """Where and how long to measure."""

    folder: Path
    """For what lasts: stores and compiled networks."""
    rounds: int = 5
    is_quick: bool = False
    """A few short runs of as few steps as there can be, to see that everything works; the figures mean little."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def memory(self) -> Path:
        """The folder for what was found out about networks."""
        return self.folder / "networks"

    def network(self, name: str) -> Network:
        """`digits` (shipped, 8x8, 0.3 million parameters) or `cifar10` (full size, 32x32, 56 million)."""
        store = self.folder / "stores" / name
        if name == "digits":
            store.mkdir(parents=True, exist_ok=True)
            link = store / "digits-d2048.safetensors"
            link.unlink(missing_ok=True)
            link.symlink_to(SHIPPED / link.name)
        elif not (store / f"{CIFAR10.name}.safetensors").exists():
            untrained_checkpoint(store)
        return Network(name, store, 18 if name == "digits" and not self.is_quick else 2)

    @property
    def networks(self) -> list[Network]:
        """Those to measure."""
        return [self.network(name) for name in (("digits",) if self.is_quick else ("digits", "cifar10"))]
