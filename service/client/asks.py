"""What can be asked of a service, and what its answers mean; nothing here sends anything."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Literal, Required, TypedDict, TypeVar
from urllib.parse import quote
from uuid import uuid4

import httpx
from pydantic import TypeAdapter

from service.catalogue import OfferedModel, ServiceStatus
from service.client.errors import ClientError
from service.job import Estimate, JobList, JobView, Status, Webhook

if TYPE_CHECKING:
    from models.sampling import Window

T = TypeVar("T")

TIMEOUT = httpx.Timeout(10, read=90)
"""Long polls are held for up to a minute."""

STREAM_TIMEOUT = httpx.Timeout(10, read=45)
"""A stream of events has a sign of life every 15 s."""

LIST_PAGE = 100


class SampleFields(TypedDict, total=False):
    """The fields of a request, as `POST /v1/samples` takes them: /docs of the service says what each is for."""

    dataset: Required[str]
    D: Required[float | Literal["inf"]]
    steps: int
    precision: Literal["exact", "fast"] | None
    count: int
    seed: int
    seeds: Sequence[int]
    label: int | str
    labels: Sequence[int | str]
    columns: int
    scale: int
    previews: int
    priority: int
    deadline_seconds: float
    webhook: Webhook | dict[str, Any]
    solver: str
    sigma_min: float
    sigma_max: float
    rho: float
    discretization: str
    schedule: str
    scaling: str
    second_order: float
    S_churn: float
    S_min: float
    S_max: float
    S_noise: float
    alpha: float
    bits: int
    quantized: str
    guidance: float
    guide: str
    window: "Window | dict[str, int]"
    trajectory: bool


@dataclass(frozen=True)
class Ask(Generic[T]):
    """One request to the service, and how its answer is read. Repeating it is harmless."""

    method: str
    path: str
    read: Callable[[httpx.Response], T]
    options: Mapping[str, Any] = field(default_factory=dict)
    is_stream: bool = False


def body_of(fields: SampleFields | Mapping[str, Any]) -> bytes:
    """A request as JSON; `count` is that of its seeds or classes if left out. Raises ClientError for what JSON has not.

    Arrays of numpy and ranges go as lists, and infinity as "inf".
    """
    request = dict(fields)
    lists = (request[name] for name in ("seeds", "labels") if request.get(name) is not None)
    if "count" not in request and (first := next(lists, None)) is not None and not isinstance(first, str):
        request["count"] = len(first)
    if isinstance(request.get("D"), float) and request["D"] == math.inf:
        request["D"] = "inf"
    try:
        return json.dumps(request, allow_nan=False, default=_plain).encode()
    except (ValueError, TypeError, RecursionError) as error:
        raise ClientError(f"the request cannot be sent as JSON ({error})") from error


def _plain(value: Any) -> Any:
    """What JSON has in place of a value of numpy, pydantic or a range. Raises TypeError for others."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json", exclude_unset=True)
    if isinstance(value, Sequence):
        return list(value)
    raise TypeError(f"{value!r} is no value of JSON")


def portions(fields: SampleFields, most: int) -> Iterator[SampleFields]:
    """Requests for at most so many images each, which together make the images of one. Raises ValueError.

    They leave out `columns`: no grid is made of all, and one of the last images may be narrower.
    """
    if most < 1:
        raise ValueError(f"a job has at least 1 image, not {most}")
    lists = [name for name in ("seeds", "labels") if fields.get(name) is not None]
    count = fields.get("count", len(fields[lists[0]]) if lists else 1)  # type: ignore[literal-required]
    shared = {name: value for name, value in fields.items() if name != "columns"}
    for start in range(0, count, most):
        part: dict[str, Any] = {**shared, "count": min(most, count - start)}
        part |= {name: part[name][start : start + most] for name in lists}
        if fields.get("seed") is not None:
            part["seed"] = fields["seed"] + start
        yield part  # type: ignore[misc]


def submission(fields: SampleFields | Mapping[str, Any], idempotency_key: str | None = None) -> Ask[JobView]:
    """Make a job. Its key lets it be sent again: the same job is answered. Raises ClientError."""
    headers = {"Content-Type": "application/json", "Idempotency-Key": idempotency_key or str(uuid4())}
    return Ask("POST", "/v1/samples", _job, {"content": body_of(fields), "headers": headers})


def estimate(fields: SampleFields | Mapping[str, Any]) -> Ask[Estimate]:
    """What a request would take. Raises ClientError."""
    options = {"content": body_of(fields), "headers": {"Content-Type": "application/json"}}
    return Ask("POST", "/v1/estimates", lambda answer: Estimate.model_validate_json(answer.content), options)


def reading(job_id: str, wait_seconds: float = 0) -> Ask[JobView]:
    """A job, at its next change of status or after so many seconds."""
    return Ask("GET", _path(job_id), _job, {"params": {"wait": wait_seconds}} if wait_seconds else {})


def events(job_id: str, last_event_id: str) -> Ask[httpx.Response]:
    """The events of a job from the last one seen on; the answer is a stream."""
    headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last_event_id} if last_event_id else {})
    options = {"headers": headers, "timeout": STREAM_TIMEOUT}
    return Ask("GET", _path(job_id, "events"), lambda answer: answer, options, is_stream=True)


def cancellation(job_id: str) -> Ask[JobView]:
    """End a job."""
    return Ask("POST", _path(job_id, "cancel"), _job)


def deletion(job_id: str) -> Ask[None]:
    """Erase a job and its result."""
    return Ask("DELETE", _path(job_id), lambda _: None)


def file(job_id: str, name: str) -> Ask[bytes]:
    """A file of a finished job, such as `grid.png`."""
    return Ask("GET", _path(job_id, name), lambda answer: answer.content)


def listing(status: Status | None, dataset: str | None, limit: int, cursor: str) -> Ask[JobList]:
    """Some of the caller's jobs."""
    given = {"status": status, "dataset": dataset, "limit": min(limit, LIST_PAGE), "cursor": cursor}
    params = {name: value for name, value in given.items() if value}
    return Ask("GET", "/v1/jobs", lambda answer: JobList.model_validate_json(answer.content), {"params": params})


def offered() -> Ask[list[OfferedModel]]:
    """What can be sampled."""
    return Ask("GET", "/v1/models", lambda answer: TypeAdapter(list[OfferedModel]).validate_json(answer.content))


def state() -> Ask[ServiceStatus]:
    """What workers and queue are at."""
    return Ask("GET", "/v1/status", lambda answer: ServiceStatus.model_validate_json(answer.content))


def _path(job_id: str, *names: str) -> str:
    """Where a job is, whatever its id holds. Raises ClientError for what an address takes for something else."""
    if not job_id.strip(".") or "/" in job_id:
        raise ClientError(f"{job_id!r} is no id of a job")
    return "/".join(("/v1/jobs", quote(job_id, safe=""), *names))


def _job(answer: httpx.Response) -> JobView:
    return JobView.model_validate_json(answer.content)
