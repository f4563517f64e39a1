"""Changes of jobs as they happen: the queue's messages wake everyone who waits for one."""

import asyncio
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain

from service.job import Job
from service.queue import Queue

REREAD_SECONDS = 2.0
"""Who waits for a job reads it at least this often, in case a message was lost."""


class Patience:
    """How long a client waits for a job, and for what: its next change of status, or its end."""

    def __init__(self, seconds: float = 0, is_for_end: bool = False):
        self.is_for_end = is_for_end
        self._deadline = asyncio.get_running_loop().time() + seconds
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Have the job looked at again."""
        self._woken.set()

    def end(self) -> None:
        """Wait no longer."""
        self._deadline = 0
        self.wake()

    async def wait(self) -> bool:
        """Whether the job should be looked at again: at once False when the time is up, else True when woken."""
        left = self._deadline - asyncio.get_running_loop().time()
        if left <= 0:
            return False
        with suppress(TimeoutError):
            async with asyncio.timeout(min(left, REREAD_SECONDS)):
                await self._woken.wait()
        self._woken.clear()
        return True

    def is_answered(self, first: Job, now: Job) -> bool:
        """Whether a job that was `first` and is `now` what was waited for."""
        return now.is_finished or (now.status != first.status and not self.is_for_end)


class Events:
    """Who waits for which job; `follow` is what a long poll and a waiting submission do."""

    def __init__(self, queue: Queue):
        self.queue = queue
        self._waiting: dict[str, set[Patience]] = {}
        queue.redis.link.subscribe(f"{queue.prefix}events", self._wake)

    def _wake(self, message: str) -> None:
        job_id, _, what = message.partition(" ")
        for patience in self._waiting.get(job_id, ()):
            if what not in (("queued", "running", "progress") if patience.is_for_end else ("progress",)):
                patience.wake()

    @property
    def waiters(self) -> int:
        """How many wait."""
        return sum(map(len, self._waiting.values()))

    def end_all(self) -> None:
        """Let nobody wait any longer."""
        for patience in chain.from_iterable(self._waiting.values()):
            patience.end()

    @contextmanager
    def _registered(self, job_id: str, patience: Patience) -> Iterator[None]:
        self._waiting.setdefault(job_id, set()).add(patience)
        try:
            yield
        finally:
            self._waiting[job_id].discard(patience)
            if not self._waiting[job_id]:
                del self._waiting[job_id]

    async def follow(self, job_id: str, first: Awaitable[Job | None], patience: Patience) -> Job | None:
        """The job as `first` has it, or as it is when the patience is answered or over; None when there is none.

        Who waits is registered before `first` is asked, so a job that `first` submits cannot end unnoticed.
        """
        with self._registered(job_id, patience):
            job = before = await first
            if job and job.id != job_id:  # one that was submitted before, by the same idempotency key
                return await self.follow(job.id, self.queue.read(job.id), patience)
            while job and before and not patience.is_answered(before, job) and await patience.wait():
                job = await self.queue.read(job_id)
            return job
