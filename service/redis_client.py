"""Clients of Redis, all made here."""

from redis.asyncio import Redis

PROTOCOL = 3


def connect(url: str) -> "Redis":
    """A client for commands that answer at once; the URL may be redis://, rediss:// or unix://."""
    return Redis.from_url(url, protocol=PROTOCOL, decode_responses=True, socket_timeout=5)


def connect_blocking(url: str) -> "Redis":
    """A client for one connection that waits: BLPOP or pub/sub. It never shares the pool of the other."""
    return Redis.from_url(url, protocol=PROTOCOL, decode_responses=True, socket_timeout=None, health_check_interval=10)
