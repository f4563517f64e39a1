"""The queue: sorted-set lanes in Redis and a few scripts, one round trip each. `scripts/common.lua` lists the keys.

A job is `count` images of one lane; a claim takes images of one lane across jobs, under a lease; the batch's id fences
every answer. So a job is computed at least once and ended exactly once.
"""

import asyncio
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from service.catalogue import Catalogue, ModelFacts, WorkerState
from service.job import Call, Job, JobError, Part, Shown, Webhook
from service.messages import (
    Ahead,
    Batch,
    Census,
    Completion,
    EmptyHandsNeeded,
    GivenBack,
    KeyReused,
    LaneCensus,
    LimitReached,
    Limits,
    Notice,
    Order,
    Renewal,
    Report,
    Submission,
    UnfitServer,
)
from service.policy import Appetite
from service.redis_client import QueueClient, connect, connect_blocking
from service.settings import Settings

SCRIPTS = Path(__file__).parent / "scripts"

Record = TypeVar("Record", bound=BaseModel)


def new_id() -> str:
    """An id nobody can guess: 128 random bits in hexadecimal."""
    return secrets.token_hex(16)


class Queue:
    """One queue in one Redis, for API and workers alike. Redis's own errors pass through."""

    def __init__(self, redis: QueueClient, blocking: Redis, settings: Settings):
        self.redis = redis
        self.blocking = blocking
        self.settings = settings
        self.prefix = f"pfgmpp:{{{settings.queue}}}:"
        common = (SCRIPTS / "common.lua").read_text()
        # A full Redis refuses new jobs, but must still let claimed ones finish.
        self._scripts = {
            path.stem: redis.register_script(
                f"#!lua{'' if path.stem == 'submit' else ' flags=allow-oom'}\n{common}\n{path.read_text()}"
            )
            for path in SCRIPTS.glob("*.lua")
            if path.stem != "common"
        }

    @classmethod
    def open(cls, settings: Settings) -> "Queue":
        """The queue of the settings; nothing is connected before the first call.

        Raises ValueError when the settings name no Redis.
        """
        if not settings.redis_url:
            raise ValueError("REDIS_URL is not set; set it, or use `pfgmpp serve`, which starts its own Redis")
        url, name = settings.redis_url, settings.queue
        return cls(connect(url, name), connect_blocking(url, name), settings)

    async def close(self) -> None:
        await self.redis.aclose()
        await self.blocking.aclose()

    async def _run(self, script: str, *arguments: str | int | float) -> Any:
        return await self._scripts[script](keys=[self.prefix], args=arguments)

    @property
    def _retention_ms(self) -> int:
        return int(self.settings.retention_seconds * 1000)

    @property
    def _lease_ms(self) -> int:
        return int(self.settings.lease_seconds * 1000)

    async def ping(self) -> None:
        await self.redis.ping()

    async def epoch(self) -> str:
        """By which one life of the data in Redis is told from another: it changes when they are lost."""
        await self.redis.set(f"{self.prefix}epoch", new_id(), nx=True)
        return str(await self.redis.get(f"{self.prefix}epoch"))

    async def shortcomings(self) -> list[str]:
        """In what the server is not set up for jobs: it would lose them, or cannot be asked.

        Raises UnfitServer when it would throw away jobs to make room.
        """
        try:
            found: Any = await self.redis.config_get("maxmemory-policy", "appendonly", "maxmemory")
        except ResponseError as error:
            return [f"Redis does not tell how it is set up ({error}); it must have maxmemory-policy noeviction"]
        policy = found.get("maxmemory-policy", "noeviction")
        if policy != "noeviction":
            raise UnfitServer(
                f"Redis has maxmemory-policy {policy}, by which it throws away jobs when it is full: "
                "set it to noeviction (`CONFIG SET maxmemory-policy noeviction`, and in its configuration file)"
            )
        warnings = []
        if found.get("appendonly") != "yes":
            warnings.append("Redis keeps no append-only file: accepted jobs are lost when it restarts (appendonly yes)")
        if found.get("maxmemory") == "0":
            warnings.append(
                "Redis has no maxmemory: set one, so that it refuses jobs before the machine runs out of it"
            )
        return warnings

    async def submit(self, job: Submission) -> Job | None:
        """Queue a job; None when the queue is full. Repeating it with the same id is harmless.

        With an idempotency key it is the job that was first submitted so. Raises KeyReused, or LimitReached for the
        caller's limits.
        """
        limit, patience_us = self.settings.max_queued_evaluations, int(self.settings.patience_seconds * 1e6)
        known = (job.id, job.kind, job.lane, job.count, job.evaluations, job.request, limit, patience_us)
        deadline_ms = 0 if job.deadline_seconds is None else int(job.deadline_seconds * 1000)
        wishes = (job.owner, job.priority, deadline_ms, job.idempotency_key, job.body_hash)
        about = (job.webhook, job.traceparent)
        word, *rest = await self._run("submit", *known, *wishes, job.evaluation_us, *job.limits, *about)
        if word == "full":
            return None
        if word == "reused":
            raise KeyReused
        if word in Limits._fields:
            raise LimitReached(word, rest[0])
        return _job(word, rest[0])

    async def cancel(self, job_id: str) -> tuple[Job, bool] | None:
        """End a job, and whether it had not ended before; None when there is none."""
        answer = await self._run("cancel", job_id, self._retention_ms)
        job = _job(job_id, answer[1]) if answer else None
        return (job, answer[0] == "canceled") if job else None

    async def delete(self, job_id: str) -> bool:
        """Cancel a job that has not ended, and forget it; whether there was one."""
        return bool(await self._run("delete", job_id, self._retention_ms))

    async def jobs(self, owner: str, status: str, dataset: str, most: int, cursor: str) -> tuple[list[Job], str]:
        """Jobs of a caller, the last one first, and the cursor of what follows; "" at the end."""
        following, *rest = await self._run("list", owner, status, dataset, most, cursor)
        return [job for job_id, record in _rows(rest, 2) if (job := _job(job_id, record))], following

    async def owner_of_gone(self, job_id: str) -> str | None:
        """Whose job it was that ended so long ago that its record is no longer kept; None if there was none."""
        owner: str | None = await self.redis.get(f"{self.prefix}gone:{job_id}")  # type: ignore[assignment]
        return owner

    async def ahead(self, evaluations: int, priority: int, owner: str, models: Sequence[str]) -> Ahead:
        """What a caller's job, of so many evaluations for each image, would come upon."""
        patience_us = int(self.settings.patience_seconds * 1e6)
        return _ahead(await self._run("ahead", "", evaluations, patience_us, priority, owner, *models))

    async def left(self, job_id: str, models: Sequence[str]) -> Ahead:
        """What lies before the end of a job, and what else there is; of its owner nothing."""
        return _ahead(await self._run("ahead", job_id, 0, 0, 0, "", *models))

    async def read(self, job_id: str) -> Job | None:
        """The job, or None when there is none, or no longer."""
        return _job(job_id, await self._run("read", job_id))

    async def claim(self, batch_id: str, worker: str, appetite: Appetite, is_empty_handed: bool) -> Batch | None:
        """Images of the lane that is due first, or oldest, under a lease; None when nothing waits that can be taken.

        Raises EmptyHandsNeeded.
        """
        answer = await self._run(
            "claim",
            batch_id,
            worker,
            self._lease_ms,
            appetite.below,
            int(appetite.is_for_oldest),
            int(is_empty_handed),
            appetite.favourite,
            int(appetite.favour_seconds * 1e6),
            *(word for model_and_room in appetite.rooms.items() for word in model_and_room),
        )
        if not answer:
            return None
        if answer[0] == "alone":
            raise EmptyHandsNeeded
        lane, text, is_alone, leaves_more, *rest = answer
        jobs = _rows(rest, 4)
        # A job that was deleted since has no request.
        requests = {job_id: request for job_id, request, _, _ in jobs if request}
        submitted = {job_id: float(ms) / 1000 for job_id, _, ms, _ in jobs}
        traces = {job_id: traceparent for job_id, _, _, traceparent in jobs}
        claimed = tuple(part for part in _parts(text) if part.job_id in requests)
        return Batch(batch_id, lane, claimed, requests, submitted, traces, bool(is_alone), bool(leaves_more))

    async def renew(
        self, done: Mapping[str, Mapping[str, int]], shown: Mapping[str, Mapping[int, Shown]] | None = None
    ) -> Renewal:
        """Prolong the leases of batches and note how far their jobs are.

        That is {batch: {job: evaluations done}}, and {job: {place of the first image of a part: what is to be seen}}.
        """
        seen = {
            job_id: {start: f"{each.evaluation}:{each.sigma!r}" for start, each in parts.items()}
            for job_id, parts in (shown or {}).items()
        }
        lost, closed = await self._run("renew", self._lease_ms, json.dumps(done), json.dumps(seen))
        return Renewal(tuple(lost), tuple(closed))

    async def complete(self, batch: Batch, report: Report) -> Completion:
        """Record what was computed of some jobs of a batch, all or nothing; jobs of mixed checkpoints fail."""
        mixed = JobError(
            code="checkpoint-replaced",
            detail="The model was replaced while this job was computed, some of its images by the old one. "
            "Submit it again.",
        ).model_dump_json()
        word, *rest = await self._run("complete", batch.id, self._retention_ms, mixed, report.model_dump_json())
        if word == "stale":
            return Completion(is_stale=True)
        if word == "write":
            return Completion(to_write=tuple(rest))
        return Completion(ended=tuple(job for job_id, record in _rows(rest, 2) if (job := _job(job_id, record))))

    async def fail(self, batch: Batch, error: JobError, job_id: str = "") -> list[GivenBack]:
        """Give a batch, or one job of it, back after an error, which counts as an attempt of its jobs."""
        return await self._give_back(batch, error, job_id, is_charged=True)

    async def hand_back(self, batch: Batch, job_id: str = "") -> list[GivenBack]:
        """Give a batch, or one job of it, back because its worker drops it, which counts as nothing."""
        error = JobError(code="handed-back", detail="The worker left.")
        return await self._give_back(batch, error, job_id, is_charged=False)

    async def _give_back(self, batch: Batch, error: JobError, job_id: str, is_charged: bool) -> list[GivenBack]:
        attempts = self.settings.max_attempts
        answer = await self._run(
            "fail", batch.id, error.model_dump_json(), int(is_charged), attempts, self._retention_ms, job_id
        )
        return _given_back(answer)

    async def reap(self) -> list[GivenBack]:
        """Give back every batch whose lease has ended, and end jobs that were not begun in time."""
        attempts = self.settings.max_attempts
        error = JobError(
            code="worker-lost", detail=f"The worker was lost while it computed this job, {attempts} times in all."
        )
        late = JobError(code="deadline-passed", detail="The job had not begun when its deadline passed.")
        return _given_back(
            await self._run("reap", error.model_dump_json(), attempts, self._retention_ms, late.model_dump_json())
        )

    async def notices(self, most: int, lease_seconds: float) -> list[Notice]:
        """What webhooks are to be told now; nobody else has it until the lease ends.

        What only another version of this program understands is left to it.
        """
        answer = await self._run("notices", most, int(lease_seconds * 1000))
        notices = []
        for job_id, event, webhook in _rows(answer, 3):
            known = _readable(Webhook, [webhook])
            if known or not webhook:
                notices.append(Notice(job_id, event, known[0] if known else None))
        return notices

    async def told(self, notice: Notice, call: Call, wait_seconds: float | None = None) -> None:
        """Note how it went to tell of something: there is no more to do, or it is due again after a while."""
        wait_ms = "" if wait_seconds is None else int(wait_seconds * 1000)
        await self._run("told", notice.job_id, notice.event, call.model_dump_json(), wait_ms)

    async def forgotten(self, job_ids: Sequence[str]) -> list[str]:
        """Those of the jobs that the queue no longer knows."""
        async with self.redis.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.exists(f"{self.prefix}job:{job_id}")
            known = await pipe.execute()
        return [job_id for job_id, is_known in zip(job_ids, known, strict=True) if not is_known]

    async def disown(self, worker: str) -> int:
        """End the leases of a worker known to be dead; how many there were."""
        return int(await self._run("disown", worker))

    async def census(self, models: Sequence[str]) -> Census:
        """What waits and runs of some models."""
        evaluations, lanes, running = await self._run("census", *models)
        return Census(
            evaluations,
            tuple(
                LaneCensus(lane, jobs, images, images * each, age / 1000)
                for lane, jobs, images, each, age in _rows(lanes, 5)
            ),
            dict(_rows(running, 2)),
        )

    async def wait_for_work(self, models: Sequence[str], timeout_seconds: float) -> None:
        """Return when something may wait for one of the models, or after the timeout."""
        if not models:
            await asyncio.sleep(timeout_seconds)
            return
        await self.blocking.blpop([f"{self.prefix}wake:{model}" for model in models], timeout=timeout_seconds)

    def listen(self, on_arrival: Callable[[], None], on_order: Callable[[Order], None]) -> None:
        """Be told whenever something has come to the queue, and of orders. Messages may be lost with a connection."""

        def on_message(text: str) -> None:
            act, _, subject = text.partition(" ")
            if subject:
                on_order(Order(act, subject))  # type: ignore[arg-type]
            else:
                on_arrival()

        self.redis.link.subscribe(f"{self.prefix}arrivals", on_message)

    async def order(self, order: Order) -> int:
        """Tell all workers something; how many there are to hear it."""
        return int(await self.redis.publish(f"{self.prefix}arrivals", f"{order.act} {order.subject}"))

    async def announce(self, worker: WorkerState) -> None:
        """Say that a worker lives, and what it holds."""
        key = f"{self.prefix}worker:{worker.name}"
        async with self.redis.pipeline(transaction=True) as pipe:
            seconds, _ = await self.redis.time()
            pipe.hset(key, mapping={"state": worker.model_dump_json()})
            pipe.pexpire(key, int(6 * self.settings.heartbeat_seconds * 1000))
            pipe.zadd(f"{self.prefix}workers", {worker.name: seconds})
            pipe.zremrangebyscore(f"{self.prefix}workers", "-inf", seconds - 6 * self.settings.heartbeat_seconds)
            for model in worker.models:
                pipe.hset(f"{self.prefix}models", model.name, model.model_dump_json())
            await pipe.execute()

    async def retire(self, worker: str) -> None:
        """Take a worker that leaves off the list."""
        await self.redis.delete(f"{self.prefix}worker:{worker}")
        await self.redis.zrem(f"{self.prefix}workers", worker)

    async def forget_workers(self, seen_before: float) -> None:
        """Take workers off the list that were last seen before a moment: those of a former life of the service."""
        names: Any = await self.redis.zrangebyscore(f"{self.prefix}workers", "-inf", f"({int(seen_before)}")
        for name in names:
            await self.retire(name)

    async def mark_lost(self, worker: str) -> None:
        """Note that a worker has died and should be back soon: its models stay on offer while its record lasts."""
        key = f"{self.prefix}worker:{worker}"
        text = await self.redis.hget(key, "state")
        if text:
            state = WorkerState.model_validate_json(text).model_copy(update={"state": "lost"})
            await self.redis.hset(key, "state", state.model_dump_json())

    async def catalogue(self) -> Catalogue:
        """What live workers offer, and what was ever offered."""
        names: Any = await self.redis.zrange(f"{self.prefix}workers", 0, -1)
        async with self.redis.pipeline(transaction=False) as pipe:
            pipe.hvals(f"{self.prefix}models")
            for name in names:
                pipe.hget(f"{self.prefix}worker:{name}", "state")
            remembered, *states = await pipe.execute()
        return Catalogue(_readable(WorkerState, states), _readable(ModelFacts, remembered))


def _readable(kind: type[Record], texts: Sequence[str | None]) -> list[Record]:
    """The records that this version understands; one of another version, or one just expired, is left out."""
    records = []
    for text in texts:
        with suppress(ValidationError):
            if text:
                records.append(kind.model_validate_json(text))
    return records


def _job(job_id: str, answer: Sequence[Any]) -> Job | None:
    """A job as the scripts answer it, `{fields, place}`, or None for `{}`."""
    return Job.from_redis(job_id, dict(_rows(answer[0], 2)), answer[1]) if answer else None


def _parts(text: str) -> tuple[Part, ...]:
    """`job:start:length;...` as parts."""
    fields = (part.split(":") for part in text.split(";"))
    return tuple(Part(job_id, int(start), int(length)) for job_id, start, length in fields)


def _ahead(answer: Sequence[Any]) -> Ahead:
    accepted, owned, jobs, *rest = answer
    rows = _rows(rest, 3)
    return Ahead(
        accepted,
        owned,
        jobs,
        before={model: before for model, before, _ in rows},
        there={model: there for model, _, there in rows},
    )


def _rows(flat: Sequence[Any], width: int) -> list[tuple[Any, ...]]:
    """A flat answer of a script as rows."""
    return list(zip(*(flat[k::width] for k in range(width)), strict=True))


def _given_back(answer: Sequence[str]) -> list[GivenBack]:
    return [GivenBack(*row) for row in _rows(answer, 3)]
