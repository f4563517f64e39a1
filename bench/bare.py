"""The script somebody would write without this service: build the network, load weights, sample, write a picture.

python -m bench.bare WEIGHTS COUNT STEPS PICTURE
"""

import sys
from pathlib import Path

import torch
from PIL import Image

from bench.memory import peak_megabytes
from bench.reference import Reference
from models.card import Card, UNetOptions
from models.checkpoint import Model
from models.precond import Denoiser


def save_weights(model: Model, path: Path) -> None:
    """Write what the script loads: the card and the tensors, as torch.save has them."""
    torch.save({"card": model.card.model_dump(mode="json"), "tensors": model.network.state_dict()}, path)


def main(weights: Path, count: int, steps: int, picture: Path) -> None:
    """Sample the first seeds and write them side by side."""
    torch.set_num_threads(1)
    card, network = loaded(weights)
    images = Reference(network, card, torch.device("cpu")).images(range(count), [0] * count, steps)
    row = images.transpose(1, 0, 2, 3).reshape(card.resolution, -1, card.channels)
    Image.fromarray(row.squeeze()).save(picture)
    print(peak_megabytes())  # noqa: T201


def loaded(weights: Path) -> tuple[Card, Denoiser]:
    """The card and the network in a file of `save_weights`: built, then filled."""
    saved = torch.load(weights)
    card = Card.model_validate(saved["card"])
    assert isinstance(card.architecture, UNetOptions)
    network = Denoiser(card.architecture, card.resolution, card.channels, len(card.classes))
    network.model.init_weights()
    network.load_state_dict(saved["tensors"])
    return card, network.requires_grad_(False).eval()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
