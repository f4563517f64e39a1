"""Clients of Redis, all made here."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from hiredis import PushNotification
from redis.asyncio import BlockingConnectionPool, Connection, ConnectionPool, Redis, SSLConnection
from redis.asyncio.connection import parse_url
from redis.asyncio.sentinel import Sentinel
from redis.crc import key_slot
from redis.exceptions import ClusterDownError, MovedError, ReadOnlyError, RedisError, ResponseError
from redis.exceptions import ConnectionError as ConnectionLost
from redis.exceptions import TimeoutError as NoAnswer
from redis.maint_notifications import MaintNotificationsConfig

from service.logs import get_logger

PROTOCOL = 3
MOST_CONNECTIONS = 32
"""Of one process; a call that finds them all busy waits for one."""

TIMEOUT_SECONDS = 5

log = get_logger()


async def cancel(tasks: Collection[asyncio.Task[None]], again_seconds: float = 0.2) -> None:
    """Cancel tasks that use a client, until they have ended.

    Before Python 3.12 `asyncio.wait_for`, by which redis-py sends, loses a cancellation now and then.
    """
    while tasks:
        for task in tasks:
            task.cancel()
        _, tasks = await asyncio.wait(tasks, timeout=again_seconds)


class Link:
    """One connection that many callers share: commands are answered in order, and messages of a channel come between.

    It is opened when it is needed, and again after a loss; the commands under way are then lost.
    """

    def __init__(self, pool: ConnectionPool, timeout_seconds: float = TIMEOUT_SECONDS):
        self._pool = pool
        self._timeout_seconds = timeout_seconds
        self._subscription: tuple[str, Callable[[str], None]] | None = None
        self._expected: deque[asyncio.Future[Any]] = deque()
        self._opening = asyncio.Lock()
        self._reading: asyncio.Task[None] | None = None

    def subscribe(self, channel: str, on_message: Callable[[str], None]) -> None:
        """Have the messages of a channel from the next opening on, before the answer to any command."""
        self._subscription = (channel, on_message)

    async def call(self, *words: str | int | float) -> Any:
        """The answer to a command. Raises RedisError."""
        reading = self._reading or await self._open()
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        self._expected.append(answer)
        # A server that is silent for so long is taken for lost: for everyone who waits, as answers come in order.
        patience = loop.call_later(self._timeout_seconds, reading.cancel)
        try:
            await self._connection.send_packed_command(self._connection.pack_command(*words), check_health=False)
            return await answer
        finally:
            patience.cancel()
            answer.cancel()

    async def close(self) -> None:
        if self._reading:
            self._reading.cancel()
            await asyncio.wait([self._reading])

    async def _open(self) -> asyncio.Task[None]:
        try:
            async with asyncio.timeout(self._timeout_seconds), self._opening:
                if self._reading is None:
                    if issubclass(self._pool.connection_class, _Found):
                        # What was lost may be elsewhere now, for the others as well.
                        await self._pool.disconnect(inuse_connections=False)
                    self._connection = self._pool.make_connection()  # type: ignore[no-untyped-call]
                    self._connection.socket_timeout = None  # it is always being read
                    await self._connection.connect()
                    if self._subscription:
                        await self._connection.send_command("SUBSCRIBE", self._subscription[0])
                    self._reading = asyncio.create_task(self._read())
                return self._reading
        except TimeoutError as error:
            raise NoAnswer("Redis does not answer") from error

    async def _read(self) -> None:
        """Hand out what comes, until the connection is lost."""
        try:
            while True:
                try:
                    self._take(await self._connection.read_response(push_request=True))
                except ResponseError as error:
                    self._take(error)
        except RedisError:
            pass  # told to everyone who waits
        finally:
            self._reading = None
            while self._expected:
                self._take(ConnectionLost("the connection to Redis was lost"))
            await self._connection.disconnect(nowait=True)

    def _take(self, answer: Any) -> None:
        """Give a message to the subscriber, and an answer to whoever has waited longest."""
        if isinstance(answer, PushNotification):
            if self._subscription and answer[0] == "message":
                try:
                    self._subscription[1](answer[2])
                except Exception:
                    log.exception("message not understood", channel=self._subscription[0])
            return
        expected = self._expected.popleft()
        if expected.done():  # its caller has left
            return
        if isinstance(answer, RedisError):
            expected.set_exception(answer)
        else:
            expected.set_result(answer)


class _Found:
    """A connection to wherever the keys are just now: asked for whenever it is made anew."""

    def __init__(self, *, find: Callable[[], Awaitable[tuple[str, int]]], **options: Any):
        self._find = find
        super().__init__(**options)

    async def _connect(self) -> None:
        self.host, self.port = await self._find()
        await super()._connect()  # type: ignore[misc]

    async def read_response(self, *arguments: Any, **options: Any) -> Any:
        """An answer; that the keys are elsewhere by now is a lost connection."""
        try:
            return await super().read_response(*arguments, **options)  # type: ignore[misc]
        except (MovedError, ReadOnlyError, ClusterDownError) as error:
            await self.disconnect(nowait=True)  # type: ignore[attr-defined]
            raise ConnectionLost("the keys of the queue are on another server now") from error


class FoundConnection(_Found, Connection):
    """One without TLS."""


class FoundSSLConnection(_Found, SSLConnection):
    """One with TLS."""


class QueueClient(Redis):
    """redis-py's client, with scripts and messages on one shared connection.

    That costs 65 us of CPU a script, and redis-py's pool, which lends a connection to each, 160 us.
    """

    def __init__(self, pool: BlockingConnectionPool):
        super().__init__(connection_pool=pool)
        self.auto_close_connection_pool = True
        self.link = Link(pool)

    async def execute_command(self, *words: Any, **options: Any) -> Any:
        if words[0] == "EVALSHA":
            return await self.link.call(*words)
        return await super().execute_command(*words, **options)  # type: ignore[no-untyped-call]

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        await self.link.close()
        await super().aclose(close_connection_pool)


def connect(url: str, queue: str) -> QueueClient:
    """A client for commands that answer at once, of the server that has the keys of a queue.

    The URL may be redis://, rediss:// or unix://; of a cluster redis+cluster://HOST:PORT,HOST:PORT,..., or of what
    sentinels watch redis+sentinel://HOST:PORT,HOST:PORT,.../SERVICE (rediss+... for TLS). Raises ValueError for others.
    """
    options = _options(url, queue) | {"max_connections": MOST_CONNECTIONS, "timeout": 4 * TIMEOUT_SECONDS}
    return QueueClient(BlockingConnectionPool(socket_timeout=TIMEOUT_SECONDS, **options))


def connect_blocking(url: str, queue: str) -> "Redis":
    """A client for one connection that waits, as BLPOP does. It never shares the pool of the other."""
    pool = ConnectionPool(socket_timeout=None, health_check_interval=10, **_options(url, queue))
    return Redis.from_pool(pool)


def _options(url: str, queue: str) -> dict[str, Any]:
    """What connections are made with."""
    common = {
        "protocol": PROTOCOL,
        "decode_responses": True,
        # Their messages would come between the answers of a shared connection.
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
    }
    scheme, _, rest = url.partition("://")
    if "+" not in scheme:
        return common | parse_url(url)
    security, _, kind = scheme.partition("+")
    if security not in {"redis", "rediss"} or kind not in {"cluster", "sentinel"}:
        raise ValueError(
            f"REDIS_URL: {scheme}:// is no kind of server; there are redis, redis+cluster and redis+sentinel"
        )
    login, _, place = rest.rpartition("@")
    hosts, _, path = place.partition("/")
    own = parse_url(f"{security}://{login + '@' if login else ''}host/{path.partition('/')[2]}")
    del own["host"]
    seeds = [_address(each) for each in hosts.split(",")]
    if kind == "cluster":
        find = partial(owner_of_slot, seeds, key_slot(f"{{{queue}}}".encode()), own)
    else:
        find = partial(master_of, seeds, path.partition("/")[0])
    classes = {"redis": FoundConnection, "rediss": FoundSSLConnection}
    return common | own | {"connection_class": classes[security], "find": find}


def _address(text: str) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    if not parts.hostname:
        raise ValueError(f"REDIS_URL: {text!r} is no HOST:PORT")
    return parts.hostname, parts.port or 6379


async def owner_of_slot(seeds: Sequence[tuple[str, int]], slot: int, options: Mapping[str, Any]) -> tuple[str, int]:
    """The address of the node of a cluster that has a slot, as the first seed that answers knows it."""
    failure: RedisError = ConnectionLost("no node of the cluster answers")
    for host, port in seeds:
        node = Redis.from_pool(ConnectionPool(host=host, port=port, socket_timeout=TIMEOUT_SECONDS, **options))
        try:
            for first, last, (address, owner_port, *_), *_ in await node.execute_command("CLUSTER SLOTS"):  # type: ignore[no-untyped-call]
                if first <= slot <= last:
                    name = address.decode() if isinstance(address, bytes) else address
                    return name or host, owner_port
            failure = ConnectionLost(f"no node of the cluster has slot {slot}")
        except RedisError as error:
            failure = error
        finally:
            await node.aclose()
    raise failure


async def master_of(seeds: Sequence[tuple[str, int]], service: str) -> tuple[str, int]:
    """The address of the server that sentinels take for the master of a service."""
    sentinel = Sentinel(seeds, socket_timeout=TIMEOUT_SECONDS)  # type: ignore[no-untyped-call]
    try:
        address: tuple[str, int] = await sentinel.discover_master(service)
        return address
    finally:
        for each in sentinel.sentinels:
            await each.aclose()
