"""Connections end when a client sends no request, one without an end, or takes nothing of the answer."""

import asyncio
import resource
import socket
from collections.abc import AsyncIterator

import pytest
import uvicorn
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from service import connection
from service.connection import Connection, allow_many, most_connections
from service.problems import ProblemDocument

pytestmark = pytest.mark.anyio

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
LARGE = 20_000_000
"""Bytes: more than the system holds for a client that takes nothing."""


async def large(scope: Scope, receive: Receive, send: Send) -> None:
    await Response(bytes(LARGE))(scope, receive, send)


@pytest.fixture
async def port() -> AsyncIterator[int]:
    config = uvicorn.Config(large, log_config=None)
    config.load()
    state = ServerState()
    server = await asyncio.get_running_loop().create_server(lambda: Connection(config, state, {}), "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]
        for each in list(state.connections):
            each.transport.abort()
        await asyncio.gather(*state.tasks)


async def answer(port: int, sent: bytes) -> bytes:
    """All that comes until the server ends the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(sent)
        return await asyncio.wait_for(reader.read(), 30)
    except ConnectionError:
        return b""
    finally:
        writer.close()


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHo"], ids=["nothing", "half"])
async def test_a_request_that_does_not_come_is_not_waited_for(
    port: int, sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.1)
    assert await answer(port, sent) == b""


async def test_headers_have_an_end(port: int) -> None:
    head = GET[:-2] + b"X: "
    filler = b"a" * (connection.MOST_HEAD_BYTES + 1 - len(head))
    assert (await answer(port, head + filler)).startswith(b"HTTP/1.1 431 ")
    assert (await answer(port, head + filler + b"a" * 99 + b"\r\n\r\n")).startswith(b"HTTP/1.1 431 ")


async def test_a_client_that_takes_nothing_is_given_up(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """And its answer is no longer held; one that takes it all has it all."""
    monkeypatch.setattr(connection, "TAKING_SECONDS", 0.2)
    whole = await answer(port, GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    assert len(whole) > LARGE
    with socket.create_connection(("127.0.0.1", port)) as idle:
        idle.sendall(GET)
        lost, connection_lost = asyncio.Event(), Connection.connection_lost

        def note(self: Connection, error: Exception | None) -> None:
            connection_lost(self, error)
            lost.set()

        monkeypatch.setattr(Connection, "connection_lost", note)
        await asyncio.wait_for(lost.wait(), 30)


async def test_a_body_without_an_end_is_not_read_for_ever(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the answer is out."""
    monkeypatch.setattr(connection, "BODY_END_SECONDS", 0.2)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(GET.replace(b"GET", b"POST").replace(b"\r\n\r\n", b"\r\nContent-Length: 1000000\r\n\r\n"))
    assert len(await asyncio.wait_for(reader.readexactly(LARGE), 30)) == LARGE
    assert len(await asyncio.wait_for(reader.read(), 3)) < 1000  # sooner than an idle connection is ended
    writer.close()


async def test_what_is_no_request_is_refused_by_a_problem(port: int) -> None:
    head, _, body = (await answer(port, b"GET / HTTP/3.0\r\nHost: localhost\r\n\r\n")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert ProblemDocument.model_validate_json(body).code == "invalid-http"


async def test_there_are_only_so_many(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "most_connections", lambda: 1)
    with socket.create_connection(("127.0.0.1", port)):
        refused = await answer(port, GET)
    assert refused.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: 5" in refused
    assert refused.endswith(b'"code":"too-many-connections"}')


def test_there_may_be_as_many_as_the_system_permits() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1000, before[1]))
        assert most_connections() == 744
        allow_many()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
