"""What is remembered of networks: found again by who runs the same one on the same machine, and by nobody else."""

from pathlib import Path

import pytest
import torch

from models.card import UNetOptions
from models.fast import Fast, Way
from models.memory import Memory, fingerprint
from models.shapes import Shapes
from tests.models.helpers import card

CPU = torch.device("cpu")
FOUND = Fast(Way("bfloat16"), Shapes((1, 8), (0.1, 0.25)))


def test_a_finding_is_there_for_the_next_process(tmp_path: Path) -> None:
    Memory(tmp_path / "new").keep("word", FOUND)
    assert Memory(tmp_path / "new").recall("word", Fast) == FOUND
    assert Memory(tmp_path / "new").recall("other", Fast) is None
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["word.json"]


def test_without_a_folder_it_lasts_as_long_as_the_process() -> None:
    memory = Memory()
    memory.keep("word", FOUND)
    assert memory.recall("word", Fast) == FOUND
    assert Memory().recall("word", Fast) is None


@pytest.mark.parametrize("content", [b"", b"{}", b'{"sizes": [1], "seconds": ["quick"]}', b"\xff\x00"])
def test_what_cannot_be_read_is_found_out_again(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "word.json").write_bytes(content)
    assert Memory(tmp_path).recall("word", Shapes) is None


def test_what_cannot_be_written_is_told_and_kept_for_now(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    memory = Memory(tmp_path / "file")
    with pytest.raises(OSError, match="file"):
        memory.keep("word", FOUND)
    assert memory.recall("word", Fast) == FOUND


def test_the_fingerprint_is_that_of_the_make() -> None:
    """Models that differ in weights, D or names share it; those that run otherwise do not."""
    own = fingerprint(card(), CPU, "exact")
    assert fingerprint(card(D=2, dataset="other", classes=("x", "y", "z")), CPU, "exact") == own
    for other in (card(resolution=16), card(channels=1), card(classes=("a",)), card(architecture=UNetOptions())):
        assert fingerprint(other, CPU, "exact") != own
    assert fingerprint(card(), CPU, "fast") != own


def test_the_fingerprint_tells_threads_apart() -> None:
    threads = torch.get_num_threads()
    own = fingerprint(card(), CPU)
    torch.set_num_threads(threads + 1)
    try:
        assert fingerprint(card(), CPU) != own
    finally:
        torch.set_num_threads(threads)
