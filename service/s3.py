"""The result store in a bucket of S3, or of what speaks its protocol: MinIO, Ceph, R2 and the like."""

import errno
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from io import BytesIO
from itertools import chain
from typing import Any

import numpy as np
from obstore.exceptions import BaseError
from obstore.store import S3Store

from service.picture import read_array
from service.store import JOB_ID, StoreAway

CONNECT_SECONDS, REQUEST_SECONDS = "3s", "30s"
RETRIES, RETRY_SECONDS = 2, 10
"""Fewer than the client's own 10 in 3 minutes: a job is tried again anyway, and who fetches a picture waits."""

ENDPOINT_VARIABLES = {"AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"}
"""Of which the client takes the first that is set; it reads all of AWS's variables itself."""

ENDPOINT = re.compile(r"https?://[^/\s]\S*")
STATUS, CODE = re.compile(r"status code: (\d{3})"), re.compile(r"<Code>(\w+)</Code>")
"""Of an answer in the client's words, and S3's own word in its body."""

PROBE = "probe"
"""In place of a job's id."""


class S3Results:
    """Files of jobs as the objects `PREFIX/QUEUE/JOB/NAME` of a bucket.

    An object is there when its upload has ended, as a whole, and one that breaks off leaves nothing, for it is a single
    request; so no temporary names are needed. Endpoint, region and credentials come from AWS's own variables, or the
    role of the machine; they stand in no message.
    """

    def __init__(self, url: str, queue: str):
        """Reach no one yet. Raises ValueError for an endpoint that is no URL, with which the client would panic."""
        for variable in ENDPOINT_VARIABLES & os.environ.keys():
            if not ENDPOINT.fullmatch(os.environ[variable]):
                raise ValueError(f"{variable} must be a URL, such as https://s3.example.org or http://minio:9000")
        self.url = url
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        self._store = S3Store(
            bucket,
            prefix=f"{prefix.strip('/')}/{queue}",
            client_options={"allow_http": True, "connect_timeout": CONNECT_SECONDS, "timeout": REQUEST_SECONDS},
            retry_config={"max_retries": RETRIES, "retry_timeout": timedelta(seconds=RETRY_SECONDS)},
        )

    def prepare(self) -> None:
        """See that objects can be written, listed and erased. Raises OSError naming setting and bucket."""
        try:
            self.write(PROBE, PROBE, b"")
            if self.names(PROBE) != [PROBE]:
                raise PermissionError(errno.EACCES, "the store does not list what was written")
            self.remove([PROBE])
        except OSError as error:
            reason = f"PFGMPP_RESULTS_URL={self.url}: {error.strerror}"
            raise type(error)(f"{reason}; see also AWS_ENDPOINT_URL, AWS_REGION and AWS_ACCESS_KEY_ID") from error

    def write(self, job_id: str, name: str, content: bytes) -> None:
        """Keep a file of a job, replacing it if it is there."""
        with _as_os_errors():
            # In parts, one that breaks off would go on to cost something.
            self._store.put(f"{job_id}/{name}", content, use_multipart=False)

    def read(self, job_id: str, name: str) -> bytes:
        """A file of a job. Raises FileNotFoundError when it is not there."""
        with _as_os_errors():
            return self._store.get(f"{job_id}/{name}").bytes().to_bytes()

    def array(self, job_id: str, name: str) -> np.ndarray[Any, Any]:
        """The array in a .npy file of a job. Raises FileNotFoundError, or Damaged when it is not whole."""
        return read_array(BytesIO(self.read(job_id, name)), name)

    def names(self, job_id: str) -> list[str]:
        """The files of a job that are there."""
        return [path.partition("/")[2] for path, _ in self._objects(job_id)]

    def jobs(self, older_than_seconds: float) -> list[str]:
        """The jobs that have objects, and wrote none for so long."""
        latest, written = datetime.now(UTC) - timedelta(seconds=older_than_seconds), dict[str, datetime]()
        for path, modified in self._objects():
            job_id = path.partition("/")[0]
            written[job_id] = max(modified, written.get(job_id, modified))
        return [job_id for job_id, last in written.items() if JOB_ID.fullmatch(job_id) and last < latest]

    def remove(self, job_ids: Sequence[str]) -> None:
        """Erase all files of some jobs."""
        for job_id in job_ids:
            paths = [path for path, _ in self._objects(job_id)]
            with _as_os_errors():
                self._store.delete(paths)

    def remove_unfinished(self, older_than_seconds: float) -> int:
        """Nothing: a writer that is killed leaves nothing."""
        return 0

    def _objects(self, job_id: str | None = None) -> Iterator[tuple[str, datetime]]:
        """Path and time of all objects, or of those of a job."""
        with _as_os_errors():
            for each in chain.from_iterable(self._store.list(job_id)):
                yield each["path"], each["last_modified"]


@contextmanager
def _as_os_errors() -> Iterator[None]:
    """Raise what the client raises as an OSError in our own words."""
    try:
        yield
    except (BaseError, FileNotFoundError) as error:
        ours = _os_error(str(error))
        # What the store answered stays here: a refusal of a signature repeats the session's token.
        raise ours from (error if STATUS.search(str(error)) is None else None)


def _os_error(text: str) -> OSError:
    """The OSError for one of the client: StoreAway when another time may do, FileNotFoundError, or PermissionError."""
    status, code = STATUS.search(text), CODE.search(text)
    if status is None:
        return StoreAway(errno.EIO, "the store cannot be reached")
    if code and code[1] == "NoSuchKey":
        return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    answer = f"the store answers {code[1] if code else status[1]}"
    return PermissionError(errno.EACCES, answer) if status[1].startswith("4") else StoreAway(errno.EIO, answer)
