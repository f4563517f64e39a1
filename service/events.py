"""Changes of jobs as they happen: the queue's messages wake everyone who waits for one."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain
from random import uniform
from typing import Literal

from redis.exceptions import RedisError

from service.job import Job
from service.queue import Queue

REREAD_SECONDS = 2.0
"""Who waits for a job reads it this long after the last time at the latest, in case a message was lost."""

MOST_REREAD_SECONDS = 10.0
"""However many wait: streams that say nothing for longer are taken for dead."""

PROGRESS_SECONDS = 0.1
"""Who follows the progress of a job reads it so long after the last time at the soonest."""

WAITERS_PER_SECOND = 100
"""Both are about a second more for so many who wait, evenly spread: reading for them is not all that a process does."""

Wish = Literal["news", "change", "end"]
"""What a client waits for: anything new of a job, its next change of status, or its end."""

IN_BETWEEN = {"news": (), "change": ("progress",), "end": ("queued", "running", "progress")}
"""Messages by which a wish cannot have come true."""


class Patience:
    """How long a client waits for a job, and for what."""

    def __init__(self, seconds: float = 0, wish: Wish = "change"):
        self.wish = wish
        self._deadline = asyncio.get_running_loop().time() + seconds
        self._woken = asyncio.Event()
        self._looked = asyncio.get_running_loop().time()
        self._due = 0.0

    def wake(self) -> None:
        """Have the job looked at again."""
        self._woken.set()

    def wake_after(self, seconds: float) -> None:
        """Have it looked at again, so long after the last time at the soonest."""
        loop = asyncio.get_running_loop()
        if self._due <= loop.time():
            self._due = max(self._looked + seconds, loop.time())
            loop.call_at(self._due, self.wake)

    def end(self) -> None:
        """Wait no longer."""
        self._deadline = 0
        self.wake()

    async def wait(self, most_seconds: float) -> bool:
        """Whether the job should be looked at again: at once False when the time is up, else True when woken.

        And True after so many seconds, woken or not.
        """
        left = self._deadline - asyncio.get_running_loop().time()
        if left <= 0:
            return False
        with suppress(TimeoutError):
            async with asyncio.timeout(min(left, most_seconds)):
                await self._woken.wait()
        self._woken.clear()
        self._looked = asyncio.get_running_loop().time()
        return True

    def is_answered(self, first: Job, now: Job) -> bool:
        """Whether a job that was `first` and is `now` what was waited for."""
        return now.is_finished or (now.status != first.status and self.wish != "end")


class Events:
    """Who waits for which job: `follow` is what a long poll and a waiting submission do, `watch` what a stream does.

    `on_end` is called with every job that ends, whoever waits for it, and its status then.
    """

    def __init__(self, queue: Queue, on_end: Callable[[str, str], None] = lambda job_id, status: None):
        self.queue = queue
        self._on_end = on_end
        self.watchers = 0
        """Streams that are open."""
        self.waiters = 0
        """How many wait for something, once for every job."""
        self._waiting: dict[str, set[Patience]] = {}
        queue.redis.link.subscribe(f"{queue.prefix}events", self._wake)

    def _wake(self, message: str) -> None:
        job_id, _, what = message.partition(" ")
        for patience in self._waiting.get(job_id, ()):
            if what == "progress" and patience.wish == "news":
                patience.wake_after(self._spread(PROGRESS_SECONDS))
            elif what not in IN_BETWEEN[patience.wish]:
                patience.wake()
        if what not in IN_BETWEEN["end"]:
            self._on_end(job_id, what)

    def _spread(self, seconds: float) -> float:
        """So long, and longer the more there are who wait."""
        return seconds + self.waiters / WAITERS_PER_SECOND * uniform(0.5, 1.5)  # noqa: S311

    def _reread_seconds(self) -> float:
        """After how long a job is read although nothing was heard of it."""
        return min(self._spread(REREAD_SECONDS), MOST_REREAD_SECONDS)

    def end_all(self) -> None:
        """Let nobody wait any longer."""
        for patience in chain.from_iterable(self._waiting.values()):
            patience.end()

    @contextmanager
    def _registered(self, job_id: str, patience: Patience) -> Iterator[None]:
        self._waiting.setdefault(job_id, set()).add(patience)
        self.waiters += 1
        try:
            yield
        finally:
            self.waiters -= 1
            self._waiting[job_id].discard(patience)
            if not self._waiting[job_id]:
                del self._waiting[job_id]

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self.watchers += 1
        try:
            yield
        finally:
            self.watchers -= 1

    async def watch(self, job_ids: Sequence[str], patience: Patience) -> AsyncGenerator[list[Job]]:
        """Those of the jobs that have not ended, whenever there may be news of one, and once those that have.

        It ends with the last of them, and when the patience is over.
        """
        open_ids = set(job_ids)
        with ExitStack() as stack, self._counted():
            for job_id in open_ids:
                stack.enter_context(self._registered(job_id, patience))
            while open_ids:
                jobs = [job for job_id in job_ids if job_id in open_ids and (job := await self.queue.read(job_id))]
                open_ids = {job.id for job in jobs if not job.is_finished}
                yield jobs
                if open_ids and not await patience.wait(self._reread_seconds()):
                    return

    async def follow(self, job_id: str, first: Awaitable[Job | None], patience: Patience) -> Job | None:
        """The job as `first` has it, or as it is when the patience is answered or over; None when there is none.

        Who waits is registered before `first` is asked, so a job that `first` submits cannot end unnoticed.
        """
        with self._registered(job_id, patience):
            job = before = await first
            if job and job.id != job_id:  # one that was submitted before, by the same idempotency key
                return await self.follow(job.id, self.queue.read(job.id), patience)
            while (
                job and before and not patience.is_answered(before, job) and await patience.wait(self._reread_seconds())
            ):
                with suppress(RedisError):  # the job is there all the same, and it may answer the next time
                    job = await self.queue.read(job_id)
            return job
