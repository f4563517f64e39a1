"""Model stores for tests: real checkpoint files, small and quick."""

from pathlib import Path

import torch

from models.card import Card, ExactOptions
from models.checkpoint import save


def exact_checkpoint(store: Path, D: float, dataset: str = "points", classes: int = 2, examples: int = 4) -> Path:
    """A checkpoint of the exact denoiser of a few random 4x4 images, class by class in turn."""
    rng = torch.Generator().manual_seed(0)
    card = Card(
        dataset=dataset,
        D=D,
        resolution=4,
        channels=1,
        classes=tuple(f"class {k}" for k in range(classes)),
        architecture=ExactOptions(examples=examples),
        default_steps=4,
        max_steps=64,
        license="Apache-2.0",
    )
    data = torch.rand(examples, 1, 4, 4, generator=rng) * 2 - 1
    data_class = torch.arange(examples) % max(classes, 1)
    store.mkdir(parents=True, exist_ok=True)
    path = store / f"{card.name}.safetensors"
    save(path, card, {"data": data, "data_class": data_class})
    return path
