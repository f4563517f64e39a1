"""Everything a client can be refused for: one small tree of errors, mapped to RFC 9457 problems in one place."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from math import ceil
from typing import Any

from pydantic import BaseModel, Field

MOST_FIELD_ERRORS = 100


class FieldError(BaseModel):
    """What is wrong with one field of a request; `field` is a path such as `labels.3`."""

    field: str
    message: str


class ProblemDocument(BaseModel):
    """An `application/problem+json` body (RFC 9457); `code` is a stable word for programs."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    instance: str
    code: str
    errors: list[FieldError] = Field(default_factory=list)


class Problem(Exception):
    """A request that cannot be served, with what the client should know about it."""

    status: HTTPStatus
    code: str

    def __init__(self, detail: str, errors: Sequence[FieldError] = (), retry_after_seconds: float | None = None):
        super().__init__(detail)
        self.detail = detail
        self.errors = list(errors)
        self.retry_after_seconds = retry_after_seconds

    @property
    def headers(self) -> dict[str, str]:
        if self.retry_after_seconds is None:
            return {}
        return {"Retry-After": str(max(1, ceil(self.retry_after_seconds)))}

    def document(self, instance: str) -> ProblemDocument:
        return ProblemDocument(
            title=self.status.phrase,
            status=self.status,
            detail=self.detail,
            instance=instance,
            code=self.code,
            errors=self.errors,
        )


class InvalidRequest(Problem):
    status, code = HTTPStatus.UNPROCESSABLE_ENTITY, "invalid-request"


class UnknownModel(Problem):
    status, code = HTTPStatus.UNPROCESSABLE_ENTITY, "unknown-model"


class NoSuchModel(Problem):
    status, code = HTTPStatus.NOT_FOUND, "unknown-model"


class BodyTooLarge(Problem):
    status, code = HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "body-too-large"


class NotJson(Problem):
    status, code = HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "not-json"


class Incomplete(Problem):
    status, code = HTTPStatus.BAD_REQUEST, "incomplete-body"


class TooSlow(Problem):
    status, code = HTTPStatus.REQUEST_TIMEOUT, "body-timeout"


class NotFound(Problem):
    status, code = HTTPStatus.NOT_FOUND, "not-found"


class NotFinished(Problem):
    status, code = HTTPStatus.CONFLICT, "not-finished"


class Unauthorized(Problem):
    status, code = HTTPStatus.UNAUTHORIZED, "unauthorized"

    @property
    def headers(self) -> dict[str, str]:
        return {"WWW-Authenticate": "Bearer"}


class Forbidden(Problem):
    status, code = HTTPStatus.FORBIDDEN, "forbidden"


class TooMany(Problem):
    status, code = HTTPStatus.TOO_MANY_REQUESTS, "too-many-requests"


class OverQuota(Problem):
    status, code = HTTPStatus.TOO_MANY_REQUESTS, "quota-exceeded"


class KeyConflict(Problem):
    status, code = HTTPStatus.UNPROCESSABLE_ENTITY, "idempotency-key-reused"


class NoResult(Problem):
    status, code = HTTPStatus.CONFLICT, "no-result"


class QueueFull(Problem):
    status, code = HTTPStatus.SERVICE_UNAVAILABLE, "queue-full"


class QueueUnavailable(Problem):
    status, code = HTTPStatus.SERVICE_UNAVAILABLE, "queue-unavailable"


class StoreUnavailable(Problem):
    status, code = HTTPStatus.SERVICE_UNAVAILABLE, "store-unavailable"


class NoWorker(Problem):
    status, code = HTTPStatus.SERVICE_UNAVAILABLE, "no-worker"


class Draining(Problem):
    status, code = HTTPStatus.SERVICE_UNAVAILABLE, "draining"


class NotReady(Problem):
    status, code = HTTPStatus.SERVICE_UNAVAILABLE, "not-ready"


class Unexpected(Problem):
    status, code = HTTPStatus.INTERNAL_SERVER_ERROR, "internal-error"


class Lost(Problem):
    status, code = HTTPStatus.GONE, "queue-lost"


class Gone(Problem):
    status, code = HTTPStatus.GONE, "result-expired"


def invalid(errors: Sequence[Mapping[str, Any]]) -> InvalidRequest:
    """The refusal for what pydantic found wrong with a request."""
    return refused([FieldError(field=_path(error["loc"]), message=_message(error)) for error in errors])


def refused(fields: Sequence[FieldError]) -> InvalidRequest:
    """The refusal of a request for what is wrong with its fields."""
    shown = "; ".join(f"{each.field}: {each.message}" for each in fields[:5])
    more = f"; and {len(fields) - 5} more" if len(fields) > 5 else ""
    return InvalidRequest(shown + more, fields[:MOST_FIELD_ERRORS])


def _path(location: Sequence[int | str]) -> str:
    """A field's path; the name pydantic puts first for where it stood is left out."""
    names = location[1:] if location[:1] in (("query",), ("path",), ("body",)) else location
    return ".".join(str(name)[:64] for name in names) or "body"


def _message(error: Mapping[str, Any]) -> str:
    message = str(error["msg"]).removeprefix("Value error, ")
    return message[:1].lower() + message[1:]


def http_problem(status: int) -> Problem:
    """The problem for a status that the framework chose, such as 404 for a path that is no route."""
    phrase = HTTPStatus(status).phrase
    problem = Problem(f"{phrase}: see /docs for what this service answers")
    problem.status, problem.code = HTTPStatus(status), phrase.lower().replace(" ", "-")
    return problem
