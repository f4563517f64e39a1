"""Checkpoints: one safetensors file that holds the weights and the card of a model, loaded strictly."""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.card import METADATA_KEY, Card, CheckpointError, ExactOptions, file_sha256, read_card
from models.exact import ExactDenoiser
from models.precond import Denoiser
from models.sampling import Window


@dataclass(frozen=True)
class Model:
    """A loaded checkpoint: `network(x [B, C, H, W], sigma [B], labels [B, classes] | None)` is its denoiser."""

    card: Card
    network: nn.Module
    sha256: str
    device: torch.device
    table: tuple[float, ...] = ()
    """The only noise levels at which the network was trained; empty if there are no such."""
    window: Window | None = None
    """The part of the frame that the network is asked for, if not for all of it."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """[C, H, W] of its images."""
        if self.window is None:
            return self.card.shape
        return self.card.channels, self.window.height, self.window.width


def build(card: Card, source: Path | str = "the card") -> nn.Module:
    """The denoiser that a card describes, with no weights in it: its tensors are on the meta device.

    Raises CheckpointError, naming where the card is from, when there can be no such network.
    """
    try:
        with torch.device("meta"):
            if isinstance(card.architecture, ExactOptions):
                return ExactDenoiser(card.shape, card.architecture.examples, card.D)
            return Denoiser(card.architecture, card.resolution, card.channels, len(card.classes))
    except (ValueError, RuntimeError, ArithmeticError) as error:
        raise CheckpointError(f"{source}: its architecture cannot be built ({error})") from error


def save(path: Path, card: Card, tensors: dict[str, Tensor]) -> None:
    """Write a checkpoint in format 2; it appears under its name only when it is complete.

    Raises OSError when it cannot be written; then nothing is left of it.
    """
    if path.exists() and not path.is_file():
        raise OSError("it is there, and no file that could be replaced")
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")
    stored = {
        name: _channels_last(_as_stored(tensor.detach().cpu(), card)).contiguous() for name, tensor in tensors.items()
    }
    current = card.model_copy(update={"format": 2})
    try:
        save_file(stored, temporary, metadata={METADATA_KEY: current.model_dump_json()})
        temporary.chmod(0o644)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise OSError(str(error)) from error


def load(path: Path, device: torch.device | str = "cpu", sha256: str | None = None) -> Model:
    """The model in a checkpoint file, ready to denoise on a device.

    On a CPU float32 weights stay mapped to the file, those of format 2 as they run: there is no second copy. Put a new
    file in an old one's place by renaming, never by writing over it. Its SHA-256 is taken from whoever knows it.

    Raises CheckpointError naming the file and the tensor that is missing, unexpected, misshapen or not finite.
    """
    card = read_card(path)
    network = build(card, path)
    try:
        tensors = load_file(path, device=str(device))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot read its tensors ({error})") from error
    if card.format == 2:
        tensors = {name: _channels_first(tensor) for name, tensor in tensors.items()}
    if card.stored != "float32":
        tensors = {name: tensor.to(torch.float32) if _is_weight(tensor) else tensor for name, tensor in tensors.items()}
    check_tensors(path, network.state_dict(), tensors)
    check_examples(path, card, tensors)
    network.load_state_dict(tensors, assign=True)
    network.requires_grad_(False).eval()
    # Convolutions run 1.1x (float32) to 4x (bfloat16) faster in this layout; copies those of format 1 alone.
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    table = network.table if isinstance(network, Denoiser) else ()
    return Model(card, network, sha256 or file_sha256(path), torch.device(device), table)


def _is_weight(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.dim() > 1


def _as_stored(tensor: Tensor, card: Card) -> Tensor:
    """A tensor in the precision in which the card says that weights are stored."""
    return tensor.to(getattr(torch, card.stored)) if _is_weight(tensor) and card.stored != "float32" else tensor


def _channels_last(tensor: Tensor) -> Tensor:
    """A tensor [out, in, H, W] as [out, H, W, in]; others as they are."""
    return tensor.movedim(1, -1) if tensor.dim() == 4 else tensor


def _channels_first(tensor: Tensor) -> Tensor:
    """The reverse of _channels_last: the same memory seen as [out, in, H, W]."""
    return tensor.movedim(-1, 1) if tensor.dim() == 4 else tensor


def check_tensors(path: Path, expected: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    """Raise CheckpointError unless the tensors found are exactly the ones expected, with finite values."""
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            raise CheckpointError(f"{path}: tensor {name!r} is missing")
        if name not in expected:
            raise CheckpointError(f"{path}: tensor {name!r} does not belong to the network")
        wanted, tensor = expected[name], found[name]
        if tensor.shape != wanted.shape or tensor.dtype != wanted.dtype:
            raise CheckpointError(
                f"{path}: tensor {name!r} is {tensor.dtype} {list(tensor.shape)}, "
                f"but the network needs {wanted.dtype} {list(wanted.shape)}"
            )
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise CheckpointError(f"{path}: tensor {name!r} holds values that are not finite")


def check_examples(path: Path, card: Card, tensors: dict[str, Tensor]) -> None:
    """Raise CheckpointError unless an exact model holds an example of every class, and of no other."""
    if not isinstance(card.architecture, ExactOptions):
        return
    found, expected = set(tensors["data_class"].tolist()), set(range(max(1, len(card.classes))))
    if found != expected:
        wrong = sorted(found ^ expected)
        raise CheckpointError(
            f"{path}: tensor 'data_class' must hold every class of the card, but differs in {wrong[:10]}"
        )
