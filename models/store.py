"""A model store: a directory of checkpoints, of which some are offered, and which may change at any time."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from threading import Lock

from models.card import Card, CheckpointError, checkpoint_files, file_sha256, read_card
from models.checkpoint import build

Signature = tuple[int, int, int]
"""Inode, size and time of change: another file under the same name has another one."""


@dataclass(frozen=True)
class Entry:
    """A checkpoint of a store, as its header describes it; nothing of it is loaded."""

    path: Path
    card: Card
    sha256: str
    size: int
    """Of the file, in bytes: about what its weights take in memory."""
    parameters: int


@dataclass
class ModelStore:
    """The checkpoints of a folder whose names are like one of the patterns, such as `digits-*`."""

    folder: Path
    patterns: Sequence[str] = ("*",)
    entries: dict[str, Entry] = field(default_factory=dict)
    """By model, as of the last `scan`."""
    problems: list[str] = field(default_factory=list)
    """Why files were left out that the last `scan` saw for the first time."""
    _seen: dict[Path, tuple[Signature, Entry | None]] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    def scan(self) -> bool:
        """Look at the folder again, reading only what is new there; whether the entries have changed.

        Raises CheckpointError when the folder is none.
        """
        with self._lock:
            return self._scan()

    def _scan(self) -> bool:
        self.problems = []
        seen = {path: self._look(path) for path in checkpoint_files(self.folder)}
        entries: dict[str, Entry] = {}
        served = {entry.path for entry in self.entries.values()}
        for path, (_, entry) in sorted(seen.items(), key=lambda each: each[0] not in served):
            if entry is None or not any(fnmatchcase(entry.card.name, pattern) for pattern in self.patterns):
                continue
            other = entries.setdefault(entry.card.name, entry)
            if other is not entry and path not in self._seen:
                self.problems.append(f"{path}: another file of the store already holds {entry.card.name}: {other.path}")
        has_changed, self._seen, self.entries = entries != self.entries, seen, entries
        return has_changed

    def refuse(self, entry: Entry) -> None:
        """Leave out a file that could not be loaded, until it changes."""
        with self._lock:
            signature, known = self._seen.get(entry.path, ((0, 0, 0), None))
            if known == entry:
                self._seen[entry.path] = signature, None
                self.entries = {name: each for name, each in self.entries.items() if each != entry}

    def _look(self, path: Path) -> tuple[Signature, Entry | None]:
        """A file's signature, and what it holds if that can be offered."""
        try:
            signature = signature_of(path, (0, 0, 0))
            if path in self._seen and self._seen[path][0] == signature:
                return self._seen[path]
            card = read_card(path)
            parameters = sum(tensor.numel() for tensor in build(card, path).parameters())
            return signature, Entry(path, card, file_sha256(path), signature[1], parameters)
        except (CheckpointError, OSError) as error:
            self.problems.append(str(error))
            return signature_of(path, (0, 0, 0)), None


def signature_of(path: Path, otherwise: Signature | None = None) -> Signature:
    """The signature of a file; `otherwise` when there is none. Raises OSError without that."""
    try:
        status = path.stat()
    except OSError:
        if otherwise is None:
            raise
        return otherwise
    return status.st_ino, status.st_size, status.st_mtime_ns
