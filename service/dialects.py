"""How refusals are worded: as RFC 9457 has it, or as the protocol has it that is spoken on a path."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Protocol

from pydantic import BaseModel, Field

from service.problems import Problem, ProblemDocument


class OpenAIFault(BaseModel):
    """What OpenAI's clients make an exception of."""

    message: str
    type: str = Field(description="`invalid_request_error`, `rate_limit_error`, `server_error` and the like.")
    param: str | None = Field(None, description="The first field that is wrong.")
    code: str = Field(description="The stable word of the problem, as on other routes.")


class OpenAIError(BaseModel):
    """A refusal as OpenAI's API has it."""

    error: OpenAIFault


class InferenceError(BaseModel):
    """A refusal as the Open Inference Protocol has it."""

    error: str


class _Wording(Protocol):
    def __call__(self, problem: Problem, /, instance: str) -> BaseModel: ...


@dataclass(frozen=True)
class Dialect:
    """One way to word refusals."""

    model: type[BaseModel]
    """Of the documents."""
    document: _Wording
    media_type: str = "application/json"
    statuses: Mapping[HTTPStatus, HTTPStatus] = field(default_factory=dict)
    """What becomes of a problem's status; the others stay as they are."""

    def status(self, problem: Problem | type[Problem]) -> HTTPStatus:
        """That a problem has here."""
        return self.statuses.get(problem.status, problem.status)


TYPES = {
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.FORBIDDEN: "permission_error",
    HTTPStatus.NOT_FOUND: "not_found_error",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
}
"""OpenAI's words for statuses below 500; the rest are invalid requests."""


def _as_openai(problem: Problem, instance: str) -> OpenAIError:
    kind = TYPES.get(problem.status, "server_error" if problem.status >= 500 else "invalid_request_error")
    param = problem.errors[0].field if problem.errors else None
    return OpenAIError(error=OpenAIFault(message=problem.detail, type=kind, param=param, code=problem.code))


def _as_inference(problem: Problem, instance: str) -> InferenceError:
    return InferenceError(error=problem.detail)


AS_BAD_REQUEST = {HTTPStatus.UNPROCESSABLE_ENTITY: HTTPStatus.BAD_REQUEST}

PROBLEMS = Dialect(ProblemDocument, Problem.document, "application/problem+json")
OPENAI = Dialect(OpenAIError, _as_openai, statuses=AS_BAD_REQUEST)
INFERENCE = Dialect(InferenceError, _as_inference, statuses=AS_BAD_REQUEST)

SPOKEN = (("/v1/images/", OPENAI), ("/openai/", OPENAI), ("/v2", INFERENCE))
"""On which paths, by their beginning."""


def dialect_of(path: str) -> Dialect:
    """That of a path."""
    return next((dialect for beginning, dialect in SPOKEN if path.startswith(beginning)), PROBLEMS)
