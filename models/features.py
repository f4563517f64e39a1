"""Features of images, by a small classifier that is trained on the data set itself: never to be called Inception's."""

import os
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from models.data import Dataset, UInt8Array, in_unit
from models.kernel import FloatArray

IMAGES = 120_000
"""Seen in training."""

BATCH = 128
FEATURES = 128
HELD_OUT = 10
"""One image of so many is held out, to tell how good the classifier is."""


class Classifier:
    """Trained on a data set by its classes, or where it has none, to tell by how many quarters an image is turned."""

    measure = "Fréchet distance"
    """What the Fréchet distance of its features may be called: not FID, for they are not Inception's."""

    def __init__(self, data: Dataset, images: int = IMAGES, known: Path | None = None):
        """`known` is a file to keep the weights in, from which they are taken if it is there."""
        torch.manual_seed(0)
        self._data, self._images = data.name, images
        self._turns = not data.classes
        self.network = _network(data.shape[0], data.shape[1], 4 if self._turns else len(data.classes))
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        held = np.arange(len(data)) % HELD_OUT == 0
        if known is None or not self._is_read(known):
            self._fit(data, np.flatnonzero(~held), max(1, images // BATCH))
            if known:
                self._write(known)
        self.network.eval()
        x, labels = self._examples(data, np.flatnonzero(held)[:2000], np.random.default_rng(1))
        self.accuracy = float((self._logits(x).argmax(1) == labels).double().mean())
        """On held-out images, in 0..1."""

    @property
    def task(self) -> str:
        """What it was trained for, in words."""
        return "how an image is turned" if self._turns else "classes"

    @property
    def about(self) -> str:
        """Whose features they are, in words."""
        return f"a classifier of {self.task} of {self._data}, trained here with {self._images:,} images"

    def features(self, images: UInt8Array) -> FloatArray:
        """[M, FEATURES] of images [M, H, W, C]."""
        with torch.inference_mode():
            parts = [self.network[:-1](in_unit(images[k : k + 512])) for k in range(0, len(images), 512)]
        return torch.cat(parts).to(torch.float64).numpy()

    def recognised(self, images: UInt8Array, labels: list[int]) -> float:
        """The share of images [M, H, W, C] that it takes for the classes [M] that were asked for."""
        return float((self._logits(in_unit(images)).argmax(1) == torch.tensor(labels)).double().mean())

    def _logits(self, x: Tensor) -> Tensor:
        with torch.inference_mode():
            return torch.cat([self.network(part) for part in torch.split(x, 512)])

    def _fit(self, data: Dataset, chosen: "np.ndarray[tuple[int, ...], np.dtype[np.int64]]", steps: int) -> None:
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=2e-3, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
        rng = np.random.default_rng(0)
        self.network.train()
        for _ in range(steps):
            x, labels = self._examples(data, rng.choice(chosen, BATCH), rng)
            loss = cross_entropy(self.network(x + 0.05 * torch.randn_like(x)), labels, label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()

    def _is_read(self, known: Path) -> bool:
        """Whether the weights could be taken from that file."""
        with suppress(OSError, SafetensorError, RuntimeError):
            self.network.load_state_dict(load_file(known))
            return True
        return False

    def _write(self, known: Path) -> None:
        """Keep the weights; the file appears under its name only when it is complete."""
        known.parent.mkdir(parents=True, exist_ok=True)
        temporary = known.with_suffix(f".{os.getpid()}.partial")
        try:
            save_file({name: each.contiguous() for name, each in self.network.state_dict().items()}, temporary)
            os.replace(temporary, known)
        finally:
            temporary.unlink(missing_ok=True)

    def _examples(
        self, data: Dataset, chosen: "np.ndarray[tuple[int, ...], np.dtype[np.int64]]", rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        x = data.take(chosen)
        if not self._turns:
            return x, torch.from_numpy(data.labels[chosen])
        turns = rng.integers(4, size=len(x))
        turned = [image.rot90(int(k), (1, 2)) for image, k in zip(x, turns, strict=True)]
        return torch.stack(turned), torch.from_numpy(turns)


def file_name(fingerprint: str, images: int) -> str:
    """Of the weights for a data set, after so many images: another for every version of what trains them."""
    made_by = f"{fingerprint} {images} {torch.__version__} {Path(__file__).read_text()}"
    return f"classifier-{sha256(made_by.encode()).hexdigest()[:16]}.safetensors"


def _network(channels: int, resolution: int, classes: int) -> nn.Sequential:
    """Convolutions that halve an image down to some 4x4 pixels, the mean over them, and a linear layer."""
    layers: list[nn.Module] = []
    width = 32
    while True:
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.GroupNorm(8, width), nn.SiLU()]
        if resolution <= 4 or width == FEATURES:
            break
        layers.append(nn.MaxPool2d(2))
        channels, resolution, width = width, resolution // 2, width * 2
    if width < FEATURES:
        layers += [nn.Conv2d(width, FEATURES, 3, padding=1), nn.GroupNorm(8, FEATURES), nn.SiLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(FEATURES, classes))
