"""Model stores for benchmarks and tests: real checkpoint files of models that need no training."""

from pathlib import Path

import torch

from models.card import Card, ExactOptions, UNetOptions
from models.checkpoint import save
from models.precond import Denoiser


def exact_checkpoint(
    store: Path, D: float, dataset: str = "points", classes: int = 2, examples: int = 4, seed: int = 0
) -> Path:
    """A checkpoint of the exact denoiser of a few random 4x4 images, class by class in turn."""
    rng = torch.Generator().manual_seed(seed)
    card = Card(
        dataset=dataset,
        D=D,
        resolution=4,
        channels=1,
        classes=tuple(f"class {k}" for k in range(classes)),
        architecture=ExactOptions(examples=examples),
        default_steps=4,
        max_steps=10_000,
        license="Apache-2.0",
    )
    data = torch.rand(examples, 1, 4, 4, generator=rng) * 2 - 1
    data_class = torch.arange(examples) % max(classes, 1)
    return _saved(store, card, {"data": data, "data_class": data_class})


CIFAR10 = Card(
    dataset="cifar10",
    D=2048,
    resolution=32,
    channels=3,
    classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    architecture=UNetOptions(
        embedding="fourier", encoder="residual", channel_mult_noise=2, resample_filter=(1, 3, 3, 1), augment_dim=9
    ),
    license="Apache-2.0",
)
"""The network of the published CIFAR-10 models: class-conditional NCSN++, 56 million parameters."""


def untrained_checkpoint(store: Path, card: Card = CIFAR10) -> Path:
    """A checkpoint of a network with random weights, which takes as long as a trained one."""
    torch.manual_seed(0)
    assert isinstance(card.architecture, UNetOptions)
    network = Denoiser(card.architecture, card.resolution, card.channels, len(card.classes))
    network.model.init_weights()
    with torch.no_grad():
        for weight in (each for each in network.parameters() if each.dim() > 1):
            weight.normal_(std=weight[0].numel() ** -0.5)
    return _saved(store, card, network.state_dict())


def _saved(store: Path, card: Card, tensors: dict[str, torch.Tensor]) -> Path:
    store.mkdir(parents=True, exist_ok=True)
    path = store / f"{card.name}.safetensors"
    save(path, card, tensors)
    return path
