"""The result store: the files of every job, in a directory or a bucket. No picture ever passes through Redis."""

import errno
import os
import re
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import numpy as np

from service.picture import read_array
from service.settings import Settings

JOB_ID = re.compile(r"[0-9a-f]{32}")


class StoreAway(OSError):
    """The store cannot be reached at present; what lies in it may well be there."""


class ResultStore(Protocol):
    """Files of jobs; each is there as a whole or not at all, and never changes once its job has ended.

    Job ids and names come from this program alone, never from a client. Everything blocks, and raises OSError when the
    store refuses, StoreAway if that is because it cannot be reached; none of them holds more in `strerror` than a
    client may read.
    """

    def prepare(self) -> None:
        """See that it can be written. Raises OSError naming it, or ValueError."""

    def write(self, job_id: str, name: str, content: bytes) -> None:
        """Keep a file of a job, replacing it if it is there."""

    def read(self, job_id: str, name: str) -> bytes:
        """A file of a job. Raises FileNotFoundError when it is not there."""

    def array(self, job_id: str, name: str) -> np.ndarray[Any, Any]:
        """The array in a .npy file of a job. Raises FileNotFoundError, or Damaged when it is not whole."""

    def names(self, job_id: str) -> list[str]:
        """The files of a job that are there."""

    def jobs(self, older_than_seconds: float) -> list[str]:
        """The jobs that have files or a folder, and wrote nothing for so long."""

    def remove(self, job_ids: Sequence[str]) -> None:
        """Erase all files of some jobs."""

    def remove_unfinished(self, older_than_seconds: float) -> int:
        """Erase what writers that were killed had begun and not touched for so long; how many files there were."""


def open_store(settings: Settings) -> ResultStore:
    """The store of a queue, as the settings say. Raises ValueError when they make no sense."""
    if settings.results_url:
        from service.s3 import S3Results  # here, for it is an extra

        return S3Results(settings.results_url, settings.queue)
    return LocalStore(settings.results_dir / settings.queue)


class LocalStore:
    """Files under one root, local or shared: a folder for every job, and one for what is being written.

    A file is written there under a name that nobody else has, then renamed, so that it has its name when it is whole.
    """

    def __init__(self, root: Path):
        self.root = root
        self._unfinished = root / ".unfinished"

    def prepare(self) -> None:
        """Make the root, and see that it can be written. Raises OSError naming it."""
        self.root.mkdir(parents=True, exist_ok=True)
        if not os.access(self.root, os.W_OK | os.X_OK):
            raise PermissionError(f"the results directory {self.root} cannot be written")

    def path(self, job_id: str, name: str) -> Path:
        """Where a file of a job is, or would be. Raises StoreAway when there is no root, as of a lost mount."""
        if not self.root.is_dir():
            raise StoreAway(errno.ENOENT, "the results directory is not there")
        return self.root / job_id / name

    def write(self, job_id: str, name: str, content: bytes) -> None:
        """Keep a file of a job, replacing it if it is there.

        Not synced to the disk: results outlive a process, and last an hour; a lost machine loses them.
        Raises OSError when the disk is full or the folder cannot be written.
        """
        folder, temporary = self.root / job_id, self._unfinished / uuid4().hex
        for each in (folder, self._unfinished):
            each.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(content)
            temporary.replace(folder / name)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def read(self, job_id: str, name: str) -> bytes:
        """A file of a job. Raises FileNotFoundError when it is not there."""
        return self.path(job_id, name).read_bytes()

    def array(self, job_id: str, name: str) -> np.ndarray[Any, Any]:
        """The array in a .npy file of a job, mapped. Raises FileNotFoundError, or Damaged when it is not whole."""
        return read_array(self.path(job_id, name), name)

    def names(self, job_id: str) -> list[str]:
        """The files of a job that are there."""
        folder = self.path(job_id, "")
        return os.listdir(folder) if folder.is_dir() else []

    def jobs(self, older_than_seconds: float) -> list[str]:
        """The jobs that have a folder, and wrote nothing into it for so long."""
        return [name for name in _untouched(self.root, older_than_seconds) if JOB_ID.fullmatch(name)]

    def remove(self, job_ids: Sequence[str]) -> None:
        """Erase all files of some jobs."""
        for job_id in job_ids:
            shutil.rmtree(self.root / job_id, ignore_errors=True)

    def remove_unfinished(self, older_than_seconds: float) -> int:
        """Erase what writers that were killed had begun and not touched for so long; how many files there were."""
        left = _untouched(self._unfinished, older_than_seconds)
        for name in left:
            (self._unfinished / name).unlink(missing_ok=True)
        return len(left)


def _untouched(folder: Path, seconds: float) -> list[str]:
    """What in a folder did not change for so long; nothing if there is no such folder."""
    latest, names = time.time() - seconds, []
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):  # renamed, or swept by another worker
                if entry.stat().st_mtime < latest:
                    names.append(entry.name)
    return names
