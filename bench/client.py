"""A lean client: what is measured is the service, not what asks it."""

import http.client
import json
import time
from collections.abc import Mapping
from io import BytesIO
from typing import Any
from urllib.parse import urlsplit
from weakref import finalize

import numpy as np
from PIL import Image

from service.picture import Pixels

Request = Mapping[str, object]

WAIT_SECONDS = 60

IDLE_SECONDS = 4.0
"""After so long a connection is opened anew: servers close those on which nothing happens."""


class Client:
    """One connection to a service, of the standard library; it ends with the client."""

    def __init__(self, url: str):
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=WAIT_SECONDS + 30)
        finalize(self, self._connection.close)
        self._used = time.monotonic()

    def ask(self, method: str, path: str, body: str | None = None, **headers: str) -> bytes:
        """The content of an answer. Raises RuntimeError when it is an error."""
        if time.monotonic() - self._used > IDLE_SECONDS:
            self._connection.close()
        self._connection.request(method, path, body, {"Content-Type": "application/json", **headers} if body else {})
        response = self._connection.getresponse()
        content = response.read()
        self._used = time.monotonic()
        if response.status >= http.client.BAD_REQUEST:
            raise RuntimeError(f"{method} {path}: {response.status} {content.decode()}")
        return content

    def close(self) -> None:
        self._connection.close()

    def submit(self, request: Request, wait_seconds: int = 0) -> dict[str, Any]:
        """The job that a request makes, as it is after the wait."""
        waiting = {"Prefer": f"wait={wait_seconds}"} if wait_seconds else {}
        return self._job(self.ask("POST", "/v1/samples", json.dumps(dict(request)), **waiting))

    def ended(self, job: dict[str, Any]) -> dict[str, Any]:
        """The job at its end. Raises RuntimeError when it did not succeed."""
        while job["finished_at"] is None:
            job = self._job(self.ask("GET", f"/v1/jobs/{job['id']}?wait={WAIT_SECONDS}"))
        if job["status"] != "succeeded":
            raise RuntimeError(f"job {job['id']}: {job['status']}: {job['error']}")
        return job

    def run(self, request: Request) -> dict[str, Any]:
        """The finished job that a request makes."""
        return self.ended(self.submit(request, WAIT_SECONDS))

    def images(self, job: dict[str, Any]) -> Pixels:
        """The images [n, H, W, C] of a finished job."""
        pictures = [self.ask("GET", f"/v1/jobs/{job['id']}/images/{k}.png") for k in range(len(job["seeds"]))]
        arrays = [np.asarray(Image.open(BytesIO(picture))) for picture in pictures]
        return np.stack([array.reshape(*array.shape[:2], -1) for array in arrays])

    def _job(self, content: bytes) -> dict[str, Any]:
        job: dict[str, Any] = json.loads(content)
        return job
