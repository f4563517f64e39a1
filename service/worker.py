"""A worker: claims batches, computes them, writes the results. One process per device."""

import asyncio
import json
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from prometheus_client import start_http_server
from redis.exceptions import RedisError
from tenacity import AsyncRetrying, retry_if_exception_type, wait_exponential

from service import __version__, metrics
from service.catalogue import WorkerState
from service.engine import Engine, choose_device, use_threads
from service.job import TIMINGS, Job, JobError, Part
from service.kinds import Kind, Request, kind_of
from service.logs import get_logger
from service.queue import Batch, Completion, Queue, Report, new_id
from service.settings import Settings
from service.store import LocalStore

IDLE_SECONDS = 5.0
"""How long an idle worker waits for a token before it looks at the queue all the same."""

SWEEP_SECONDS = 60.0
INSIST_SECONDS = 2.0
"""How long a stopping worker waits, after the grace time, for its threads to let go."""

Answer = TypeVar("Answer")

Outputs = Mapping[Part, Any]
"""What a kind's `run` made of each part of a batch."""

log = get_logger()


class Abandoned(Exception):
    """The batch is no longer this worker's: its lease was lost, or the worker must stop at once."""


class Misconfigured(Exception):
    """The worker cannot start, and would not the next time either; the message names the setting."""


@dataclass
class Held:
    """A batch in hand: how far it is, and where its time went. Times are of time.monotonic."""

    batch: Batch
    kind: Kind[Any, Any]
    requests: Mapping[str, Request] = field(default_factory=dict)
    claimed: float = field(default_factory=time.monotonic)
    started: float = 0.0
    evaluated: float = 0.0
    sampled: float = 0.0
    renewed: float = field(default_factory=time.monotonic)
    evaluations_done: int = 0
    evaluations_noted: int = 0
    is_unrenewed: bool = False
    """Whether the last try to renew its lease failed; said once."""
    is_abandoned: bool = False
    """Set by the event loop, seen by the computing thread at the next evaluation."""

    def on_evaluation(self) -> None:
        """Called by the computing thread after every network evaluation; raises Abandoned to stop it."""
        now = time.monotonic()
        metrics.network_evaluation_seconds.labels(self.batch.model).observe(now - self.evaluated)
        self.evaluated = now
        self.evaluations_done += 1
        if self.is_abandoned:
            raise Abandoned

    def timings(self) -> dict[str, float]:
        """Where the time went so far, in milliseconds."""
        seconds = (self.started - self.claimed, self.sampled - self.started, time.monotonic() - self.sampled)
        return {name: 1000 * each for name, each in zip(TIMINGS, seconds, strict=True)}


class Worker:
    """Claims, computes, delivers; `run` is its whole life.

    One thread computes, another encodes and stores, so a batch is written while the next is on the device. The event
    loop keeps the leases and shows that the worker lives.
    """

    def __init__(self, settings: Settings):
        self.settings = settings
        self.name = f"{settings.worker_name or socket.gethostname()}-{os.getpid()}"
        self.queue = Queue.open(settings)
        self.store = LocalStore(settings.results_dir / settings.queue)
        self.in_hand: dict[str, Held] = {}
        self.evaluations_per_second = 0.0
        self._stopping = asyncio.Event()
        self._computing = ThreadPoolExecutor(1, "compute")
        self._storing = ThreadPoolExecutor(1, "store")
        self._delivery: asyncio.Task[None] | None = None
        self._batch_id = new_id()

    async def run(self) -> None:
        """Work until SIGTERM or SIGINT; then finish what is in hand, within the grace time.

        Raises Misconfigured when no checkpoint loads, the model store is no directory, the results directory cannot be
        written or the device is not there.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        try:
            await self._start_up()
        except (ValueError, OSError) as error:
            raise Misconfigured(str(error)) from error
        upkeep = [asyncio.create_task(act()) for act in (self._keep_leases, self._show_life, self._sweep_results)]
        working = asyncio.create_task(self._main_loop())
        stopped = asyncio.create_task(self._stopping.wait())
        await asyncio.wait([working, stopped, *upkeep], return_when=asyncio.FIRST_COMPLETED)
        self.stop()
        await self._finish(working)
        failures = [task.exception() for task in (working, *upkeep) if task.done()]
        tasks = [*upkeep, working, stopped, *([self._delivery] if self._delivery else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._shut_down()
        for failure in filter(None, failures):
            raise failure

    def stop(self) -> None:
        """Claim nothing more, finish what is in hand, and let `run` return."""
        self._stopping.set()

    async def _start_up(self) -> None:
        started = time.monotonic()
        settings, loop = self.settings, asyncio.get_running_loop()
        use_threads(settings.threads or max(1, (os.cpu_count() or 1) - 1))
        self.store.prepare()
        device = choose_device(settings.device, settings.worker_index)
        self.engine = await loop.run_in_executor(
            self._computing, Engine, settings.model_store, device, settings.batch_images
        )
        self.facts = self.engine.facts
        if not self.facts:
            raise ValueError(f"no checkpoint of {settings.model_store or 'the package'} could be loaded")
        self.models = [model.name for model in self.facts]
        about: dict[str, object] = {"device": str(self.engine.device), "models": len(self.models)}
        if settings.metrics_port is not None:
            server, _ = start_http_server(settings.metrics_port, registry=metrics.REGISTRY)
            about["metrics_port"] = server.server_port
        metrics.build_info.labels(__version__, self.engine.torch_version, str(self.engine.device)).set(1)
        log.info("worker ready", **about, seconds=round(time.monotonic() - started, 2))

    async def _main_loop(self) -> None:
        while not self._stopping.is_set():
            try:
                batch = await self.queue.claim(self._batch_id, self.name, self.settings.batch_images, self.models)
                if batch is None:
                    await self._wait_for_work()
                    continue
            except RedisError as error:
                log.warning("queue unreachable", reason=str(error))
                await self._pause(1.0)
                continue
            # Only now a new id: a claim that was answered into the void is answered again.
            self._batch_id = new_id()
            await self._take(batch)

    async def _wait_for_work(self) -> None:
        waiting = asyncio.create_task(self.queue.wait_for_work(self.models, IDLE_SECONDS))
        await self._unless_stopping(waiting)

    async def _pause(self, seconds: float) -> None:
        await self._unless_stopping(asyncio.create_task(asyncio.sleep(seconds)))

    async def _unless_stopping(self, task: asyncio.Task[None]) -> None:
        """Wait for a task, or for the order to stop, which cancels it."""
        stopped = asyncio.create_task(self._stopping.wait())
        await asyncio.wait([task, stopped], return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if task.done():
            task.result()
        else:
            task.cancel()

    async def _take(self, batch: Batch) -> None:
        """Compute a batch; it is delivered while the next one is computed."""
        held = Held(batch, kind_of(batch.lane))
        self.in_hand[batch.id] = held
        self._count_batch(batch)
        try:
            outputs, writing = await asyncio.get_running_loop().run_in_executor(self._computing, self._compute, held)
        except Abandoned:
            log.warning("batch abandoned", model=batch.model, images=batch.images, evaluations=held.evaluations_done)
            self._count_evaluations(held, "wasted")
            await self._let_go(held)
        except Exception as error:
            log.exception("batch failed", model=batch.model, images=batch.images)
            self._count_evaluations(held, "wasted")
            # Only our own words: those of a library may name files of this machine.
            reason = str(error) if isinstance(error, FloatingPointError) else type(error).__name__
            await self._give_up(held, JobError(code="sampling-failed", detail=f"Sampling failed: {reason}"))
        else:
            self._count_evaluations(held, "useful")
            if self._delivery:
                await self._delivery
            self._delivery = asyncio.create_task(self._deliver(held, outputs, writing))

    def _compute(self, held: Held) -> "tuple[Outputs, Future[set[str]]]":
        """In the computing thread: the outputs of a batch by part, which the storing thread writes at once."""
        held.requests = {job_id: held.kind.parse(text) for job_id, text in held.batch.requests.items()}
        held.started = held.evaluated = time.monotonic()
        outputs = held.kind.run(self.engine, held.batch.parts, held.requests, held.on_evaluation)
        held.sampled = time.monotonic()
        by_part = dict(zip(held.batch.parts, outputs, strict=True))
        return by_part, self._storing.submit(self._write, held, by_part)

    async def _deliver(self, held: Held, outputs: Outputs, writing: "Future[set[str]]") -> None:
        """End the jobs of a batch once they are written; one that began elsewhere is put together first."""
        loop = asyncio.get_running_loop()
        try:
            written = await asyncio.wrap_future(writing)
            completion = await self._complete(held, outputs, written)
            while completion.to_write:
                await loop.run_in_executor(self._storing, self._write_kept, held, completion.to_write)
                written |= set(completion.to_write)
                completion = await self._complete(held, outputs, written)
        except Exception as error:
            log.exception("result not stored", model=held.batch.model, images=held.batch.images)
            reason = error.strerror if isinstance(error, OSError) else type(error).__name__
            await self._give_up(held, JobError(code="store-failed", detail=f"The result could not be stored: {reason}"))
            return
        self.in_hand.pop(held.batch.id, None)
        if completion.is_stale:
            log.warning("batch stale", model=held.batch.model, images=held.batch.images)
            return
        self._count_delivery(held)
        for job in completion.ended:
            count_job(job, held.batch.model)

    def _write(self, held: Held, outputs: Outputs) -> set[str]:
        """In the storing thread: the jobs wholly in this batch, written; what is of others, put aside."""
        written = set()
        for job_id, request in held.requests.items():
            own = {part: output for part, output in outputs.items() if part.job_id == job_id}
            if sum(part.length for part in own) == request.count:
                held.kind.write(self.store, job_id, request, own, self._checkpoint(held))
                written.add(job_id)
            else:
                for part, output in own.items():
                    held.kind.keep(self.store, part, output)
        return written

    def _write_kept(self, held: Held, job_ids: Sequence[str]) -> None:
        """In the storing thread: the results of jobs whose last part came with this batch.

        The parts stay until the job's record goes: should this batch be lost now, they are needed again.
        """
        for job_id in job_ids:
            parts = held.kind.kept(self.store, job_id)
            held.kind.write(self.store, job_id, held.requests[job_id], parts, self._checkpoint(held))

    def _checkpoint(self, held: Held) -> str:
        return self.engine.checkpoint(held.batch.model)

    async def _complete(self, held: Held, outputs: Outputs, written: set[str]) -> Completion:
        """Report a batch to the queue."""
        report = Report(
            timings=held.timings(),
            images=held.batch.images,
            checkpoint=self._checkpoint(held),
            labels={f"{part.job_id}:{part.start}": json.dumps(held.kind.labels(outputs[part])) for part in outputs},
            written=dict.fromkeys(written, True),
        )
        return await insist(lambda: self.queue.complete(held.batch, report))

    async def _give_up(self, held: Held, error: JobError) -> None:
        """Give a batch back that cannot be computed here; its jobs are tried again, or fail."""
        self.in_hand.pop(held.batch.id, None)
        for job in await insist(lambda: self.queue.fail(held.batch, error)):
            metrics.count_given_back(job)

    async def _let_go(self, held: Held) -> None:
        """Drop a batch that was abandoned; one that is still this worker's goes back free of charge."""
        self.in_hand.pop(held.batch.id, None)
        await insist(lambda: self.queue.hand_back(held.batch))

    async def _keep_leases(self) -> None:
        """Prolong the leases of the batches in hand, and note their progress, until cancelled."""
        while True:
            await asyncio.sleep(self.settings.progress_seconds)
            for held in list(self.in_hand.values()):
                is_due = time.monotonic() - held.renewed > self.settings.heartbeat_seconds
                if is_due or held.evaluations_done > held.evaluations_noted:
                    await self._renew(held)

    async def _renew(self, held: Held) -> None:
        done = held.evaluations_done
        try:
            is_ours = await self.queue.renew(held.batch, done)
        except RedisError as error:
            if not held.is_unrenewed:
                log.warning("lease not renewed", reason=str(error))
            held.is_unrenewed = True
            return
        held.renewed, held.evaluations_noted, held.is_unrenewed = time.monotonic(), done, False
        held.is_abandoned = held.is_abandoned or not is_ours

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
            evaluations_per_second=self.evaluations_per_second,
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

    async def _finish(self, working: asyncio.Task[None]) -> None:
        """Let the batch in hand be finished; after the grace time give it back."""
        _, unfinished = await asyncio.wait([working], timeout=self.settings.grace_seconds)
        if unfinished:
            log.warning("grace time over", batches=len(self.in_hand))
            for held in self.in_hand.values():
                held.is_abandoned = True
            await asyncio.wait(unfinished, timeout=INSIST_SECONDS)
        if self._delivery:
            await asyncio.wait([self._delivery], timeout=self.settings.grace_seconds)

    async def _shut_down(self) -> None:
        with suppress(RedisError):
            await self.queue.retire(self.name)
        await self.queue.close()
        self._computing.shutdown(wait=False, cancel_futures=True)
        self._storing.shutdown(wait=False, cancel_futures=True)
        log.info("worker stopped")

    def _count_batch(self, batch: Batch) -> None:
        metrics.batch_images.labels(batch.model).observe(batch.images)
        reason = "full" if batch.images >= self.settings.batch_images else "idle"
        metrics.batches.labels(batch.model, reason).inc()

    def _count_evaluations(self, held: Held, outcome: Literal["useful", "wasted"]) -> None:
        model, images, done = held.batch.model, held.batch.images, held.evaluations_done
        metrics.network_evaluations.labels(model, outcome).inc(done * images)
        metrics.network_evaluations.labels(model, "padding").inc(done * (self.engine.evaluated(model, images) - images))

    def _count_delivery(self, held: Held) -> None:
        batch, seconds = held.batch, max(held.sampled - held.started, 1e-6)
        rate = held.evaluations_done * batch.images / seconds
        known = self.evaluations_per_second or rate
        self.evaluations_per_second = 0.7 * known + 0.3 * rate
        metrics.images_generated.labels(batch.model).inc(batch.images)
        log.info(
            "batch done", lane=batch.lane, images=batch.images, jobs=len(batch.requests), seconds=round(seconds, 3)
        )


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
