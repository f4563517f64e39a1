"""How one service is spoken to: where it is, what an answer means, and what is asked again, when and for how long."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from logging import getLogger
from typing import Any, NoReturn, TypeVar

import httpx
from pydantic import ValidationError
from tenacity import RetryCallState, retry_if_exception, stop_before_delay, wait_random_exponential

from service import DEFAULT_SERVER, __version__
from service.client.asks import TIMEOUT, Ask
from service.client.errors import ClientError, Refused, Unreachable
from service.problems import ProblemDocument

T = TypeVar("T")

PATIENCE_SECONDS = 60.0

LONGEST_PAUSE_SECONDS = 8.0
"""Between two tries, where the service does not say when to come again."""

NO_KEY = "the key holds characters that no key has"

log = getLogger("pfgmpp.client")


class Exchange:
    """What a client knows of its service, and how patient it is with it."""

    def __init__(self, server: str | None, key: str | None, patience_seconds: float):
        self.server = server or os.environ.get("PFGMPP_SERVER") or DEFAULT_SERVER
        self.key = key or os.environ.get("PFGMPP_KEY")
        self.patience_seconds = patience_seconds
        self.has_answered = False
        self._guess = wait_random_exponential(0.25, LONGEST_PAUSE_SECONDS)

    @contextmanager
    def opening(self) -> Iterator[dict[str, Any]]:
        """What a client of httpx is made with. Raises ClientError for a server that is no URL, a key that is none."""
        if "://" not in self.server:
            raise ClientError(f"{self.server!r} lacks http:// or https://: is http://{self.server} meant?")
        headers = {"User-Agent": f"pfgmpp/{__version__}"}
        if self.key:
            if not self.key.strip().isprintable():
                raise ClientError(NO_KEY)
            headers["Authorization"] = f"Bearer {self.key.strip()}"
        try:
            yield {"base_url": self.server, "headers": headers, "timeout": TIMEOUT}
        except httpx.InvalidURL as error:
            raise ClientError(f"{self.server!r} is not a URL ({error})") from error
        except UnicodeEncodeError as error:
            raise ClientError(NO_KEY) from error

    @contextmanager
    def reaching(self) -> Iterator[None]:
        """Raise Unreachable for what httpx cannot send or get."""
        try:
            yield
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            hint = "is `pfgmpp serve` running? --server or PFGMPP_SERVER names another place"
            never = (httpx.InvalidURL, httpx.UnsupportedProtocol, httpx.LocalProtocolError)
            raise Unreachable(
                f"cannot reach {self.server} ({str(error) or type(error).__name__}); {hint}",
                is_passing=not isinstance(error, never),
                is_nobody=isinstance(error, httpx.ConnectError),
            ) from error

    def read(self, ask: Ask[T], answer: httpx.Response) -> T:
        """What an answer means, of which an error has been read. Raises Refused, or ClientError for nonsense."""
        self.has_answered = True
        if not answer.is_success:
            raise refusal(answer)
        try:
            return ask.read(answer)
        except ValidationError as error:
            found = f"{error.errors()[0]['loc']}: {error.errors()[0]['msg']}"
            raise ClientError(
                f"{ask.method} {ask.path}: {self.server} answers what this client ({__version__}) does not understand "
                f"({found}); is it a PFGM++ Serve of another version?"
            ) from error

    def persistence(self) -> dict[str, Any]:
        """By which tenacity asks again: within the patience, and when the service said so."""
        return {
            "retry": retry_if_exception(self._is_passing),
            "wait": self._pause,
            "stop": stop_before_delay(self.patience_seconds),
            "before_sleep": _announce,
            "retry_error_callback": _give_up,
        }

    def _is_passing(self, error: BaseException) -> bool:
        """Whether it is worth asking again. Where nobody ever answered the address is wrong, as far as one knows."""
        if isinstance(error, Unreachable):
            return error.is_passing and (self.has_answered or not error.is_nobody)
        return isinstance(error, Refused) and error.is_passing

    def _pause(self, state: RetryCallState) -> float:
        error = _error(state)
        wished = error.retry_after_seconds if isinstance(error, Refused) else None
        return self._guess(state) if wished is None else wished


def _error(state: RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome else None


def _announce(state: RetryCallState) -> None:
    """Say that one waits, and for what: never in silence."""
    log.warning("%s; trying again in %.1f s", _error(state), state.upcoming_sleep)


def _give_up(state: RetryCallState) -> NoReturn:
    """Raise the last error, with how long was tried."""
    error = _error(state)
    if error is None:
        raise RuntimeError("gave up without an error")
    if state.attempt_number > 1 and isinstance(error, ClientError):
        tried = f"tried {state.attempt_number} times in {state.seconds_since_start or 0:.0f} s"
        error.args = (f"{error}; {tried}",)
    raise error


def refusal(answer: httpx.Response) -> Refused:
    """An answer that is an error, as an exception; one that is no problem document comes from something between."""
    wait = retry_after(answer.headers.get("retry-after"))
    if answer.headers.get("content-type", "").partition(";")[0] == "application/problem+json":
        try:
            return Refused(ProblemDocument.model_validate_json(answer.content), wait)
        except ValidationError:
            pass  # of some other service
    phrase = answer.reason_phrase or "no such status"
    code = f"http-{answer.status_code}"
    detail = f"{answer.status_code} {phrase}, in answer to {answer.request.method} {answer.request.url}"
    problem = ProblemDocument(
        title=phrase, status=answer.status_code, detail=detail, instance=answer.request.url.path, code=code
    )
    return Refused(problem, wait)


def retry_after(value: str | None) -> float | None:
    """The seconds of a header `Retry-After`, which may name a time instead; None if it makes no sense."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return None
