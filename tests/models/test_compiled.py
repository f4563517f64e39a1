"""Compiled networks: made by another process, the same estimates, kept for the next time."""

import shutil
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch

from models import checkpoint
from models.card import UNetOptions
from models.checkpoint import Model
from models.compiled import UNPACKED, compile_in_background
from models.fast import Way
from models.shapes import Network, Shapes, random_batch
from tests.models.helpers import card, random_tensors, relative_error

WAY = Way(winograd=("model.dec.8x8_block0.conv1",))
SIZE = 2
QUICK, SLOW = Shapes((SIZE,), (0.01,)), Shapes((SIZE,), (10.0,))


def small(folder: Path, factor: float) -> Model:
    """The smallest network of one block each way; another factor makes another model of the same make."""
    architecture = UNetOptions(model_channels=4, channel_mult=(1,), num_blocks=1, attn_resolutions=())
    own = card(D=1 + factor, classes=("a", "b"), architecture=architecture, channels=1)
    tensors = {name: factor * tensor for name, tensor in random_tensors(own).items()}
    checkpoint.save(folder / f"{factor}.safetensors", own, tensors)
    return checkpoint.load(folder / f"{factor}.safetensors")


def started(model: Model, cache: Path) -> Future[Network]:
    return compile_in_background(model, WAY.of(model.network), WAY, QUICK, cache)[SIZE]


@pytest.mark.timeout(600)
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_a_compiled_network_gives_the_estimates_of_each_model_of_its_make(tmp_path: Path) -> None:
    """Compiled once, with no weights in it: the second model waits for the first one's code."""
    both = [(model, started(model, tmp_path / "cache")) for model in (small(tmp_path, 1.0), small(tmp_path, 2.0))]
    for model, program in [(model, pending.result(timeout=500)) for model, pending in both]:
        batch = random_batch(model, SIZE)
        with torch.inference_mode():
            assert relative_error(program(*batch), model.network(*batch)) < 1e-5
    code = [line for line in Path("/proc/self/maps").read_text().splitlines() if UNPACKED in line]
    assert all(line.endswith("(deleted)") for line in code), "nothing is left of it if this process dies"
    assert code
    batch[0] = batch[0].mT.contiguous().mT
    with torch.inference_mode():
        assert relative_error(program(*batch), model.network(*batch)) < 1e-5
    (file,) = (tmp_path / "cache").glob("*.pt2")
    file.write_bytes(b"no code")
    with pytest.raises(RuntimeError, match=f"{file}: cannot be loaded"):
        started(model, tmp_path / "cache").result(timeout=110)


def test_without_a_compiler_the_reason_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "no-compiler"))
    with pytest.raises(RuntimeError, match=r"no compiled network for batches of 2: .*no-compiler"):
        started(small(tmp_path, 1.0), tmp_path / "cache").result(timeout=110)


def test_what_gains_nothing_is_not_compiled(tmp_path: Path) -> None:
    model = small(tmp_path, 1.0)
    assert compile_in_background(model, model.network, Way(), SLOW, tmp_path / "cache") == {}
    assert compile_in_background(model, torch.nn.Identity(), Way(), QUICK, tmp_path / "cache") == {}
