"""Clients of Redis, all made here."""

from redis.asyncio import BlockingConnectionPool, Redis

PROTOCOL = 3
MOST_CONNECTIONS = 32
"""Of one process; a call that finds them all busy waits for one."""

TIMEOUT_SECONDS = 5


def connect(url: str) -> "Redis":
    """A client for commands that answer at once; the URL may be redis://, rediss:// or unix://."""
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=MOST_CONNECTIONS,
        timeout=4 * TIMEOUT_SECONDS,
        protocol=PROTOCOL,
        decode_responses=True,
        socket_timeout=TIMEOUT_SECONDS,
    )
    return Redis.from_pool(pool)


def connect_blocking(url: str) -> "Redis":
    """A client for one connection that waits: BLPOP or pub/sub. It never shares the pool of the other."""
    return Redis.from_url(url, protocol=PROTOCOL, decode_responses=True, socket_timeout=None, health_check_interval=10)
