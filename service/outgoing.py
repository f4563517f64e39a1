"""Calls to the outside: what is connected to is the very address that was looked up and found to be allowed.

A name that is looked up once more by whoever connects may stand for another address by then (DNS rebinding).
"""

import asyncio
import socket
import ssl
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from urllib.parse import urlsplit

import httpcore
from httpcore import AsyncNetworkBackend, AsyncNetworkStream

from service.addresses import Network, is_callable

CONNECT_SECONDS = 3.0
"""For each address of a host."""

LOOKUPS = 64
"""Most at a time: each holds a thread for as long as the name servers of a host take to answer."""


class NotAllowed(Exception):
    """A host that has an address which may not be called."""


def look_up(host: str, port: int) -> list[str]:
    """The addresses of a host, the best one first. Raises OSError, or UnicodeError for what can be no name."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class Checked(AsyncNetworkBackend):
    """Connects to hosts all of whose addresses may be called; each is looked up once for each connection."""

    def __init__(self, allowed: Sequence[Network], look_up: Callable[[str, int], list[str]] = look_up):
        self._allowed = allowed
        self._look_up = look_up
        # Not asyncio's own threads, which read pictures: name servers that are silent would hold them all.
        self._threads = ThreadPoolExecutor(LOOKUPS, "look-up")
        self._network = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109  # as httpcore has it
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> AsyncNetworkStream:
        """A connection to the first address that takes it. Raises NotAllowed, and httpcore's errors."""
        failure: Exception = httpcore.ConnectError("the host has no address")
        for address in await self.addresses(host, port):
            try:
                return await self._network.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure

    async def addresses(self, host: str, port: int) -> list[str]:
        """The addresses of a host, all of which may be called. Raises NotAllowed, or ConnectError for no name."""
        try:
            found = await asyncio.get_running_loop().run_in_executor(self._threads, self._look_up, host, port)
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError("the host has no address") from error
        for address in found:
            if not is_callable(ip_address(address), self._allowed):
                raise NotAllowed(f"{host} is {address}")
        return found

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


class Outgoing:
    """Posts to URLs of others: follows no redirect, heeds no proxy, and keeps no connection.

    Certificates are checked against those that the system trusts.
    """

    def __init__(self, network: Checked):
        self._network = network
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=ssl.create_default_context(),
            max_connections=None,
            max_keepalive_connections=0,
            network_backend=network,
        )

    async def post(self, url: str, body: bytes, headers: Mapping[str | bytes, str | bytes]) -> int:
        """The status of the answer, of which nothing else is read. Raises NotAllowed, and httpcore's errors."""
        parts = urlsplit(url)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        # httpcore's own reading of a URL leaves out what follows a semicolon, and the brackets of an IPv6 address.
        place = httpcore.URL(scheme=parts.scheme, host=parts.hostname or "", port=parts.port, target=target)
        all_headers: dict[str | bytes, str | bytes] = {"Host": parts.netloc, **headers}
        patience = {"timeout": {"connect": CONNECT_SECONDS}}
        async with self._pool.stream("POST", place, headers=all_headers, content=body, extensions=patience) as answer:
            return answer.status

    async def close(self) -> None:
        await self._pool.aclose()
        self._network.close()
