"""A store that changes: what is new, what was replaced, what is gone, and what is no checkpoint."""

import os
import shutil
from pathlib import Path

import pytest

from bench.stores import exact_checkpoint
from models.card import CheckpointError, file_sha256
from models.store import ModelStore


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for D in (2.0, 128.0):
        exact_checkpoint(tmp_path / "store", D)
    return tmp_path / "store"


def test_a_scan_finds_what_is_there_and_says_whether_it_has_changed(folder: Path) -> None:
    store = ModelStore(folder)
    assert store.scan()
    assert list(store.entries) == ["points-d128", "points-d2"]
    entry = store.entries["points-d2"]
    assert entry.sha256 == file_sha256(entry.path)
    assert (entry.size, entry.parameters) == (entry.path.stat().st_size, 0)
    assert not store.scan()
    added = exact_checkpoint(folder, 7.0)
    assert store.scan()
    assert "points-d7" in store.entries
    added.unlink()
    assert store.scan()
    assert "points-d7" not in store.entries


def test_what_is_no_file_is_refused_and_never_waited_for(folder: Path) -> None:
    """A pipe, a directory, a link to nowhere: told once."""
    os.mkfifo(folder / "pipe.safetensors")
    (folder / "folder.safetensors").mkdir()
    (folder / "link.safetensors").symlink_to(folder / "nowhere")
    store = ModelStore(folder)
    store.scan()
    assert sorted(store.entries) == ["points-d128", "points-d2"]
    assert [sum(name in problem for problem in store.problems) for name in ("pipe", "folder", "link")] == [1, 1, 1]
    store.scan()
    assert store.problems == []


def test_a_newcomer_does_not_take_the_place_of_what_is_served(folder: Path) -> None:
    store = ModelStore(folder)
    store.scan()
    served = store.entries["points-d2"]
    newcomer = folder / "aaa.safetensors"
    shutil.copy(exact_checkpoint(folder.parent / "other", 2.0, examples=6), newcomer)
    assert not store.scan()
    assert store.entries["points-d2"] == served
    assert store.problems == [f"{newcomer}: another file of the store already holds points-d2: {served.path}"]


def test_a_file_that_was_replaced_is_another_checkpoint(folder: Path) -> None:
    store = ModelStore(folder)
    store.scan()
    before = store.entries["points-d2"].sha256
    path = exact_checkpoint(folder, 2.0, examples=6)
    assert store.scan()
    assert store.entries["points-d2"].sha256 == file_sha256(path) != before


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (["*"], ["points-d128", "points-d2"]),
        (["*-d2"], ["points-d2"]),
        (["digits-*"], []),
        (["x", "points-d128"], ["points-d128"]),
    ],
)
def test_patterns_choose_models_by_name(folder: Path, patterns: list[str], names: list[str]) -> None:
    store = ModelStore(folder, patterns)
    store.scan()
    assert list(store.entries) == names


def test_a_problem_is_told_once_and_again_when_the_file_changes(folder: Path) -> None:
    store, broken = ModelStore(folder), folder / "broken.safetensors"
    broken.write_bytes(b"no checkpoint")
    assert store.scan()
    (problem,) = store.problems
    assert str(broken) in problem
    assert len(store.entries) == 2
    assert not store.scan()
    assert store.problems == []
    broken.write_bytes(b"no checkpoint either")
    store.scan()
    assert len(store.problems) == 1


def test_a_second_file_of_a_model_is_left_out(folder: Path) -> None:
    (folder / "z.safetensors").write_bytes((folder / "points-d2.safetensors").read_bytes())
    store = ModelStore(folder)
    store.scan()
    assert store.entries["points-d2"].path.name == "points-d2.safetensors"
    assert "z.safetensors: another file of the store already holds points-d2" in store.problems[0]


def test_what_could_not_be_loaded_is_left_out_until_it_changes(folder: Path) -> None:
    store = ModelStore(folder)
    store.scan()
    store.refuse(store.entries["points-d2"])
    assert list(store.entries) == ["points-d128"]
    assert not store.scan()
    exact_checkpoint(folder, 2.0, examples=6)
    assert store.scan()
    assert "points-d2" in store.entries


def test_a_store_that_is_no_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a directory"):
        ModelStore(tmp_path / "none").scan()
