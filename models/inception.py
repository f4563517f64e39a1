"""Features of the Inception network that FID is defined by, from the file of its weights that a user has."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.card import file_sha256
from models.data import Dataset, UInt8Array
from models.kernel import FloatArray

FEATURES = 2048
BATCH = 64

INSTEAD = (
    "give inception-2015-12-05.pt, the TorchScript export of TensorFlow's Inception that comes with StyleGAN2-ADA, "
    "or none, for the features of a classifier that is trained here"
)


class Inception:
    """The network of 2015-12-05 as StyleGAN2-ADA exported it: it resizes images by itself."""

    measure = "FID"
    """What the Fréchet distance of its features is called."""

    def __init__(self, path: Path):
        """Raises ValueError naming the file when it is no TorchScript, or does not answer with such features."""
        self._network = _loaded(path)
        _check(path, self._network)
        self.sha256 = file_sha256(path)

    @property
    def about(self) -> str:
        """Whose features they are, in words."""
        return f"Inception of 2015-12-05, sha256 {self.sha256}"

    def features(self, images: UInt8Array) -> FloatArray:
        """[M, FEATURES] of images [M, H, W, C]; grey ones are taken for RGB with three equal channels."""
        parts = [_answer(self._network, _as_rgb(images[k : k + BATCH])) for k in range(0, len(images), BATCH)]
        return torch.cat(parts).to(torch.float64).numpy()

    def features_of_all(
        self,
        data: Dataset,
        fingerprint: str,
        cache: Path,
        report: Callable[[int, int], object] = lambda done, total: None,
    ) -> "np.ndarray[tuple[int, ...], np.dtype[np.float32]]":
        """[M, FEATURES] of a data set of this fingerprint.

        They are computed once into a file in `cache`, from which they are then mapped. `report` is told of how many
        images they are there.
        """
        file = cache / f"inception-{self.sha256[:16]}-{fingerprint[:16]}.npy"
        if not file.exists():
            self._write(data, file, report)
        return np.lib.format.open_memmap(file, "r")

    def _write(self, data: Dataset, file: Path, report: Callable[[int, int], object]) -> None:
        """Write the features of a data set; they appear under their name only when they are complete."""
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(f".{os.getpid()}.partial")
        try:
            array = np.lib.format.open_memmap(temporary, "w+", dtype=np.float32, shape=(len(data), FEATURES))
            for start in range(0, len(data), BATCH):
                stop = min(start + BATCH, len(data))
                array[start:stop] = self.features(data.images[start:stop])
                report(stop, len(data))
            array.flush()
            os.replace(temporary, file)
        finally:
            temporary.unlink(missing_ok=True)


def _loaded(path: Path) -> torch.jit.ScriptModule:
    try:
        with warnings.catch_warnings():
            # The file is what it is; torch has no other way to read it.
            warnings.filterwarnings("ignore", r"`torch\.jit\.load` is deprecated", DeprecationWarning)
            return torch.jit.load(path, map_location="cpu").eval()  # type: ignore[no-any-return,no-untyped-call]
    except (RuntimeError, ValueError, OSError) as error:
        raise ValueError(f"{path}: cannot be read as TorchScript ({_first_sentence(error)}); {INSTEAD}") from error


def _check(path: Path, network: torch.jit.ScriptModule) -> None:
    """Raise ValueError when the network does not answer two images with FEATURES numbers each."""
    try:
        answer = _answer(network, torch.zeros(2, 3, 64, 64, dtype=torch.uint8))
    except (RuntimeError, torch.jit.Error) as error:
        raise ValueError(f"{path}: does not take images ({_first_sentence(error)}); {INSTEAD}") from error
    found = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
    if found != (2, FEATURES) or not answer.isfinite().all():
        raise ValueError(f"{path}: answers two images with {found}, not with {FEATURES} features each; {INSTEAD}")


@torch.inference_mode()
def _answer(network: torch.jit.ScriptModule, x: Tensor) -> Tensor:
    """The features of images [M, 3, H, W] of bytes."""
    return network(x, return_features=True)  # type: ignore[no-any-return]


def _as_rgb(images: UInt8Array) -> Tensor:
    """Images [M, H, W, C] as [M, 3, H, W]."""
    return torch.from_numpy(np.ascontiguousarray(images)).movedim(-1, 1).expand(-1, 3, -1, -1).contiguous()


def _first_sentence(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].partition(". ")[0]
