"""Everything a client can be refused for: one small tree of errors, mapped to RFC 9457 problems in one place."""

import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from math import ceil
from typing import Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, Field, ValidationError

M = TypeVar("M", bound=BaseModel)

MOST_FIELD_ERRORS = 100

PLAIN_WORDS = {"extra_forbidden": "there is no such field", "missing": "is required"}

SOME_JOB = "3f99f1bc697dea4bff1e3c0546c7d0b9"
"""An id for examples."""


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
    example: ClassVar[str]
    """What its detail may be, for the OpenAPI document, and which field it names if any."""
    example_field: ClassVar[str] = ""

    def __init__(self, detail: str, errors: Sequence[FieldError] = (), retry_after_seconds: float | None = None):
        super().__init__(detail)
        self.detail = detail
        self.errors = list(errors)
        self.retry_after_seconds = retry_after_seconds

    @classmethod
    def of_example(cls) -> Self:
        """One as it may come."""
        field, message = cls.example_field, cls.example.removeprefix(f"{cls.example_field}: ")
        return cls(cls.example, [FieldError(field=field, message=message)] if field else [])

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
    example = "steps: must be at most 256 for this model"
    example_field = "steps"


class UnknownModel(Problem):
    status, code = HTTPStatus.UNPROCESSABLE_ENTITY, "unknown-model"
    example = "there is no dataset 'digits' with D = 3; there is: digits with D = 1, 128, 2048, inf"
    example_field = "D"


class NoSuchModel(Problem):
    status, code = HTTPStatus.NOT_FOUND, "unknown-model"
    example = "there is no model 'digits-d3'; there is: digits-d1, digits-d128, digits-d2048, digits-dinf"
    example_field = "model"


class BodyTooLarge(Problem):
    status, code = HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "body-too-large"
    example = "the body is larger than 1,000,000 bytes"


class NotJson(Problem):
    status, code = HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "not-json"
    example = "the body must be JSON: send it with the header `Content-Type: application/json`"


class TooManyStreams(Problem):
    status, code = HTTPStatus.SERVICE_UNAVAILABLE, "too-many-streams"
    example = "500 clients follow events here already; ask for the job with wait instead"


class UnknownEncoding(Problem):
    status, code = HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "unknown-encoding"
    example = "the Content-Encoding 'br' is not known; gzip and deflate are"


class Incomplete(Problem):
    status, code = HTTPStatus.BAD_REQUEST, "incomplete-body"
    example = "the connection was closed in the middle of the body"


class TooSlow(Problem):
    status, code = HTTPStatus.REQUEST_TIMEOUT, "body-timeout"
    example = "the body did not come within 30 seconds"


class NotFound(Problem):
    status, code = HTTPStatus.NOT_FOUND, "not-found"
    example = "there is no job 'f1bc697dea4bff1e3c0546c7d0b93f99'"


class NotFinished(Problem):
    status, code = HTTPStatus.CONFLICT, "not-finished"
    example = f"job {SOME_JOB} is running; follow it at /v1/jobs/{SOME_JOB}?wait=30"


class Unauthorized(Problem):
    status, code = HTTPStatus.UNAUTHORIZED, "unauthorized"
    example = "a key is needed: send the header `Authorization: Bearer <key>`, with one that is valid"

    @property
    def headers(self) -> dict[str, str]:
        return {"WWW-Authenticate": "Bearer"}


class UnknownHost(Problem):
    status, code = HTTPStatus.MISDIRECTED_REQUEST, "unknown-host"
    example = "example.com is not a name of this machine; set PFGMPP_ALLOW_ANYONE=true behind a proxy that you trust"


class CrossSite(Problem):
    status, code = HTTPStatus.FORBIDDEN, "cross-site"
    example = "another site's page may not do this in your name"


class Forbidden(Problem):
    status, code = HTTPStatus.FORBIDDEN, "forbidden"
    example = "this is for keys of administrators"


class TooMany(Problem):
    status, code = HTTPStatus.TOO_MANY_REQUESTS, "too-many-requests"
    example = "this key may submit 60 jobs a minute"


class OverQuota(Problem):
    status, code = HTTPStatus.TOO_MANY_REQUESTS, "quota-exceeded"
    example = "this key may have 50 jobs that have not ended, and has 50"


class KeyConflict(Problem):
    status, code = HTTPStatus.UNPROCESSABLE_ENTITY, "idempotency-key-reused"
    example = "this Idempotency-Key came with another body before; take a new one for another request"


class NoResult(Problem):
    status, code = HTTPStatus.CONFLICT, "no-result"
    example = f"job {SOME_JOB} expired"


class QueueFull(Problem):
    status, code = HTTPStatus.SERVICE_UNAVAILABLE, "queue-full"
    example = "19,999,000 network evaluations wait and this request adds 8,960; the limit is 20,000,000"


class QueueUnavailable(Problem):
    status, code = HTTPStatus.SERVICE_UNAVAILABLE, "queue-unavailable"
    example = "the queue does not answer"


class StoreUnavailable(Problem):
    status, code = HTTPStatus.SERVICE_UNAVAILABLE, "store-unavailable"
    example = f"the result of job {SOME_JOB} cannot be read at present: the store does not answer as it should"


class NoWorker(Problem):
    status, code = HTTPStatus.SERVICE_UNAVAILABLE, "no-worker"
    example = "no worker serves dataset 'digits' with D = 2048 at present"


class Draining(Problem):
    status, code = HTTPStatus.SERVICE_UNAVAILABLE, "draining"
    example = "this server is about to stop"


class NotReady(Problem):
    status, code = HTTPStatus.SERVICE_UNAVAILABLE, "not-ready"
    example = "no live worker serves a model yet"


class NotInTime(Problem):
    status, code = HTTPStatus.GATEWAY_TIMEOUT, "not-finished-in-time"
    example = "the images were not finished within 600 s; /v1/samples answers before they are"

    @property
    def headers(self) -> dict[str, str]:
        return {"X-Should-Retry": "false"}  # as OpenAI's clients understand it: it would take as long again


class Unexpected(Problem):
    status, code = HTTPStatus.INTERNAL_SERVER_ERROR, "internal-error"
    example = "something went wrong here; it has been logged"


class Lost(Problem):
    status, code = HTTPStatus.GONE, "queue-lost"
    example = f"Redis has lost its data, and job {SOME_JOB} with them if it was there; submit it again"


class Gone(Problem):
    status, code = HTTPStatus.GONE, "result-expired"
    example = f"job {SOME_JOB} ended more than 3600 s ago, and is no longer kept"


def parsed(model: type[M], body: bytes) -> M:
    """What a JSON body says. Raises InvalidRequest naming each field that is wrong."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise invalid(error.errors(include_url=False, include_context=False)) from error


def invalid(errors: Sequence[Mapping[str, Any]]) -> InvalidRequest:
    """The refusal for what pydantic found wrong with a request."""
    return refused([FieldError(field=_path(error["loc"]), message=_message(error)) for error in errors])


def wrong(field: str, message: str) -> InvalidRequest:
    """The refusal of a request for one field."""
    return refused([FieldError(field=field, message=message)])


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
    """What is wrong, in our own words where a library's say little to whoever does not know it."""
    if error["type"] in PLAIN_WORDS:
        return PLAIN_WORDS[error["type"]]
    message = str(error["msg"]).removeprefix("Value error, ").replace(" after validation", "")
    message = re.sub("^(Input|List|String) should ", "must ", message)
    return message[:1].lower() + message[1:]


ASKING = (BodyTooLarge, TooSlow, Incomplete, NotJson, InvalidRequest, NoWorker, QueueUnavailable, Draining)
"""Why a request for images may be refused before it would be queued, beside that there is no such model."""

QUEUING = (KeyConflict, TooMany, OverQuota, QueueFull, NoResult, Gone, StoreUnavailable)
"""Why it may not be queued, or why there are no images in the end."""


def http_problem(status: int) -> Problem:
    """The problem for a status that the framework chose, such as 404 for a path that is no route."""
    phrase = HTTPStatus(status).phrase
    problem = Problem(f"{phrase}: see /docs for what this service answers")
    problem.status, problem.code = HTTPStatus(status), phrase.lower().replace(" ", "-")
    return problem
