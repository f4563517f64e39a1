"""From sampled images to the end of their jobs: written or put aside by a thread of its own, then told to the queue."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, TypeVar

from redis.exceptions import RedisError
from tenacity import AsyncRetrying, retry_if_exception_type, wait_exponential

from service import metrics, sample
from service.catalogue import ModelGone
from service.inflight import Previews, Share
from service.job import Job, JobError, Shown
from service.logs import get_logger
from service.messages import Batch, Completion, JobReport, Report
from service.queue import Queue
from service.store import ResultStore
from service.tracing import trace_share, trace_wait

Answer = TypeVar("Answer")

log = get_logger()

STORE_FAILED = "store-failed"
STORE_PAUSE_SECONDS = 1.0
"""Before what could not be stored is tried again."""


@dataclass
class Stored:
    """What the storing thread made of a share: written, or put aside, or an error."""

    share: Share
    labels: dict[int, str] = field(default_factory=dict)
    is_written: bool = False
    error: JobError | None = None


class Delivery:
    """Writes results while the next images are computed, and ends their jobs.

    `forget` is called, in the event loop, with every share that has been delivered or given back.
    """

    def __init__(self, queue: Queue, store: ResultStore, forget: Callable[[Share], None]):
        self.queue = queue
        self.store = store
        self._forget = forget
        self._loop = asyncio.get_running_loop()
        self._storing = ThreadPoolExecutor(1, "store")
        self._under_way: set[asyncio.Task[object]] = set()

    def sampled(self, shares: Sequence[Share]) -> None:
        """Shares are at their end; for any thread."""
        self._storing.submit(self._store, shares)

    def failed(self, shares: Sequence[Share], error: Exception) -> None:
        """A network call of these shares has failed; for any thread."""
        jobs = [share.job_id for share in shares]
        if isinstance(error, ModelGone):  # the jobs wait for it, should it come again
            log.warning("evaluation failed", jobs=jobs, reason=str(error))
        else:
            log.error("evaluation failed", jobs=jobs, exc_info=error)
        stored = [Stored(share, error=sampling_failed(error)) for share in shares]
        self._loop.call_soon_threadsafe(self._spawn, stored)

    def show(self, share: Share, evaluation: int, estimates: Previews) -> None:
        """Let it be seen how far a share is, after so many of its evaluations; for any thread."""
        self._storing.submit(self._show, share, evaluation, estimates)

    def _show(self, share: Share, evaluation: int, estimates: Previews) -> None:
        """In the storing thread: write what is to be seen of a share, which the queue is told with its progress."""
        try:
            for part, own in estimates.items():
                sample.show(self.store, part, own)
                share.shown[part.start] = Shown(evaluation, own[0].sigma)
        except Exception as error:  # noqa: BLE001
            log.warning("preview not stored", job=share.job_id, reason=str(error))
        finally:
            share.is_being_shown = False

    async def in_thread(self, act: Callable[..., Answer], *arguments: object) -> Answer:
        """Let the storing thread do something."""
        return await self._loop.run_in_executor(self._storing, act, *arguments)

    async def stop(self) -> None:
        """Give up what is under way."""
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)
        self._storing.shutdown(wait=False, cancel_futures=True)

    def _store(self, shares: Sequence[Share]) -> None:
        """In the storing thread: write what is whole, put the rest aside, and have it delivered."""
        stored = [self._stored(share) for share in shares]
        self._loop.call_soon_threadsafe(self._spawn, stored)

    def _stored(self, share: Share) -> Stored:
        try:
            outputs = {part: sample.output(share.walks(part)) for part in share.parts}
            is_whole = share.images == share.request.count
            if is_whole:
                sample.write(self.store, share.job_id, share.request, outputs, share.checkpoint)
            else:
                for part, output in outputs.items():
                    sample.keep(self.store, part, output)
            labels = {part.start: json.dumps(output.labels) for part, output in outputs.items()}
            return Stored(share, labels, is_whole)
        except FloatingPointError as error:
            return Stored(share, error=sampling_failed(error))
        except Exception as error:
            log.exception("result not stored", model=share.batch.model, job=share.job_id)
            return Stored(share, error=_store_failed(error))

    def _spawn(self, stored: Sequence[Stored]) -> None:
        self._beside(self._deliver(stored))

    def hand_back(self, share: Share) -> None:
        """Tell the queue that a share was dropped."""
        self._beside(insist(lambda: self.queue.hand_back(share.batch, share.job_id)))

    def _beside(self, act: Coroutine[Any, Any, object]) -> None:
        """Do something beside the event loop's other work."""
        task = asyncio.create_task(act)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _deliver(self, stored: Sequence[Stored]) -> None:
        """End the jobs of shares that are written; give back those that failed."""
        good = sorted((each for each in stored if not each.error), key=_batch_id)
        for _, same_batch in groupby(good, key=_batch_id):
            await self._deliver_batch(list(same_batch))
        await asyncio.gather(*(self._give_up(each.share, each.error) for each in stored if each.error))

    async def _deliver_batch(self, stored: Sequence[Stored]) -> None:
        """Report shares of one batch; a job of which others held parts is put together first, or keeps its error."""
        batch = stored[0].share.batch
        completion = await self._complete(batch, stored)
        while completion.to_write:
            rest = [each for each in stored if each.share.job_id in completion.to_write]
            await self.in_thread(self._write_kept, rest)
            stored = [each for each in stored if not each.error]
            if not stored:
                return
            completion = await self._complete(batch, stored)
        for each in stored:
            self._forget(each.share)
            trace_share(each.share)
        if completion.is_stale:
            log.warning("batch stale", jobs=[each.share.job_id for each in stored], batch=batch.id)
            return
        metrics.images_generated.labels(batch.model).inc(sum(each.share.images for each in stored))
        for job in completion.ended:
            count_job(job, batch)

    def _write_kept(self, stored: Sequence[Stored]) -> None:
        """In the storing thread: the results of jobs whose last images came with these shares.

        The parts stay until the job's record goes: should this batch be lost now, they are needed again.
        """
        for each in stored:
            share = each.share
            try:
                parts = sample.kept(self.store, share.job_id)
                sample.write(self.store, share.job_id, share.request, parts, share.checkpoint)
                each.is_written = True
            except Exception as error:
                log.exception("result not stored", model=share.batch.model, job=share.job_id)
                each.error = _store_failed(error)

    async def _complete(self, batch: Batch, stored: Sequence[Stored]) -> Completion:
        """Report shares of a batch to the queue."""
        return await insist(lambda: self.queue.complete(batch, self._report(stored)))

    def _report(self, stored: Sequence[Stored]) -> Report:
        now = time.monotonic()
        jobs = {
            each.share.job_id: JobReport(
                began_ms_ago=1000 * (now - each.share.started),
                sampled_ms_ago=1000 * (now - each.share.sampled),
                images=each.share.widest,
                arithmetic=each.share.arithmetic,
                checkpoint=each.share.checkpoint,
                labels=each.labels,
                is_written=each.is_written,
            )
            for each in stored
        }
        return Report(jobs=jobs)

    async def _give_up(self, share: Share, error: JobError) -> None:
        """Give back what cannot be done here; its job is tried again, or fails. A store has a while to recover."""
        if error.code == STORE_FAILED:
            await asyncio.sleep(STORE_PAUSE_SECONDS)
        await self.give_back(share.batch, error, share.job_id)
        self._forget(share)
        trace_share(share, error)

    async def give_back(self, batch: Batch, error: JobError, job_id: str = "") -> None:
        """Give a batch, or one job of it, back after an error; its jobs are tried again, or fail."""
        for job in await insist(lambda: self.queue.fail(batch, error, job_id)):
            metrics.count_given_back(job)


def _batch_id(stored: Stored) -> str:
    return stored.share.batch.id


def sampling_failed(error: Exception) -> JobError:
    """Why the jobs of a failed network call are tried again."""
    # Only our own words: those of a library may name files of this machine.
    reason = str(error) if isinstance(error, ArithmeticError | ModelGone) else type(error).__name__
    return JobError(code="sampling-failed", detail=f"Sampling failed: {reason}")


def _store_failed(error: Exception) -> JobError:
    """Record that a result could not be stored; why its job is tried again."""
    metrics.store_errors.labels("write").inc()
    reason = error.strerror if isinstance(error, OSError) else type(error).__name__
    return JobError(code=STORE_FAILED, detail=f"The result could not be stored: {reason}")


def count_job(job: Job, batch: Batch) -> None:
    """Record, and log, a job that ended with a batch."""
    metrics.jobs_finished.labels(batch.model, job.status).inc()
    trace_wait(job)
    if job.error:
        log.warning("job failed", job=job.id, lane=batch.lane, reason=job.error.detail)
    elif latency := job.latency():
        metrics.observe_job(batch.model, latency)
        log.info("job succeeded", job=job.id, lane=batch.lane, images=job.count, seconds=latency.total_seconds)


async def insist(call: Callable[[], Awaitable[Answer]]) -> Answer:
    """The answer of the queue, asked again for as long as it cannot be reached."""
    with suppress(RedisError):
        return await call()

    async def ask() -> Answer:
        return await call()  # tenacity awaits what is a coroutine function, and not what merely returns a coroutine

    again = AsyncRetrying(retry=retry_if_exception_type(RedisError), wait=wait_exponential(multiplier=0.1, max=5))
    return await again(ask)
