"""Connections with an end to their patience: for the head of a request, for its length, and for an answer to be taken.

Uvicorn waits for ever for all three; a thousand clients that say nothing would keep a thousand files open.
"""

import asyncio
import resource
from contextlib import suppress

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_SECONDS = 10.0
"""Within which the first line and the headers of a request must have come."""

MOST_HEAD_BYTES = 65_536

BODY_END_SECONDS = 5.0
"""Within which the rest of a body must have come that was answered before its end."""

TAKING_SECONDS = 30.0
"""Within which a client must take some of an answer that waits for it."""

RESERVED_FILES = 256
"""That are not for connections: results, Redis, metrics."""

RETRY_SECONDS = 5


def _last_answer(status: int, phrase: str, code: str, headers: str = "") -> bytes:
    """A problem document without a request, after which the connection is closed."""
    told = f'"type":"about:blank","title":"{phrase}","status":{status},"detail":"{phrase}","instance":"","errors":[]'
    body = f'{{{told},"code":"{code}"}}'
    return (
        f"HTTP/1.1 {status} {phrase}\r\ncontent-type: application/problem+json\r\n{headers}"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n{body}"
    ).encode()


UNREADABLE = _last_answer(400, "Invalid HTTP request", "invalid-http")
TOO_LONG = _last_answer(431, "Request Header Fields Too Large", "head-too-large")
TOO_MANY = _last_answer(
    503, "Too many connections", "too-many-connections", headers=f"retry-after: {RETRY_SECONDS}\r\n"
)


def allow_many() -> None:
    """Let this process hold as many connections as the system permits; shells permit some thousand or less."""
    with suppress(ValueError, OSError):
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def most_connections() -> int:
    """How many connections this process may have at once."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(RESERVED_FILES, files - RESERVED_FILES) if files != resource.RLIM_INFINITY else 1_000_000


class Connection(HttpToolsProtocol):
    """One connection of a client."""

    _head_bytes = 0
    """That have come of a head which is not complete."""
    _head_size = 0
    """Bytes of the head that was read last."""
    _head_timer: asyncio.TimerHandle | None = None
    _taking_timer: asyncio.TimerHandle | None = None
    _body_timer: asyncio.TimerHandle | None = None
    _is_whole = True
    """Whether the last request has come to its end."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > most_connections():
            self._end(TOO_MANY)
        else:
            self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._have_head()
        self._have_body()
        self._have_taken()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._head_timer is None or self.transport.is_closing():
            return
        self._head_bytes += len(data)
        if self._head_bytes > MOST_HEAD_BYTES:
            self._end(TOO_LONG)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._is_whole = False
        if self._head_timer is None:  # another request on this connection
            self._expect_head()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._head_size = len(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._head_size += len(name) + len(value)

    def on_headers_complete(self) -> None:
        self._have_head()
        if self._head_size > MOST_HEAD_BYTES:  # that came at once
            self._end(TOO_LONG)
        else:
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._is_whole = True
        self._have_body()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._is_whole:  # else every byte of it would keep the connection for some more seconds
            self._body_timer = self.loop.call_later(BODY_END_SECONDS, self.transport.close)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect_taking()

    def resume_writing(self) -> None:
        self._have_taken()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        self._end(UNREADABLE)

    def _unsupported_upgrade_warning(self) -> None:
        """Answer as if no upgrade were asked for, and log nothing: there is none that an operator could install."""

    def _end(self, last: bytes) -> None:
        self.transport.write(last)
        self.transport.close()

    def _expect_head(self) -> None:
        self._head_bytes = 0
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _have_head(self) -> None:
        if self._head_timer:
            self._head_timer.cancel()
            self._head_timer = None

    def _have_body(self) -> None:
        if self._body_timer:
            self._body_timer.cancel()
            self._body_timer = None

    def _expect_taking(self) -> None:
        """Give the client up when it has taken nothing for too long; a slow one is waited for."""
        waiting = self.transport.get_write_buffer_size()

        def look() -> None:
            if self.transport.get_write_buffer_size() < waiting:
                self._expect_taking()
            else:
                self.transport.abort()

        self._taking_timer = self.loop.call_later(TAKING_SECONDS, look)

    def _have_taken(self) -> None:
        if self._taking_timer:
            self._taking_timer.cancel()
            self._taking_timer = None
