"""Changes of jobs as they happen: one pub/sub connection per API process wakes everyone who waits."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from redis.exceptions import RedisError

from service.job import Job
from service.logs import get_logger
from service.queue import Queue

REREAD_SECONDS = 2.0
"""A waiter reads its job at least this often, in case a message was lost."""

RECONNECT_SECONDS = 0.5

log = get_logger()


class Events:
    """Listens to the queue's changes of status; `next_status` is what a long poll waits for."""

    def __init__(self, queue: Queue):
        self.queue = queue
        self._waiters: dict[str, set[asyncio.Event]] = {}

    async def listen(self) -> None:
        """Wake waiters, for ever; connects again when Redis went away."""
        while True:
            try:
                async with self.queue.blocking.pubsub(ignore_subscribe_messages=True) as channel:
                    await channel.subscribe(f"{self.queue.prefix}events")
                    async for message in channel.listen():
                        self._wake(message["data"])
            except RedisError as error:
                log.warning("events interrupted", reason=str(error))
                await asyncio.sleep(RECONNECT_SECONDS)

    def _wake(self, message: str) -> None:
        job_id, _, what = message.partition(" ")
        if what != "progress":
            for waiter in self._waiters.get(job_id, ()):
                waiter.set()

    def is_awaited(self, job_id: str) -> bool:
        """Whether somebody waits for a change of that job."""
        return job_id in self._waiters

    @contextmanager
    def _woken(self, job_id: str) -> Iterator[asyncio.Event]:
        waiter = asyncio.Event()
        self._waiters.setdefault(job_id, set()).add(waiter)
        try:
            yield waiter
        finally:
            self._waiters[job_id].discard(waiter)
            if not self._waiters[job_id]:
                del self._waiters[job_id]

    async def next_status(self, job_id: str, timeout_seconds: float) -> Job | None:
        """The job at its next change of status, or as it is when it has ended or the time is up."""
        deadline = asyncio.get_running_loop().time() + timeout_seconds
        with self._woken(job_id) as waiter:
            first = job = await self.queue.read(job_id)
            while job and first and job.status == first.status and not job.is_finished:
                left = deadline - asyncio.get_running_loop().time()
                if left <= 0:
                    break
                with suppress(TimeoutError):
                    await asyncio.wait_for(waiter.wait(), min(left, REREAD_SECONDS))
                waiter.clear()
                job = await self.queue.read(job_id)
            return job
