"""A bad network: a proxy between a client and a service that loses, refuses and cuts off what it is told to."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import httpx


@dataclass
class Trouble:
    """What becomes of a request whose path has some words in it, once."""

    path: str
    status: int = 0
    """The answer, which does not come from the service; 0: there is none, and the connection is closed."""
    headers: dict[str, str] = field(default_factory=dict)
    content: bytes = b""
    is_answer_lost: bool = False
    """Whether the service has the request, and its answer is lost."""
    cut_after: int | None = None
    """So many bytes of the answer pass."""


class BadNetwork(ThreadingHTTPServer):
    """Passes requests on to a service, but for the troubles that are to come."""

    daemon_threads = True

    def __init__(self, url: str):
        super().__init__(("127.0.0.1", 0), Handler)
        self.behind = httpx.Client(base_url=url, timeout=60)
        self.troubles = deque[Trouble]()
        self.seen = list[tuple[str, str, dict[str, str]]]()
        """Method, path and headers of every request."""

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def trouble_for(self, path: str) -> Trouble | None:
        """The next trouble, if it is for that path."""
        if self.troubles and self.troubles[0].path in path:
            return self.troubles.popleft()
        return None

    def handle_error(self, *_: Any) -> None:
        """A client that went away is none."""


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: BadNetwork

    def do(self) -> None:
        """Pass a request on, or not."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.seen.append((self.command, self.path, headers))
        trouble = self.server.trouble_for(self.path)
        self.close_connection = True
        if trouble and trouble.status:
            self._answer(trouble.status, trouble.headers | {"Content-Length": str(len(trouble.content))})
            self.wfile.write(trouble.content)
            return
        if trouble and trouble.cut_after is None and not trouble.is_answer_lost:
            return
        headers.pop("host")
        with self.server.behind.stream(self.command, self.path, headers=headers, content=body) as answer:
            if trouble and trouble.is_answer_lost:
                answer.read()
                return
            passed = ("content-type", "retry-after", "location")
            self._answer(answer.status_code, {n: answer.headers[n] for n in passed if n in answer.headers})
            left = trouble.cut_after if trouble else None
            for chunk in answer.iter_raw():
                self.wfile.write(
                    f"{len(chunk[:left]):x}\r\n".encode() + chunk[:left] + b"\r\n" if chunk[:left] else b""
                )
                if left is not None and (left := left - len(chunk)) <= 0:
                    return
            self.wfile.write(b"0\r\n\r\n")

    do_GET = do_POST = do_DELETE = do  # noqa: N815

    def _answer(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Transfer-Encoding", "chunked")
        self.send_header("Connection", "close")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@contextmanager
def bad_network(url: str) -> Iterator[BadNetwork]:
    """A bad network before a service."""
    with BadNetwork(url) as network:
        thread = Thread(target=network.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield network
        finally:
            network.shutdown()
            thread.join()
            with suppress(Exception):
                network.behind.close()
