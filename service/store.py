"""The result store: a local or shared directory with one folder per job. No picture ever passes through Redis."""

import os
import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from uuid import uuid4

JOB_ID = re.compile(r"[0-9a-f]{32}")


class LocalStore:
    """Files of jobs under one root; a file is complete from the moment it has its name.

    Job ids and names come from this program alone, never from a client.
    """

    def __init__(self, root: Path):
        self.root = root

    def prepare(self) -> None:
        """Make the root, and see that it can be written. Raises OSError naming it."""
        self.root.mkdir(parents=True, exist_ok=True)
        if not os.access(self.root, os.W_OK | os.X_OK):
            raise PermissionError(f"the results directory {self.root} cannot be written")

    def path(self, job_id: str, name: str) -> Path:
        """Where a file of a job is, or would be."""
        return self.root / job_id / name

    def write(self, job_id: str, name: str, content: bytes) -> None:
        """Keep a file of a job, replacing it if it is there.

        Not synced to the disk: results outlive a process, and last an hour; a lost machine loses them.
        Raises OSError when the disk is full or the folder cannot be written.
        """
        path = self.path(job_id, name)
        temporary = path.with_name(f".{name}.{uuid4().hex}")
        try:
            try:
                temporary.write_bytes(content)
            except FileNotFoundError:  # the first file of this job
                path.parent.mkdir(parents=True, exist_ok=True)
                temporary.write_bytes(content)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def jobs(self, older_than_seconds: float) -> list[str]:
        """The jobs that have a folder, and wrote nothing into it for so long."""
        if not self.root.is_dir():
            return []
        latest = time.time() - older_than_seconds
        return [
            each.name for each in self.root.iterdir() if JOB_ID.fullmatch(each.name) and each.stat().st_mtime < latest
        ]

    def remove(self, job_ids: Sequence[str]) -> None:
        """Erase all files of some jobs."""
        for job_id in job_ids:
            shutil.rmtree(self.root / job_id, ignore_errors=True)
