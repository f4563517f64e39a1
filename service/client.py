"""A client of the service, as `pfgmpp sample` uses it."""

import json
from collections.abc import Iterator
from typing import Any, Self

import httpx
from pydantic import TypeAdapter

from service.catalogue import OfferedModel
from service.job import JobView
from service.problems import ProblemDocument

POLL_SECONDS = 0.25


class ClientError(Exception):
    """The service cannot be reached, or refused; the message says which, and why."""


class Client:
    """Speaks to one service, over connections that end with it. Raises ClientError for a server that is no URL."""

    def __init__(self, server: str, key: str | None = None):
        self.server = server
        headers = {"Authorization": f"Bearer {key.strip()}"} if key else {}
        try:
            self._http = httpx.Client(base_url=server, headers=headers, timeout=httpx.Timeout(10, read=90))
        except httpx.InvalidURL as error:
            raise ClientError(f"{server!r} is not a URL ({error})") from error
        except UnicodeEncodeError as error:
            raise ClientError("the key holds characters that no key has") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def submit(self, request: dict[str, Any]) -> JobView:
        """The job that a sample request makes. Raises ClientError."""
        try:
            body = json.dumps(request, allow_nan=False).encode()
        except (ValueError, RecursionError) as error:
            raise ClientError(f"the request cannot be sent as JSON ({error})") from error
        headers = {"Content-Type": "application/json"}
        return JobView.model_validate(self._send("POST", "/v1/samples", content=body, headers=headers).json())

    def follow(self, job_id: str) -> Iterator[JobView]:
        """The job again and again until it has ended, a few times a second. Raises ClientError."""
        while True:
            answer = self._send("GET", f"/v1/jobs/{job_id}", params={"wait": POLL_SECONDS})
            job = JobView.model_validate(answer.json())
            yield job
            if job.finished_at is not None:
                return

    def models(self) -> list[OfferedModel]:
        """What can be sampled. Raises ClientError."""
        return TypeAdapter(list[OfferedModel]).validate_json(self._send("GET", "/v1/models").content)

    def picture(self, job_id: str, name: str) -> bytes:
        """A picture of a finished job, such as `grid.png` or `trajectory.gif`. Raises ClientError."""
        return self._send("GET", f"/v1/jobs/{job_id}/{name}").content

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **options)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            hint = "is `pfgmpp serve` running? --server or PFGMPP_SERVER names another place"
            raise ClientError(f"cannot reach {self.server} ({error}); {hint}") from error
        if response.is_error:
            raise ClientError(_refusal(response))
        return response


def _refusal(response: httpx.Response) -> str:
    if response.headers.get("content-type") != "application/problem+json":
        return f"{response.status_code} {response.reason_phrase}"
    problem = ProblemDocument.model_validate(response.json())
    later = response.headers.get("retry-after")
    return f"{problem.code}: {problem.detail}" + (f" (try again in {later} s)" if later else "")
