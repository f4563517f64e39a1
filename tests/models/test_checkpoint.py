"""Checkpoint files: kept whole, loaded strictly, and free of anything that could be executed."""

import ast
import json
import math
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import models
from models.card import (
    METADATA_KEY,
    SHIPPED,
    CheckpointError,
    ExactOptions,
    checkpoint_files,
    file_sha256,
    read_card,
)
from models.checkpoint import Model, load, save
from models.generate import Generator
from tests.models.helpers import card, random_tensors, shapes

NAME = "model.dec.8x8_aux_conv.weight"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def test_a_model_survives_saving_and_loading(path: Path) -> None:
    tensors = random_tensors(card())
    save(path, card(), tensors)
    model = load(path)
    assert model.card == card()
    assert model.sha256 == file_sha256(path)
    assert model.device == torch.device("cpu")
    assert not model.network.training
    assert not any(tensor.requires_grad for tensor in model.network.parameters())
    loaded = model.network.state_dict()
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("stored", ["float16", "bfloat16"])
def test_weights_may_be_stored_in_half_the_bytes(tmp_path: Path, stored: str) -> None:
    """They are run as float32, rounded; what has one axis, such as biases, is not."""
    tensors = random_tensors(card())
    sizes = []
    for kind in ("float32", stored):
        save(tmp_path / kind, card(stored=kind), tensors)
        sizes.append((tmp_path / kind).stat().st_size)
    found = load(tmp_path / stored).network.state_dict()
    assert 0.5 < sizes[1] / sizes[0] < 0.65
    for name, tensor in tensors.items():
        expected = tensor.to(getattr(torch, stored)).to(torch.float32) if tensor.dim() > 1 else tensor
        assert torch.equal(found[name], expected), name


def test_a_file_of_the_first_format_is_read(path: Path) -> None:
    """Its tensors lie as torch has them."""
    tensors = random_tensors(card())
    save_file(tensors, path, {METADATA_KEY: card(format=1).model_dump_json()})
    loaded = load(path).network.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no list of mappings")
def test_weights_are_the_file_itself(path: Path) -> None:
    """No tensor is copied: all lie where the file is mapped, in the layout in which they run."""
    save(path, card(), random_tensors(card()))
    network = load(path).network
    (mapping,) = [line.split()[0] for line in Path("/proc/self/maps").read_text().splitlines() if str(path) in line]
    start, end = (int(address, 16) for address in mapping.split("-"))
    for tensor in (*network.parameters(), *network.buffers()):
        assert start <= tensor.data_ptr() < end
        assert tensor.dim() != 4 or tensor.is_contiguous(memory_format=torch.channels_last)


def test_the_same_model_gives_the_same_file(tmp_path: Path) -> None:
    for name in ("a.safetensors", "b.safetensors"):
        save(tmp_path / name, card(), random_tensors(card()))
    assert file_sha256(tmp_path / "a.safetensors") == file_sha256(tmp_path / "b.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]


def without(tensors: dict[str, Tensor]) -> None:
    del tensors[NAME]


def half(tensors: dict[str, Tensor]) -> None:
    tensors[NAME] = tensors[NAME].half()


def misshapen(tensors: dict[str, Tensor]) -> None:
    tensors[NAME] = tensors[NAME].mT[..., :2].contiguous()


def infinite(tensors: dict[str, Tensor]) -> None:
    tensors[NAME][0, 0, 0, 0] = math.inf


def not_a_number(tensors: dict[str, Tensor]) -> None:
    tensors[NAME][-1, -1, -1, -1] = math.nan


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (without, "is missing"),
        (half, r"is torch.float16 \[3, 16, 3, 3\], but the network needs torch.float32 \[3, 16, 3, 3\]"),
        (misshapen, r"is torch.float32 \[3, 16, 3, 2\], but the network needs torch.float32 \[3, 16, 3, 3\]"),
        (infinite, "not finite"),
        (not_a_number, "not finite"),
    ],
)
def test_a_tensor_that_is_wrong_is_named(path: Path, damage: Callable[[dict[str, Tensor]], None], reason: str) -> None:
    tensors = random_tensors(card())
    damage(tensors)
    save(path, card(), tensors)
    with pytest.raises(CheckpointError, match=f"{path}: tensor '{NAME}'.*{reason}"):
        load(path)


def test_a_tensor_too_many_is_named(path: Path) -> None:
    save(path, card(), random_tensors(card()) | {"model.extra": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=f"{path}: tensor 'model.extra' does not belong"):
        load(path)


def test_a_file_that_was_cut_off_is_refused(path: Path) -> None:
    save(path, card(), random_tensors(card()))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=str(path)):
        load(path)


@pytest.mark.parametrize(
    "architecture",
    [
        {"model_channels": 9},
        {"model_channels": 132},
        {"model_channels": 36, "channel_mult": [1, 4]},
        {"channel_mult": [0]},
        {"channel_mult": [-1]},
        {"channel_mult": []},
        {"channel_mult": [1, 1, 1, 1, 1]},
        {"resample_filter": []},
        {"resample_filter": [0, 0]},
        {"resample_filter": [1, 2, 1]},
        {"resample_filter": [1] * 100_000},
        {"resample_filter": [10**30, 1]},
        {"precond": {"kind": "edm", "sigma_data": 1e308}},
        {"precond": {"kind": "edm", "sigma_data": 1e-320}},
    ],
    ids=lambda architecture: str(architecture)[:60],
)
def test_an_architecture_that_cannot_run_is_refused(path: Path, architecture: dict[str, Any]) -> None:
    """Groups that do not divide the channels, no layers, 8x8 pixels halved four times, filters without a middle."""
    fields = json.loads(card().model_dump_json())
    fields["architecture"] |= architecture
    save_file({"a": torch.zeros(1)}, path, {METADATA_KEY: json.dumps(fields)})
    with pytest.raises(CheckpointError, match=f"{path}: (?!tensor)"):
        load(path)


@pytest.mark.parametrize("field", ["license", "classes"])
@pytest.mark.parametrize("name", ["two\nlines", "\x1b[2J", "\0", "x" * 257], ids=["line", "escape", "nul", "long"])
def test_a_name_that_no_terminal_should_see_is_refused(path: Path, field: str, name: str) -> None:
    fields = json.loads(card().model_dump_json()) | {field: name if field == "license" else ["a", "b", name]}
    save_file({"a": torch.zeros(1)}, path, {METADATA_KEY: json.dumps(fields)})
    with pytest.raises(CheckpointError, match=f"{field}.*must be 256 characters at most, all of which can be printed"):
        read_card(path)


@pytest.mark.parametrize("data_class", [[0, 3], [-1, 0]])
def test_an_example_of_no_class_is_refused(path: Path, data_class: list[int]) -> None:
    own = card(architecture=ExactOptions(examples=2))
    save(path, own, {"data": torch.zeros(2, *own.shape), "data_class": torch.tensor(data_class)})
    with pytest.raises(CheckpointError, match=f"{path}: tensor 'data_class'"):
        load(path)


def test_a_write_that_fails_leaves_the_old_file(path: Path) -> None:
    """The limit on the size of files stands for a full disk."""
    save(path, card(license="old"), random_tensors(card()))
    before = file_sha256(path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(Exception, match="too large"):
            save(path, card(license="new"), random_tensors(card()))
        with pytest.raises(Exception, match="too large"):
            save(path.with_name("other.safetensors"), card(), random_tensors(card()))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert file_sha256(path) == before
    assert list(checkpoint_files(path.parent)) == [path]


@pytest.mark.parametrize(("file", "D"), [("d1", 1), ("d128", 128), ("d2048", 2048), ("dinf", math.inf)])
def test_the_shipped_models_load(file: str, D: float) -> None:
    model = load(SHIPPED / f"digits-{file}.safetensors")
    assert model.card.D == D
    assert model.card.name == f"digits-{file}"
    assert model.card.classes == tuple("0123456789")
    assert model.card.shape == (1, 8, 8)
    assert Generator(model, shapes(8)).images([1], [3], 2).shape == (1, 8, 8, 1)


def test_four_models_are_shipped() -> None:
    assert [path.stem for path in checkpoint_files(SHIPPED)] == [
        "digits-d1",
        "digits-d128",
        "digits-d2048",
        "digits-dinf",
    ]


def test_a_loaded_model_outlives_a_file_saved_in_its_place(path: Path, tiny: Model) -> None:
    save(path, card(), random_tensors(card()))
    model = load(path)
    save(path, card(), {name: torch.zeros_like(tensor) for name, tensor in random_tensors(card()).items()})
    assert (Generator(model, shapes(8)).images([1], [0], 2) == Generator(tiny, shapes(8)).images([1], [0], 2)).all()


def test_no_file_of_the_models_can_unpickle() -> None:
    (folder,) = models.__path__
    for file in Path(folder).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [name.name for name in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            modules = [*names, node.module or ""] if isinstance(node, ast.ImportFrom) else names
            assert not {"pickle", "dill", "joblib", "marshal", "shelve"} & {name.split(".")[0] for name in modules}
            assert not (isinstance(node, ast.Attribute) and ast.unparse(node) in {"torch.load", "np.load"}), file


def test_the_tensors_of_a_file_are_plain_float32() -> None:
    for path in checkpoint_files(SHIPPED):
        assert {tensor.dtype for tensor in load_file(path).values()} == {torch.float32}
