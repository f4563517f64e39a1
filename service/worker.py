"""A worker: claims images, has them computed, writes the results. One process per device."""

import asyncio
import fnmatch
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial

from prometheus_client import start_http_server
from redis.exceptions import RedisError

from service import __version__, metrics, tracing
from service.catalogue import ModelGone, WorkerState
from service.delivery import Delivery, sampling_failed
from service.engine import Engine, choose_device, keep_memory, use_threads
from service.inflight import Inflight, Share
from service.job import Shown
from service.logs import get_logger
from service.messages import Batch, EmptyHandsNeeded, Order
from service.policy import Appetite, ByKey, ShortestFirst
from service.queue import Queue, new_id
from service.settings import Settings
from service.store import ResultStore, StoreAway, open_store

IDLE_SECONDS = 5.0
"""How long an idle worker waits for a token before it looks at the queue all the same."""

LOOK_SECONDS = 0.01
"""How often a worker at work looks for more, at most."""

LOOK_ALL_THE_SAME_SECONDS = 1.0
"""How often it does so even if it was not told of any, for a message may be lost."""

SWEEP_SECONDS = 60.0
INSIST_SECONDS = 2.0
"""How long a stopping worker waits, after the grace time, for its threads to let go."""

Notes = tuple[dict[str, dict[str, int]], dict[str, dict[int, Shown]]]
"""Evaluations done by batch and job, and what is to be seen by job and part."""

log = get_logger()


class Hung(Exception):
    """A network call took longer than it may: the thread that computes is lost, and the process with it."""


class Misconfigured(Exception):
    """The worker cannot start, and would not the next time either; the message names the setting."""


class Worker:
    """Claims, has computed, delivers; `run` is its whole life.

    One thread computes, another encodes and stores, so results are written while the next images are on the device.
    The event loop claims, keeps the leases and shows that the worker lives.
    """

    def __init__(self, settings: Settings):
        self.settings = settings
        self.name = f"{settings.worker_name or socket.gethostname()}-{os.getpid()}"
        self.queue = Queue.open(settings)
        self.store: ResultStore
        self.in_hand: dict[str, dict[str, Share]] = {}
        """Shares claimed and not delivered, by batch and job."""
        self._stopping = asyncio.Event()
        self._turned = asyncio.Event()
        """A turn is over since the loop last looked, or these hands are empty."""
        self._emptied = asyncio.Event()
        self._emptied.set()
        self._news = asyncio.Event()
        """What this worker offers has changed."""
        self._computing = ThreadPoolExecutor(1, "compute")
        self._batch_id = new_id()
        self._needs_empty_hands = False
        self._looked = 0.0
        self._claims = 0

    async def run(self) -> None:
        """Work until SIGTERM or SIGINT; then finish what is in hand, within the grace time.

        Raises Misconfigured when no checkpoint loads, the model store is no directory, the result store cannot be
        written, the device is not there or Redis would throw away jobs; StoreAway when the result store cannot be
        reached now; and Hung, after which the process must end.
        """
        self._loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self.stop)
        try:
            await self._start_up()
        except StoreAway:  # another time it may be there
            await self.queue.close()
            raise
        except (ValueError, OSError) as error:
            await self.queue.close()
            raise Misconfigured(str(error)) from error
        acts = (
            self._compute,
            self._claim_work,
            self._keep_leases,
            self._show_life,
            self._watch_calls,
            self._watch_store,
            self._sweep_results,
        )
        tasks = [asyncio.create_task(act()) for act in acts]
        stopped = asyncio.create_task(self._stopping.wait())
        await asyncio.wait([stopped, *tasks], return_when=asyncio.FIRST_COMPLETED)
        self.stop()
        with suppress(RedisError):
            await self.queue.announce(self._state())  # that it drains
        if self.inflight.seconds_in_call < self.settings.hang_seconds:
            await self._finish()
        failures = [task.exception() for task in tasks if task.done()]
        for task in (*tasks, stopped):
            task.cancel()
        await asyncio.gather(*tasks, stopped, return_exceptions=True)
        await self._shut_down()
        for failure in filter(None, failures):
            raise failure

    def stop(self) -> None:
        """Claim nothing more, finish what is in hand, and let `run` return."""
        self._stopping.set()

    async def _start_up(self) -> None:
        started = time.monotonic()
        settings = self.settings
        tracing.begin("worker", self.name)
        keep_memory()
        use_threads(settings.threads or max(1, (os.cpu_count() or 1) - 1))
        self.store = open_store(settings)
        await asyncio.to_thread(self.store.prepare)
        self.engine = await self._loop.run_in_executor(self._computing, self._load)
        with suppress(RedisError):  # found out about later
            for shortcoming in await self.queue.shortcomings():
                log.warning(shortcoming)
        if not self.engine.models:
            wanted = "" if settings.models == "*" else f" whose model is like {settings.models}"
            raise ValueError(f"no checkpoint of {settings.model_store or 'the package'}{wanted} could be loaded")
        policy = ByKey() if settings.batching == "by-key" else ShortestFirst(settings.patience_seconds)
        self.delivery = Delivery(self.queue, self.store, self._forget)
        self.inflight = Inflight(
            self.engine, policy, self.delivery.sampled, self.delivery.failed, self._on_turn, self.delivery.show
        )
        self.queue.listen(self.inflight.stir, self._on_order)
        about: dict[str, object] = {
            "worker": self.name,
            "device": str(self.engine.device),
            "models": len(self.engine.models),
        }
        if settings.metrics_port is not None:
            server, _ = start_http_server(settings.metrics_port, registry=metrics.REGISTRY)
            about["metrics_port"] = server.server_port
        metrics.worker_start_time.labels(str(self.engine.device)).set_to_current_time()
        metrics.build_info.labels(__version__, self.engine.torch_version, str(self.engine.device)).set(1)
        log.info("worker ready", **about, seconds=round(time.monotonic() - started, 2))

    def _load(self) -> Engine:
        """In the computing thread: the engine, ready for what requests ask when they do not say."""
        settings = self.settings
        device = choose_device(settings.device, settings.worker_index)
        folder = settings.data_dir / "networks"
        patterns = [pattern.strip() for pattern in settings.models.split(",")]
        engine = Engine(
            settings.model_store,
            device,
            settings.batch_images,
            folder,
            settings.compile,
            patterns=patterns,
            memory_bytes=None if settings.model_memory_mb is None else settings.model_memory_mb << 20,
        )
        for pattern in patterns:
            if not fnmatch.filter(engine.models, pattern):
                log.warning("no model is like this pattern", setting="PFGMPP_MODELS", pattern=pattern)
        engine.prepare(settings.precision)
        return engine

    async def _compute(self) -> None:
        await self._loop.run_in_executor(self._computing, self.inflight.run)

    async def _claim_work(self) -> None:
        """Claim what fits in hand, until the order to stop."""
        while not self._stopping.is_set():
            try:
                appetite = self._appetite()
                batch = appetite and await self.queue.claim(self._batch_id, self.name, appetite, not self.in_hand)
                if appetite and batch:
                    self._count(batch, appetite)
                    await self._take(batch)
                if not batch or not batch.leaves_more:
                    await self._wait_to_look()
            except EmptyHandsNeeded:
                self._needs_empty_hands = True
            except RedisError as error:
                log.warning("queue unreachable", reason=str(error))
                await self._pause(1.0)

    def _count(self, batch: Batch, appetite: Appetite) -> None:
        """Record a claim, and whether it took all that there was room for."""
        metrics.batch_images.labels(batch.model).observe(batch.images)
        is_full = batch.images >= appetite.rooms.get(batch.model, 0)
        metrics.batches.labels(batch.model, "full" if is_full else "idle").inc()

    def _appetite(self) -> Appetite | None:
        """What to claim now; None for nothing: before something has left these hands, or while nothing is on offer."""
        if (self._needs_empty_hands and self.in_hand) or not self.engine.models:
            return None
        self._needs_empty_hands = False
        return self.inflight.appetite(self.engine.models, self._claims)

    async def _wait_to_look(self) -> None:
        """Until there may be something to claim, or the order to stop.

        With nothing to compute that is when work comes; else after a turn, when some has come or there is room. So what
        comes goes to an idle worker first, and one at work finds it when it could begin with it at the soonest.
        """
        if self.inflight.is_idle and not self._needs_empty_hands:
            await self._unless_stopping(self.queue.wait_for_work(self.engine.models, IDLE_SECONDS))
            return
        self._turned.clear()
        self.inflight.watch()
        with suppress(TimeoutError):
            await self._unless_stopping(asyncio.wait_for(self._turned.wait(), LOOK_ALL_THE_SAME_SECONDS))
        with suppress(TimeoutError):
            await asyncio.wait_for(self._emptied.wait(), self._looked + LOOK_SECONDS - time.monotonic())
        self._looked = time.monotonic()

    async def _pause(self, seconds: float) -> None:
        await self._unless_stopping(asyncio.sleep(seconds))

    async def _unless_stopping(self, waiting: Awaitable[object]) -> None:
        """Wait for something, or for the order to stop; what was waited for is then over, cancelled if need be."""
        tasks = (asyncio.ensure_future(waiting), asyncio.create_task(self._stopping.wait()))
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if tasks[0].done():
                tasks[0].result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _take(self, batch: Batch) -> None:
        """Put a claimed batch in hand."""
        # Only now a new id: a claim that was answered into the void is answered again.
        self._batch_id = new_id()
        self._claims += 1
        self._needs_empty_hands = batch.is_alone
        try:
            shares = self.inflight.shares_of(batch)
        except Exception as error:
            log.exception("batch not understood", jobs=list(batch.requests), lane=batch.lane)
            await self.delivery.give_back(batch, sampling_failed(error))
            return
        if not shares:  # all its jobs were deleted since
            return
        for share in shares:
            log.info("job claimed", job=share.job_id, lane=batch.lane, images=share.images, batch=batch.id)
        self.in_hand[batch.id] = {share.job_id: share for share in shares}
        self._emptied.clear()
        self.inflight.enter(shares)

    def _on_turn(self) -> None:
        """In the computing thread: a turn is over."""
        self._loop.call_soon_threadsafe(self._turned.set)

    def _forget(self, share: Share) -> None:
        """Take a share out of hand."""
        shares = self.in_hand.get(share.batch.id, {})
        shares.pop(share.job_id, None)
        if not shares:
            self.in_hand.pop(share.batch.id, None)
        if not self.in_hand:
            self._emptied.set()
            self._turned.set()

    async def _keep_leases(self) -> None:
        """Prolong the leases of what is in hand, and note its progress, until cancelled."""
        noted: Notes = ({}, {})
        renewed, is_warned = time.monotonic(), False
        while True:
            await asyncio.sleep(self.settings.progress_seconds)
            done = {
                batch_id: {job_id: share.evaluations_done for job_id, share in shares.items()}
                for batch_id, shares in self.in_hand.items()
            }
            shown = self._shown()
            is_due = time.monotonic() - renewed > self.settings.heartbeat_seconds
            if not done or ((done, shown) == noted and not is_due):
                continue
            try:
                renewal = await self.queue.renew(done, shown)
            except RedisError as error:
                if not is_warned:
                    log.warning("leases not renewed", reason=str(error))
                is_warned = True
                continue
            renewed, noted, is_warned = time.monotonic(), (done, shown), False
            self._drop(renewal.lost, renewal.closed)

    def _shown(self) -> dict[str, dict[int, Shown]]:
        """What is to be seen of the jobs in hand, by job and part."""
        shown = dict[str, dict[int, Shown]]()
        for shares in self.in_hand.values():
            for share in shares.values():
                if share.shown:
                    shown.setdefault(share.job_id, {}).update(share.shown)
        return shown

    def _drop(self, lost: Sequence[str], closed: Sequence[str]) -> None:
        """Let go of batches that are no longer this worker's, and of jobs that are no longer open."""
        for batch_id in lost:
            shares = self._let_go(batch_id)
            if shares:
                log.warning("batch abandoned", jobs=[share.job_id for share in shares], batch=batch_id)
        for batch_id in list(self.in_hand):
            for share in self._let_go(batch_id, closed):
                self.delivery.hand_back(share)

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
            self._news.clear()
            try:
                await self.queue.announce(self._state())
                self._show_metrics()
            except RedisError as error:
                log.warning("heartbeat not sent", reason=str(error))
            with suppress(TimeoutError):
                news = asyncio.wait_for(self._news.wait(), self.settings.heartbeat_seconds)
                await self._unless_stopping(news)

    def _show_metrics(self) -> None:
        """What metrics show of this worker before it has done anything."""
        metrics.observe_memory(self.engine.device_bytes)
        for model in self.engine.models:
            metrics.introduce_model(model)

    def _state(self) -> WorkerState:
        return WorkerState(
            name=self.name,
            state="draining" if self._stopping.is_set() else "busy" if self.in_hand else "idle",
            device=str(self.engine.device),
            version=__version__,
            evaluations_per_second=self.inflight.images_per_second,
            paces=self.engine.first_paces | self.inflight.paces,
            models=self.engine.facts,
            loaded=self.engine.loaded,
        )

    async def _watch_calls(self) -> None:
        """Until cancelled, or the network call under way takes too long: then let go of all, and raise Hung."""
        limit = self.settings.hang_seconds
        while True:
            await asyncio.sleep(min(1.0, limit / 4))
            if self.inflight.seconds_in_call > limit:
                with suppress(RedisError):
                    await self.queue.disown(self.name)
                raise Hung(f"a network call took more than {limit:g} s (PFGMPP_HANG_SECONDS)")

    async def _watch_store(self) -> None:
        """Offer new checkpoints, and no longer those that are gone, until cancelled."""
        while True:
            await asyncio.sleep(self.settings.store_seconds)
            try:
                has_changed = await asyncio.to_thread(self.engine.store.scan)
            except ValueError as error:
                log.warning("model store not read", reason=str(error))
                continue
            if has_changed or self.engine.store.problems:
                self.engine.offer()
            if has_changed or not self.engine.is_settled:
                self._have_done(self.engine.settle)

    def _on_order(self, order: Order) -> None:
        """Let go of a job whose caller wants no more of it; load or unload a model, as an operator wants it."""
        if order.act == "cancel":
            self._drop([], [order.subject])
        elif order.subject in self.engine.models:
            self._have_done(partial(self.engine.load if order.act == "load" else self.engine.unload, order.subject))

    def _have_done(self, act: Callable[[], None]) -> None:
        """Have the computing thread change what is in memory, and say so at once."""

        def errand() -> None:
            with suppress(ModelGone):
                act()
            self._loop.call_soon_threadsafe(self._news.set)

        self.inflight.errand(errand)

    async def _sweep_results(self) -> None:
        """Remove the results of jobs the queue no longer knows, until cancelled."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            try:
                await self._sweep(SWEEP_SECONDS)
            except (RedisError, OSError) as error:
                if isinstance(error, OSError):
                    metrics.store_errors.labels("remove").inc()
                log.warning("results not swept", reason=str(error))

    async def _sweep(self, older_than_seconds: float) -> None:
        """Remove the results of forgotten jobs, and what killed writers left. Raises RedisError or OSError.

        Not in the storing thread: to list a large bucket takes seconds.
        """
        stored = await asyncio.to_thread(self.store.jobs, older_than_seconds)
        forgotten = await self.queue.forgotten(stored)
        await asyncio.to_thread(self.store.remove, forgotten)
        unfinished = await asyncio.to_thread(self.store.remove_unfinished, older_than_seconds)
        if forgotten or unfinished:
            log.info("results removed", results=len(forgotten), unfinished_files=unfinished)

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
        await self._emptied.wait()

    async def _shut_down(self) -> None:
        self.inflight.close()
        await self.delivery.stop()
        with suppress(RedisError):
            await self.queue.retire(self.name)
        await self.queue.close()
        self._computing.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(tracing.end)
        log.info("worker stopped")
