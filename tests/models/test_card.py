"""D and cards: what is refused, in which words, and what reading a card needs."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from models.card import (
    EDM,
    METADATA_KEY,
    SHIPPED,
    Card,
    CheckpointError,
    UNetOptions,
    checkpoint_files,
    file_sha256,
    format_D,
    parse_D,
    read_card,
)
from tests.models.helpers import card


@pytest.mark.parametrize(
    ("value", "D", "written"),
    [
        (2048, 2048.0, 2048),
        ("2048", 2048.0, 2048),
        (1.0, 1.0, 1),
        (0.5, 0.5, 0.5),
        ("0.5", 0.5, 0.5),
        ("inf", math.inf, "inf"),
        (math.inf, math.inf, "inf"),
    ],
)
def test_D_is_a_positive_number_or_inf(value: object, D: float, written: object) -> None:
    assert parse_D(value) == D
    assert isinstance(parse_D(value), float)
    assert format_D(D) == written
    assert type(format_D(D)) is type(written)
    assert parse_D(format_D(D)) == D


def test_an_int_is_written_as_D_too() -> None:
    assert format_D(2048) == 2048


@pytest.mark.parametrize(
    "value",
    [0, -1, 0.0, -math.inf, "-inf", math.nan, "nan", True, False, None, "abc", "", [], {}, b"1", 10**400, "1e400"],
)
def test_anything_else_is_no_D(value: object) -> None:
    with pytest.raises(ValueError, match="D must be a number > 0"):
        parse_D(value)


@pytest.mark.parametrize(("D", "name"), [(2048, "tiny-d2048"), (0.5, "tiny-d0.5"), (math.inf, "tiny-dinf")])
def test_a_card_names_its_model(D: float, name: str) -> None:
    assert card(D=D).name == name
    assert card(D=D).shape == (3, 8, 8)


@pytest.mark.parametrize("D", [0.5, 2048, math.inf])
def test_a_card_survives_json(D: float) -> None:
    assert Card.model_validate_json(card(D=D).model_dump_json()) == card(D=D)


def test_a_card_from_before_there_was_a_choice_of_preconditioning_is_read() -> None:
    old = {**card().model_dump(mode="json"), "architecture": {"network": "unet", "sigma_data": 0.7}}
    architecture = Card.model_validate(old).architecture
    assert isinstance(architecture, UNetOptions)
    assert architecture.precond == EDM(sigma_data=0.7)


def file_with(folder: Path, metadata: dict[str, str] | None) -> Path:
    """A safetensors file with this metadata and hardly a tensor."""
    path = folder / "model.safetensors"
    save_file({"a": torch.zeros(1)}, path, metadata)
    return path


def refusal(path: Path) -> str:
    """Why a file is refused; the message begins with its path."""
    with pytest.raises(CheckpointError) as caught:
        read_card(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    return message


def test_a_file_that_is_missing_or_not_safetensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    for content in (None, b"", b"not safetensors at all", b"\xff" * 100):
        if content is not None:
            path.write_bytes(content)
        assert ("there is no such file" if content is None else "not a safetensors file") in refusal(path)
    assert "not a safetensors file" in refusal(tmp_path)


@pytest.mark.parametrize("share", [0.0001, 0.5, 0.999])
def test_a_file_that_was_cut_off_is_refused(tmp_path: Path, share: float) -> None:
    whole = (SHIPPED / "digits-d2048.safetensors").read_bytes()
    path = tmp_path / "model.safetensors"
    path.write_bytes(whole[: int(share * len(whole))])
    assert "not a safetensors file" in refusal(path)


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}])
def test_a_file_without_a_card_is_refused(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    assert f"no '{METADATA_KEY}' entry" in refusal(file_with(tmp_path, metadata))


@pytest.mark.parametrize("text", ["", "{", "no", "[" * 100_000, "9" * 5000])
def test_a_card_that_is_not_json_is_refused(tmp_path: Path, text: str) -> None:
    assert "is not JSON" in refusal(file_with(tmp_path, {METADATA_KEY: text}))


@pytest.mark.parametrize("text", ["[]", "null", "3"])
def test_a_card_that_is_no_object_is_refused(tmp_path: Path, text: str) -> None:
    assert "bad metadata: contents: " in refusal(file_with(tmp_path, {METADATA_KEY: text}))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"format": 3}, "format"),
        ({"dataset": "Bad Name"}, "dataset"),
        ({"dataset": "../up"}, "dataset"),
        ({"D": 0}, "D"),
        ({"D": "many"}, "D"),
        ({"D": None}, "D"),
        ({"resolution": 0}, "resolution"),
        ({"resolution": "8x8"}, "resolution"),
        ({"channels": 2}, "channels"),
        ({"classes": "abc"}, "classes"),
        ({"classes": ["a", "a"]}, "classes"),
        ({"sigma_min": 0}, "sigma_min"),
        ({"sigma_max": math.inf}, "sigma_max"),
        ({"sigma_max": math.nan}, "sigma_max"),
        ({"sigma_min": 90}, "sigma_min"),
        ({"default_steps": 1}, "default_steps"),
        ({"default_steps": 257}, "default_steps"),
        ({"license": None}, "license"),
        ({"surprise": 1}, "surprise"),
        ({"architecture": {"network": "transformer"}}, "architecture"),
        ({"architecture": {"network": "adm", "model_channels": 100}}, "architecture.adm.model_channels"),
        ({"architecture": {"network": "adm", "precond": {"kind": "cosine"}}}, "architecture.adm.precond"),
        ({"architecture": {"network": "unet", "precond": {"kind": "vp", "M": 1}}}, "architecture.unet.precond.vp.M"),
        ({"architecture": {"network": "unet", "dropout": 1}}, "architecture.unet.dropout"),
        ({"architecture": {"network": "unet", "surprise": 1}}, "architecture.unet.surprise"),
        ({"architecture": {"network": "unet", "encoder": "skip"}}, "architecture.unet.encoder"),
        ({"architecture": {"network": "exact", "examples": 0}}, "architecture.exact.examples"),
    ],
)
def test_a_field_that_is_wrong_is_named(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    fields = json.loads(card().model_dump_json()) | changes
    assert named in refusal(file_with(tmp_path, {METADATA_KEY: json.dumps(fields)})).split("bad metadata: ")[1]


@pytest.mark.parametrize("missing", ["dataset", "D", "resolution", "channels", "architecture", "license"])
def test_a_field_that_is_missing_is_named(tmp_path: Path, missing: str) -> None:
    fields = json.loads(card().model_dump_json())
    del fields[missing]
    message = refusal(file_with(tmp_path, {METADATA_KEY: json.dumps(fields)}))
    assert f"bad metadata: {missing}: " in message


def with_metadata(path: Path, **changes: object) -> Path:
    data = json.loads(card().model_dump_json()) | changes
    save_file({"x": torch.zeros(1)}, path, {METADATA_KEY: json.dumps(data)})
    return path


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"license": "\ud800"}, "metadata is not JSON"),
        ({"training": {"notes": "x" * 2**21}}, "metadata is longer than 1,048,576 characters"),
        ({"max_steps": 10**9}, "max_steps: "),
        ({"sigma_min": 1e-300}, "sigma_min: "),
        ({"sigma_max": 1e300}, "sigma_max: "),
        ({"D": 1e-300}, "D: must be from 0.001 to 1e\\+12, or inf"),
        ({"D": 1.7e308}, "D: must be from"),
    ],
)
def test_a_card_that_could_not_be_served_is_refused(tmp_path: Path, changes: dict[str, object], reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason):
        read_card(with_metadata(tmp_path / "a.safetensors", **changes))


def test_reading_a_card_does_not_import_torch() -> None:
    program = (
        "import sys; from models.card import SHIPPED, read_card;"
        "print(read_card(SHIPPED / 'digits-d2048.safetensors').name, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["digits-d2048", "False"]


def test_the_files_of_a_store_come_in_order(tmp_path: Path) -> None:
    for name in ("b.safetensors", "a.safetensors", "c.partial", "notes.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in checkpoint_files(tmp_path)] == ["a.safetensors", "b.safetensors"]
    with pytest.raises(CheckpointError, match="not a directory"):
        list(checkpoint_files(tmp_path / "a.safetensors"))


def test_a_checkpoint_is_identified_by_its_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert file_sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
