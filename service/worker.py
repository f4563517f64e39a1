"""A worker: claims images, has them computed, writes the results. One process per device."""

import asyncio
import json
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import TypeVar

from prometheus_client import start_http_server
from redis.exceptions import RedisError
from tenacity import AsyncRetrying, retry_if_exception_type, wait_exponential

from service import __version__, metrics
from service.catalogue import WorkerState
from service.engine import Engine, choose_device, use_threads
from service.inflight import Inflight, Share, shares_of
from service.job import TIMINGS, Job, JobError
from service.kinds import kind_of
from service.logs import get_logger
from service.policy import Appetite, ByKey, ShortestFirst
from service.queue import Batch, Completion, EmptyHandsNeeded, JobReport, Queue, Report, new_id
from service.settings import Settings
from service.store import LocalStore

IDLE_SECONDS = 5.0
"""How long an idle worker waits for a token before it looks at the queue all the same."""

URGENT_SECONDS = 0.02
"""How often a worker that is full looks for work much shorter than what it has."""

SWEEP_SECONDS = 60.0
INSIST_SECONDS = 2.0
"""How long a stopping worker waits, after the grace time, for its threads to let go."""

Answer = TypeVar("Answer")

log = get_logger()


class Misconfigured(Exception):
    """The worker cannot start, and would not the next time either; the message names the setting."""


@dataclass
class Stored:
    """What the storing thread made of a share: written, or put aside, or an error."""

    share: Share
    labels: dict[int, str] = field(default_factory=dict)
    is_written: bool = False
    error: JobError | None = None


class Worker:
    """Claims, has computed, delivers; `run` is its whole life.

    One thread computes, another encodes and stores, so results are written while the next images are on the device.
    The event loop claims, keeps the leases and shows that the worker lives.
    """

    def __init__(self, settings: Settings):
        self.settings = settings
        self.name = f"{settings.worker_name or socket.gethostname()}-{os.getpid()}"
        self.queue = Queue.open(settings)
        self.store = LocalStore(settings.results_dir / settings.queue)
        self.in_hand: dict[str, dict[str, Share]] = {}
        """Shares claimed and not delivered, by batch and job."""
        self._stopping = asyncio.Event()
        self._turned = asyncio.Event()
        """Something has left the worker's hands since the loop last looked."""
        self._computing = ThreadPoolExecutor(1, "compute")
        self._storing = ThreadPoolExecutor(1, "store")
        self._deliveries: set[asyncio.Task[None]] = set()
        self._batch_id = new_id()
        self._needs_empty_hands = False
        self._urgent_after = 0.0
        self._claims = 0

    async def run(self) -> None:
        """Work until SIGTERM or SIGINT; then finish what is in hand, within the grace time.

        Raises Misconfigured when no checkpoint loads, the model store is no directory, the results directory cannot be
        written or the device is not there.
        """
        self._loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self.stop)
        try:
            await self._start_up()
        except (ValueError, OSError) as error:
            raise Misconfigured(str(error)) from error
        acts = (self._compute, self._claim_work, self._keep_leases, self._show_life, self._sweep_results)
        tasks = [asyncio.create_task(act()) for act in acts]
        stopped = asyncio.create_task(self._stopping.wait())
        await asyncio.wait([stopped, *tasks], return_when=asyncio.FIRST_COMPLETED)
        self.stop()
        await self._finish()
        failures = [task.exception() for task in tasks if task.done()]
        for task in (*tasks, stopped, *self._deliveries):
            task.cancel()
        await asyncio.gather(*tasks, stopped, *self._deliveries, return_exceptions=True)
        await self._shut_down()
        for failure in filter(None, failures):
            raise failure

    def stop(self) -> None:
        """Claim nothing more, finish what is in hand, and let `run` return."""
        self._stopping.set()

    async def _start_up(self) -> None:
        started = time.monotonic()
        settings = self.settings
        use_threads(settings.threads or max(1, (os.cpu_count() or 1) - 1))
        self.store.prepare()
        device = choose_device(settings.device, settings.worker_index)
        self.engine = await self._loop.run_in_executor(
            self._computing, Engine, settings.model_store, device, settings.batch_images
        )
        self.facts = self.engine.facts
        if not self.facts:
            raise ValueError(f"no checkpoint of {settings.model_store or 'the package'} could be loaded")
        self.models = [model.name for model in self.facts]
        policy = ByKey() if settings.batching == "by-key" else ShortestFirst(settings.patience_seconds)
        self.inflight = Inflight(self.engine, policy, self._on_sampled, self._on_failure, self._on_turn)
        about: dict[str, object] = {"device": str(self.engine.device), "models": len(self.models)}
        if settings.metrics_port is not None:
            server, _ = start_http_server(settings.metrics_port, registry=metrics.REGISTRY)
            about["metrics_port"] = server.server_port
        metrics.build_info.labels(__version__, self.engine.torch_version, str(self.engine.device)).set(1)
        log.info("worker ready", **about, seconds=round(time.monotonic() - started, 2))

    async def _compute(self) -> None:
        await self._loop.run_in_executor(self._computing, self.inflight.run)

    async def _claim_work(self) -> None:
        """Claim what fits in hand, until the order to stop."""
        while not self._stopping.is_set():
            appetite = self._appetite()
            if appetite is None:
                await self._next_turn()
                continue
            try:
                batch = await self.queue.claim(self._batch_id, self.name, appetite, not self.in_hand, self.models)
                if batch:
                    self._take(batch, appetite)
                if appetite.below:
                    self._urgent_after = time.monotonic() + (0.0 if batch else URGENT_SECONDS)
                elif batch is None or not batch.leaves_more:
                    await self._unless_stopping(self.queue.wait_for_work(self.models, IDLE_SECONDS))
            except EmptyHandsNeeded:
                self._needs_empty_hands = True
            except RedisError as error:
                log.warning("queue unreachable", reason=str(error))
                await self._pause(1.0)

    def _appetite(self) -> Appetite | None:
        """What to claim now; None for nothing before something has left these hands, or time has passed."""
        if self._needs_empty_hands and self.in_hand:
            return None
        self._needs_empty_hands = False
        appetite = self.inflight.appetite(self._claims)
        is_too_soon = appetite and appetite.below and time.monotonic() < self._urgent_after
        return None if is_too_soon else appetite

    async def _next_turn(self) -> None:
        """Wait until something has left these hands, or the order to stop."""
        self._turned.clear()
        self.inflight.watch()
        if self._appetite() is None:  # else it happened just before the watch began
            await self._unless_stopping(self._turned.wait())

    async def _pause(self, seconds: float) -> None:
        await self._unless_stopping(asyncio.sleep(seconds))

    async def _unless_stopping(self, waiting: Awaitable[object]) -> None:
        """Wait for something, or for the order to stop, which cancels it."""
        task = asyncio.ensure_future(waiting)
        stopped = asyncio.create_task(self._stopping.wait())
        await asyncio.wait([task, stopped], return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if task.done():
            task.result()
        else:
            task.cancel()

    def _take(self, batch: Batch, appetite: Appetite) -> None:
        """Put a claimed batch in hand."""
        # Only now a new id: a claim that was answered into the void is answered again.
        self._batch_id = new_id()
        self._claims += 1
        metrics.batch_images.labels(batch.model).observe(batch.images)
        metrics.batches.labels(batch.model, "full" if batch.images >= appetite.images else "idle").inc()
        self._needs_empty_hands = batch.is_alone
        try:
            shares = shares_of(batch, kind_of(batch.lane), self.engine.width)
        except Exception as error:
            log.exception("batch not understood", lane=batch.lane)
            self._spawn(self._return(batch, _sampling_failed(error)))
            return
        self.in_hand[batch.id] = {share.job_id: share for share in shares}
        self.inflight.enter(shares)

    async def _return(self, batch: Batch, error: JobError) -> None:
        """Give a whole batch back that cannot even be begun."""
        for job in await insist(lambda: self.queue.fail(batch, error)):
            metrics.count_given_back(job)

    def _on_turn(self) -> None:
        """In the computing thread: a turn is over."""
        self._loop.call_soon_threadsafe(self._turned.set)

    def _on_failure(self, shares: Sequence[Share], error: Exception) -> None:
        """In the computing thread: a network call of these shares has failed."""
        log.error("evaluation failed", jobs=len(shares), exc_info=error)
        failed = [Stored(share, error=_sampling_failed(error)) for share in shares]
        self._loop.call_soon_threadsafe(self._spawn_delivery, failed)

    def _on_sampled(self, shares: Sequence[Share]) -> None:
        """In the computing thread: these shares are at their end."""
        self._storing.submit(self._store, shares)

    def _store(self, shares: Sequence[Share]) -> None:
        """In the storing thread: write what is whole, put the rest aside, and have it delivered."""
        stored = [self._stored(share) for share in shares]
        self._loop.call_soon_threadsafe(self._spawn_delivery, stored)

    def _stored(self, share: Share) -> Stored:
        kind, checkpoint = share.kind, self.engine.checkpoint(share.batch.model)
        try:
            outputs = {part: kind.output(share.walks(part)) for part in share.parts}
            is_whole = share.images == share.request.count
            if is_whole:
                kind.write(self.store, share.job_id, share.request, outputs, checkpoint)
            else:
                for part, output in outputs.items():
                    kind.keep(self.store, part, output)
            labels = {part.start: json.dumps(kind.labels(output)) for part, output in outputs.items()}
            return Stored(share, labels, is_whole)
        except FloatingPointError as error:
            return Stored(share, error=_sampling_failed(error))
        except Exception as error:
            log.exception("result not stored", model=share.batch.model, job=share.job_id)
            return Stored(share, error=_store_failed(error))

    def _spawn_delivery(self, stored: Sequence[Stored]) -> None:
        self._spawn(self._deliver(stored))

    def _spawn(self, act: Awaitable[None]) -> None:
        """Let something run beside the loop, kept until it is done."""
        task = asyncio.ensure_future(act)
        self._deliveries.add(task)
        task.add_done_callback(self._deliveries.discard)

    async def _deliver(self, stored: Sequence[Stored]) -> None:
        """End the jobs of shares that are written; give back those that failed."""
        for each in stored:
            if each.error:
                await self._give_up(each.share, each.error)
        good = sorted((each for each in stored if not each.error), key=_batch_id)
        for _, same_batch in groupby(good, key=_batch_id):
            await self._deliver_batch(list(same_batch))

    async def _deliver_batch(self, stored: Sequence[Stored]) -> None:
        """Report shares of one batch; a job of which others held parts is put together first."""
        batch = stored[0].share.batch
        completion = await self._complete(batch, stored)
        while completion.to_write:
            rest = [each for each in stored if each.share.job_id in completion.to_write]
            await self._loop.run_in_executor(self._storing, self._write_kept, rest)
            for each in rest:
                if each.error:
                    await self._give_up(each.share, each.error)
            stored = [each for each in stored if not each.error]
            completion = await self._complete(batch, stored)
        for each in stored:
            self._forget(each.share)
        if completion.is_stale:
            log.warning("batch stale", model=batch.model, jobs=len(stored))
            return
        images = sum(each.share.images for each in stored)
        metrics.images_generated.labels(batch.model).inc(images)
        log.info("images delivered", lane=batch.lane, images=images, jobs=len(stored))
        for job in completion.ended:
            count_job(job, batch.model)

    def _write_kept(self, stored: Sequence[Stored]) -> None:
        """In the storing thread: the results of jobs whose last images came with these shares.

        The parts stay until the job's record goes: should this batch be lost now, they are needed again.
        """
        for each in stored:
            share = each.share
            try:
                parts = share.kind.kept(self.store, share.job_id)
                share.kind.write(
                    self.store, share.job_id, share.request, parts, self.engine.checkpoint(share.batch.model)
                )
                each.is_written = True
            except Exception as error:
                log.exception("result not stored", model=share.batch.model, job=share.job_id)
                each.error = _store_failed(error)

    async def _complete(self, batch: Batch, stored: Sequence[Stored]) -> Completion:
        """Report shares of a batch to the queue."""
        jobs = {
            each.share.job_id: JobReport(
                timings=_timings(each.share), images=each.share.widest, labels=each.labels, is_written=each.is_written
            )
            for each in stored
        }
        report = Report(checkpoint=self.engine.checkpoint(batch.model), jobs=jobs)
        return await insist(lambda: self.queue.complete(batch, report))

    async def _give_up(self, share: Share, error: JobError) -> None:
        """Give back what cannot be done here; its job is tried again, or fails."""
        self._forget(share)
        for job in await insist(lambda: self.queue.fail(share.batch, error, share.job_id)):
            metrics.count_given_back(job)

    def _forget(self, share: Share) -> None:
        """Take a share out of hand."""
        shares = self.in_hand.get(share.batch.id, {})
        shares.pop(share.job_id, None)
        if not shares:
            self.in_hand.pop(share.batch.id, None)
        self._turned.set()

    async def _keep_leases(self) -> None:
        """Prolong the leases of what is in hand, and note its progress, until cancelled."""
        renewed, noted, is_warned = time.monotonic(), dict[str, dict[str, int]](), False
        while True:
            await asyncio.sleep(self.settings.progress_seconds)
            done = {
                batch_id: {job_id: share.evaluations_done for job_id, share in shares.items()}
                for batch_id, shares in self.in_hand.items()
            }
            is_due = time.monotonic() - renewed > self.settings.heartbeat_seconds
            if not done or (done == noted and not is_due):
                continue
            try:
                renewal = await self.queue.renew(done)
            except RedisError as error:
                if not is_warned:
                    log.warning("leases not renewed", reason=str(error))
                is_warned = True
                continue
            renewed, noted, is_warned = time.monotonic(), done, False
            await self._drop(renewal.lost, renewal.closed)

    async def _drop(self, lost: Sequence[str], closed: Sequence[str]) -> None:
        """Let go of batches that are no longer this worker's, and of jobs that are no longer open."""
        for batch_id in lost:
            shares = self._let_go(batch_id)
            if shares:
                log.warning("batch abandoned", model=shares[0].batch.model, jobs=len(shares))
        for batch_id in list(self.in_hand):
            for share in self._let_go(batch_id, closed):
                await insist(partial(self.queue.hand_back, share.batch, share.job_id))

    def _let_go(self, batch_id: str, jobs: Sequence[str] | None = None) -> list[Share]:
        """Drop the shares of a batch, or those of some jobs, that are not at their end yet; which these were."""
        shares = [
            share
            for job_id, share in self.in_hand.get(batch_id, {}).items()
            if not share.sampled and (jobs is None or job_id in jobs)
        ]
        self.inflight.drop(shares)
        for share in shares:
            self._forget(share)
        return shares

    async def _show_life(self) -> None:
        """Announce the worker with every heartbeat, until it is to stop."""
        while not self._stopping.is_set():
            try:
                await self.queue.announce(self._state())
                metrics.observe_memory(self.engine.device_bytes)
            except RedisError as error:
                log.warning("heartbeat not sent", reason=str(error))
            await self._pause(self.settings.heartbeat_seconds)

    def _state(self) -> WorkerState:
        return WorkerState(
            name=self.name,
            state="busy" if self.in_hand else "idle",
            device=str(self.engine.device),
            evaluations_per_second=self.inflight.images_per_second,
            models=self.facts,
        )

    async def _sweep_results(self) -> None:
        """Remove the results of jobs the queue no longer knows, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            with suppress(RedisError, OSError):
                folders = await loop.run_in_executor(self._storing, self.store.jobs, SWEEP_SECONDS)
                forgotten = await self.queue.forgotten(folders)
                await loop.run_in_executor(self._storing, self.store.remove, forgotten)
                if forgotten:
                    log.info("results removed", jobs=len(forgotten))

    async def _finish(self) -> None:
        """Let what is in hand be finished; after the grace time give it back."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._empty_handed(), self.settings.grace_seconds)
        if not self.in_hand:
            return
        log.warning("grace time over", batches=len(self.in_hand))
        with suppress(TimeoutError):
            async with asyncio.timeout(INSIST_SECONDS):
                for batch_id in list(self.in_hand):
                    for share in self._let_go(batch_id):
                        await self.queue.hand_back(share.batch, share.job_id)
                await self._empty_handed()

    async def _empty_handed(self) -> None:
        """Wait until everything claimed is delivered."""
        while self.in_hand or self._deliveries:
            self._turned.clear()
            await self._turned.wait()

    async def _shut_down(self) -> None:
        self.inflight.close()
        with suppress(RedisError):
            await self.queue.retire(self.name)
        await self.queue.close()
        self._computing.shutdown(wait=False, cancel_futures=True)
        self._storing.shutdown(wait=False, cancel_futures=True)
        log.info("worker stopped")


def _batch_id(stored: Stored) -> str:
    return stored.share.batch.id


def _timings(share: Share) -> dict[str, float]:
    """Where the time of a share went so far, in milliseconds."""
    seconds = (share.started - share.claimed, share.sampled - share.started, time.monotonic() - share.sampled)
    return {name: 1000 * each for name, each in zip(TIMINGS, seconds, strict=True)}


def _sampling_failed(error: Exception) -> JobError:
    # Only our own words: those of a library may name files of this machine.
    reason = str(error) if isinstance(error, FloatingPointError) else type(error).__name__
    return JobError(code="sampling-failed", detail=f"Sampling failed: {reason}")


def _store_failed(error: Exception) -> JobError:
    reason = error.strerror if isinstance(error, OSError) else type(error).__name__
    return JobError(code="store-failed", detail=f"The result could not be stored: {reason}")


def count_job(job: Job, model: str) -> None:
    """Record, and log, a job that succeeded."""
    metrics.jobs_finished.labels(model, "succeeded").inc()
    if latency := job.latency():
        metrics.observe_job(model, latency)
        log.info("job succeeded", job=job.id, images=job.count, seconds=latency.total_seconds)


async def insist(call: Callable[[], Awaitable[Answer]]) -> Answer:
    """The answer of the queue, asked again for as long as it cannot be reached."""
    with suppress(RedisError):
        return await call()
    again = AsyncRetrying(retry=retry_if_exception_type(RedisError), wait=wait_exponential(multiplier=0.1, max=5))
    return await again(call)
