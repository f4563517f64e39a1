"""HTTP around the routes: problems as documents, bodies with a limit, the duration of every request."""

import asyncio
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from http import HTTPStatus
from ipaddress import ip_address
from urllib.parse import quote, urlsplit

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from redis.exceptions import RedisError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import metrics, tracing
from service.access import Anyone, Caller, Keys
from service.dialects import dialect_of
from service.events import Patience, Wish
from service.logs import get_logger
from service.problems import (
    BodyTooLarge,
    CrossSite,
    FieldError,
    Incomplete,
    NotJson,
    NotReady,
    Problem,
    QueueUnavailable,
    TooSlow,
    Unauthorized,
    Unexpected,
    UnknownHost,
    http_problem,
    invalid,
    refused,
)

log = get_logger()

QUEUE_RETRY_SECONDS = 2
KEYS_RETRY_SECONDS = 30
BODY_SECONDS = 30
MOST_WAIT_SECONDS = 60
QUALITY = re.compile(r"q=[01](\.[0-9]{0,3})?")
WHOLE_NUMBER = re.compile(r"[0-9]{1,9}")

PREFER_WAIT = {
    "name": "Prefer",
    "in": "header",
    "schema": {"type": "string"},
    "example": "wait=30",
    "description": f"`wait=N` holds the answer until the job ends, for N seconds at most (0 to {MOST_WAIT_SECONDS}).",
}
"""The header in OpenAPI."""

IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255},
    "example": "9f0c2f0e-digits",
    "description": "The same key and body answer the same job for a day, so that a submission can be repeated.",
}

POLICY = b"content-security-policy"
"""Pages have their own; what is no page may load nothing."""

SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}


def content_type(request: Request) -> str:
    """The media type of a request's body; "" if it says none."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def has_current(request: Request, tag: str) -> bool:
    """Whether the client has what goes by this `ETag`, as its `If-None-Match` says."""
    known = {each.strip().removeprefix("W/") for each in request.headers.get("if-none-match", "").split(",")}
    return bool(known & {tag, "*"})


async def read_json_body(request: Request, max_bytes: int) -> bytes:
    """The body of a JSON request. Raises NotJson, or as `read_body`."""
    if content_type(request) != "application/json":
        raise NotJson("the body must be JSON: send it with the header `Content-Type: application/json`")
    if request.headers.get("content-encoding", "identity") != "identity":
        raise NotJson("the body must be JSON as it is: send it without a Content-Encoding")
    return await read_body(request, max_bytes)


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The body of a request, read no further than it may be long.

    Raises BodyTooLarge, TooSlow, or Incomplete when the client went away.
    """
    too_large = BodyTooLarge(f"the body is larger than {max_bytes:,} bytes")
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared[:20]) > max_bytes:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > max_bytes:
                    raise too_large
    except TimeoutError as error:
        raise TooSlow(f"the body did not come within {BODY_SECONDS} seconds") from error
    except ClientDisconnect as error:
        raise Incomplete("the connection was closed in the middle of the body") from error
    return bytes(body)


def preferred_wait(request: Request) -> int | None:
    """The seconds of `Prefer: wait=N` (RFC 7240), or None without it; other preferences are ignored, as it says.

    Raises InvalidRequest when N is no whole number from 0 to 60.
    """
    for preference in ",".join(request.headers.getlist("prefer")).split(","):
        name, _, value = preference.partition(";")[0].partition("=")
        if name.strip().lower() == "wait":
            seconds = value.strip().strip('"')
            if not WHOLE_NUMBER.fullmatch(seconds) or int(seconds) > MOST_WAIT_SECONDS:
                message = f"wait must be a whole number of seconds from 0 to {MOST_WAIT_SECONDS}"
                raise refused([FieldError(field="Prefer", message=message)])
            return int(seconds)
    return None


def idempotency_key(request: Request) -> str:
    """The `Idempotency-Key` of a request; "" without one. Raises InvalidRequest for one that is empty or too long."""
    key = request.headers.get("idempotency-key")
    if key is not None and not 1 <= len(key) <= 255:
        raise refused([FieldError(field="Idempotency-Key", message="must have 1 to 255 characters")])
    return key or ""


def prefers_picture(request: Request) -> bool:
    """Whether the client accepts PNG, and JSON less."""
    return _weight(request, "image/png") > _weight(request, "application/json")


def _weight(request: Request, kind: str) -> float:
    """How much the client likes a media type that it names, from 0 to 1."""
    for each in request.headers.get("accept", "").lower().split(","):
        name, *parameters = (word.strip() for word in each.split(";"))
        if name == kind:
            return next((float(word[2:]) for word in parameters if QUALITY.fullmatch(word)), 1.0)
    return 0.0


@contextmanager
def patience_of(request: Request, seconds: float, wish: Wish = "change") -> Iterator[Patience]:
    """The patience of a client, which ends when it goes away. The body must have been read."""
    patience = Patience(seconds, wish)
    if seconds <= 0:
        yield patience
        return

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        patience.end()

    watching = asyncio.create_task(watch())
    try:
        yield patience
    finally:
        watching.cancel()


def answer(request: Request, problem: Problem) -> JSONResponse:
    """A problem as `application/problem+json`, or as the protocol has it that is spoken on that path."""
    path = request.url.path
    dialect = dialect_of(path)
    return JSONResponse(
        dialect.document(problem, quote(path)).model_dump(mode="json"),
        dialect.status(problem),
        problem.headers,
        media_type=dialect.media_type,
    )


def queue_unavailable() -> QueueUnavailable:
    """What an error of Redis is to a client."""
    return QueueUnavailable("the queue does not answer", retry_after_seconds=QUEUE_RETRY_SECONDS)


def install(app: FastAPI, keys: Keys | None, is_local: bool) -> None:
    """Map every error to a problem, let in whom the keys know (or anyone), and time every request.

    `is_local`: without keys, for this machine alone.
    """

    @app.exception_handler(Problem)
    async def on_problem(request: Request, problem: Problem) -> JSONResponse:
        return answer(request, problem)

    @app.exception_handler(RequestValidationError)
    async def on_invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return answer(request, invalid(error.errors()))

    @app.exception_handler(HTTPException)
    async def on_http(request: Request, error: HTTPException) -> JSONResponse:
        response = answer(request, http_problem(error.status_code))
        response.headers.update(error.headers or {})
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            response.headers["Allow"] = ", ".join(sorted(_allowed(request)))
        return response

    @app.exception_handler(RedisError)
    async def on_redis(request: Request, error: RedisError) -> JSONResponse:
        return answer(request, queue_unavailable())

    app.add_middleware(Guard, keys=keys, is_local=is_local)
    app.add_middleware(Timed)
    app.add_middleware(HeadAsGet)
    if tracing.is_on():
        app.add_middleware(tracing.Traced)


def _allowed(request: Request) -> set[str]:
    """The methods of all routes of a path; the framework names those of the first."""
    routes = (route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE)
    return {method for route in routes for method in route.methods}


def check_readable(keys: Keys) -> None:
    """Raise NotReady while the file of keys cannot be read."""
    if not keys.is_readable:
        detail = "the file of keys cannot be read, so nobody is let in"
        raise NotReady(detail, retry_after_seconds=KEYS_RETRY_SECONDS)


class Guard:
    """Lets in who has a key, tells browsers to be careful with the answers, and answers for what went wrong inside.

    Without a key there are only the paths that say how the service is, and how it is used. Where there are no keys,
    nothing tells a user from a page of another site that the user's browser shows: so such pages may change nothing,
    and a service for one machine has that machine's names alone, which no other site can take on.
    """

    OPEN = frozenset({"/", "/livez", "/readyz", "/v2/health/live", "/v2/health/ready", "/openapi.json", "/docs"})
    OPEN_BELOW = ("/page/", "/docs/")
    """Before the names of what the pages at `/` and `/docs` are made of."""
    HEADERS = (
        (b"x-content-type-options", b"nosniff"),
        (b"x-frame-options", b"DENY"),
        (b"referrer-policy", b"no-referrer"),
        (b"cross-origin-resource-policy", b"same-origin"),
    )
    STRICT = (*HEADERS, (POLICY, b"default-src 'none'; frame-ancestors 'none'"))

    def __init__(self, app: ASGIApp, keys: Keys | None, is_local: bool):
        self.app, self.keys, self.is_local = app, keys, is_local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        has_begun = False

        async def harden(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                headers = list(message.get("headers", ()))
                is_page = any(name == POLICY for name, _ in headers)
                message["headers"] = [*headers, *(self.HEADERS if is_page else self.STRICT)]
            await send(message)

        try:
            scope.setdefault("state", {})["caller"] = self._caller(scope)
            await self.app(scope, receive, harden)
        except Problem as problem:
            await answer(Request(scope), problem)(scope, receive, harden)
        except Exception:
            if has_begun:  # the connection must be cut, which says that the rest is missing
                raise
            log.exception("defect", method=scope["method"], route=getattr(scope.get("route"), "path", "none"))
            defect = Unexpected("something went wrong here; it has been logged")
            await answer(Request(scope), defect)(scope, receive, harden)

    def _caller(self, scope: Scope) -> Caller:
        """Who asks. Raises Unauthorized, NotReady while nobody is known, UnknownHost or CrossSite."""
        if self.keys is None:
            self._check_site(scope)
        if self.keys is None or scope["path"] in self.OPEN or scope["path"].startswith(self.OPEN_BELOW):
            return Anyone()
        check_readable(self.keys)
        scheme, _, key = Request(scope).headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise Unauthorized("a key is needed: send the header `Authorization: Bearer <key>`, with one that is valid")
        caller = self.keys.caller(key.strip())
        if caller is None:
            raise Unauthorized("this key is not known, or no longer")
        return caller

    def _check_site(self, scope: Scope) -> None:
        """Raise UnknownHost or CrossSite for what a page of another site may have a browser ask."""
        headers = Request(scope).headers
        host = ", ".join(headers.getlist("host"))  # of which there is one
        if self.is_local and not _is_of_this_machine(host):
            hint = "set PFGMPP_ALLOW_ANYONE=true behind a proxy that you trust"
            raise UnknownHost(f"{host[:128]!r} is not a name of this machine; {hint}")
        if scope["method"] not in SAFE_METHODS and not _is_of_the_same_site(headers, host):
            raise CrossSite("another site's page may not do this in your name")


@lru_cache(256)
def _is_of_this_machine(host: str) -> bool:
    """Whether a Host header names what no other site can be reached by: the loopback's names, or any address."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or name.endswith(".localhost") or bool(ip_address(name))
    except ValueError:
        return False


def _is_of_the_same_site(headers: Headers, host: str) -> bool:
    """Whether a request comes from this service's own page, or from no page: browsers say where it comes from."""
    if site := headers.get("sec-fetch-site"):
        return site in {"same-origin", "none"}
    origin = headers.get("origin")
    return origin is None or origin.partition("://")[2] == host


class HeadAsGet:
    """Answers HEAD as GET; the server leaves the body out."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_head = scope["type"] == "http" and scope["method"] == "HEAD"
        await self.app({**scope, "method": "GET", "is_head": True} if is_head else scope, receive, send)


class Timed:
    """Observes the duration of every request under its route's path, never under the path asked for."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watch)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            method = scope["method"] if scope["method"] in METHODS else "other"
            metrics.http_request_duration.labels(method, route, status).observe(time.perf_counter() - started)
