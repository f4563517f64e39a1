"""The queue's contract, on a real server."""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from redis.exceptions import OutOfMemoryError

from service.job import Job, JobError
from service.messages import (
    Batch,
    EmptyHandsNeeded,
    JobReport,
    KeyReused,
    Order,
    Renewal,
    Report,
    Submission,
    UnfitServer,
)
from service.policy import Appetite
from service.queue import Queue, new_id
from service.settings import Settings
from tests.helpers import LANE, MODELS, eventually, facts, next_batch, worker_state

pytestmark = pytest.mark.anyio

OTHER_LANE = "digits-d2048|sample|10|heun|exact"
OTHER_MODEL = "digits-d128|sample|18|heun|exact"
REQUEST = json.dumps({"dataset": "digits", "D": 2048, "checkpoint_sha256": "0" * 64, "seeds": []})


async def submit(queue: Queue, count: int, lane: str = LANE, evaluations: int = 35, **wishes: Any) -> str:
    job_id = new_id()
    assert await queue.submit(Submission(job_id, "sample", lane, count, evaluations, REQUEST, **wishes))
    return job_id


async def claim(queue: Queue, room: int = 8, worker: str = "worker-1", batch_id: str | None = None) -> Batch:
    batch = await next_batch(queue, room, worker=worker, batch_id=batch_id)
    assert batch is not None
    return batch


async def nothing_waits(queue: Queue) -> bool:
    return await next_batch(queue) is None


async def job_of(queue: Queue, job_id: str) -> Job:
    job = await queue.read(job_id)
    assert job is not None
    return job


def report(batch: Batch, *written: str, jobs: Sequence[str] = ()) -> Report:
    """The report of a batch, or of some of its jobs, of which some results are written."""
    of_job = {job_id: [part for part in batch.parts if part.job_id == job_id] for job_id in jobs or batch.requests}
    return Report(
        jobs={
            job_id: JobReport(
                began_ms_ago=23.0,
                sampled_ms_ago=3.0,
                images=batch.images,
                arithmetic="float32",
                checkpoint="f" * 64,
                labels={part.start: json.dumps([7] * part.length) for part in parts},
                is_written=job_id in written,
            )
            for job_id, parts in of_job.items()
        },
    )


async def renew(queue: Queue, batch: Batch, done: int = 0) -> bool:
    """Renew a lease with so many evaluations done of every image; whether it is still the worker's."""
    images = {job_id: sum(part.length for part in batch.parts if part.job_id == job_id) for job_id in batch.requests}
    renewal = await queue.renew({batch.id: {job_id: done * count for job_id, count in images.items()}})
    return not renewal.lost


async def ended(queue: Queue, batch: Batch, *written: str, jobs: Sequence[str] = ()) -> list[str]:
    """Complete a batch, or some jobs of it: the jobs that ended with it."""
    return [job.id for job in (await queue.complete(batch, report(batch, *written, jobs=jobs))).ended]


async def lose(queue: Queue, worker: str = "worker-1") -> list[tuple[str, bool]]:
    """Let a worker die and its leases be reaped: what became of its jobs."""
    await queue.disown(worker)
    return [(job.job_id, job.outcome == "failed") for job in await queue.reap()]


async def audit(queue: Queue) -> None:
    """Counters, lanes and leases are what the jobs themselves say."""
    redis, prefix = queue.redis, queue.prefix
    evaluations, running, images, waiting = 0, Counter[str](), Counter[str](), Counter[str]()
    async for key in redis.scan_iter(f"{prefix}job:*"):
        job: Any = await redis.hgetall(key)
        if job["status"] not in {"queued", "running"}:
            assert job["queued"] == ""
            assert await redis.pttl(key) > 0
            continue
        assert await redis.pttl(key) == -1
        evaluations += (int(job["count"]) - int(job["done"])) * int(job["evaluations"])
        running[job["lane"].split("|")[0]] += int(job["status"] == "running")
        unclaimed = sum(int(part.split(":")[1]) for part in job["queued"].split(";") if part)
        images[job["lane"]] += unclaimed
        waiting[job["lane"]] += int(unclaimed > 0)
    census = await queue.census(MODELS)
    assert census.evaluations == evaluations
    assert census.running == {model: running[model] for model in MODELS}
    assert {lane.lane: lane.images for lane in census.lanes} == +images
    assert {lane.lane: lane.jobs for lane in census.lanes} == +waiting
    leases: Any = await redis.zrange(f"{prefix}leases", 0, -1)
    for batch_id in leases:
        assert await redis.exists(f"{prefix}batch:{batch_id}")


async def test_a_job_goes_from_queued_to_succeeded(queue: Queue) -> None:
    job_id = await submit(queue, 3)
    queued = await job_of(queue, job_id)
    assert (queued.status, queued.place, queued.attempts) == ("queued", 0, 1)
    batch = await claim(queue)
    assert [tuple(part) for part in batch.parts] == [(job_id, 0, 3)]
    assert (batch.lane, batch.model, batch.requests) == (LANE, "digits-d2048", {job_id: REQUEST})
    assert (await job_of(queue, job_id)).status == "running"
    assert await ended(queue, batch, job_id) == [job_id]
    job = await job_of(queue, job_id)
    assert (job.status, job.done, job.labels) == ("succeeded", 3, [7, 7, 7])
    latency = job.latency()
    assert latency is not None
    assert latency.sampling_seconds == pytest.approx(0.02, abs=1e-5)
    assert (latency.batch_images, latency.evaluations) == (3, 35)
    await audit(queue)


async def test_the_stages_of_a_job_add_up_whoever_computed_it(queue: Queue) -> None:
    """Two workers at once: sampling lasts from the first call of either to the last, and is not counted twice."""
    job_id = await submit(queue, 3)
    first, second = await claim(queue, room=2), await claim(queue)
    await ended(queue, first, job_id)
    assert await ended(queue, second, job_id) == [job_id]
    latency = (await job_of(queue, job_id)).latency()
    assert latency is not None
    stages = latency.queue_seconds, latency.batch_wait_seconds, latency.sampling_seconds, latency.encoding_seconds
    assert sum(stages) == pytest.approx(latency.total_seconds, abs=1e-5)
    assert 0.02 < latency.sampling_seconds < 0.02 + latency.total_seconds


async def test_repeated_calls_answer_as_the_first(queue: Queue) -> None:
    job_id, batch_id = new_id(), new_id()
    for _ in range(2):
        assert await queue.submit(Submission(job_id, "sample", LANE, 2, 35, REQUEST))
    first, second = [await claim(queue, batch_id=batch_id) for _ in range(2)]
    assert first == second
    for _ in range(2):
        assert await ended(queue, first, job_id) == [job_id]
    assert (await job_of(queue, job_id)).done == 2
    assert await nothing_waits(queue)
    await audit(queue)


async def test_small_jobs_share_a_batch_and_large_ones_are_split(queue: Queue) -> None:
    small, large, last = [await submit(queue, count) for count in (3, 10, 1)]
    assert [tuple(part) for part in (await claim(queue)).parts] == [(small, 0, 3), (large, 0, 5)]
    assert [tuple(part) for part in (await claim(queue)).parts] == [(large, 5, 5), (last, 0, 1)]
    await audit(queue)


async def test_lanes_never_share_a_batch_and_the_oldest_goes_first(queue: Queue) -> None:
    ids = {}
    for lane in (OTHER_LANE, LANE, OTHER_MODEL):
        ids[lane] = await submit(queue, 1, lane)
        await a_little_later(queue)
    assert [(await claim(queue)).lane for _ in ids] == [OTHER_LANE, LANE, OTHER_MODEL]


async def a_little_later(queue: Queue) -> None:
    """Return when the server's clock, by which jobs are ordered, has moved on."""
    before: Any = await queue.redis.time()

    async def has_moved() -> bool:
        now: Any = await queue.redis.time()
        return bool((now[0] - before[0]) * 10**6 + now[1] - before[1] > 2000)

    await eventually(has_moved)


async def test_a_worker_gets_only_what_its_models_can_do(queue: Queue) -> None:
    await submit(queue, 1, OTHER_MODEL)
    assert await next_batch(queue, models=["digits-d2048"]) is None
    assert await next_batch(queue, models=["digits-d128"]) is not None


async def test_place_counts_the_jobs_ahead_for_the_same_model(queue: Queue) -> None:
    ids = []
    for lane in (LANE, OTHER_LANE, LANE, OTHER_MODEL):
        ids.append(await submit(queue, 1, lane))
        await a_little_later(queue)
    assert [(await job_of(queue, job_id)).place for job_id in ids] == [0, 1, 2, 0]


async def test_a_lost_batch_waits_again_and_its_late_answer_is_refused(queue: Queue) -> None:
    job_id = await submit(queue, 4)
    lost = await claim(queue)
    assert await lose(queue) == [(job_id, False)]
    assert not await renew(queue, lost, 1)
    assert (await queue.complete(lost, report(lost, job_id))).is_stale
    again = await claim(queue)
    assert again.parts == lost.parts
    assert await ended(queue, again, job_id) == [job_id]
    job = await job_of(queue, job_id)
    assert (job.attempts, job.done) == (2, 4)
    await audit(queue)


async def test_a_lease_ends_by_itself_when_nobody_renews_it(queue: Queue, settings: Settings) -> None:
    hasty = Queue(queue.redis, queue.blocking, settings.model_copy(update={"lease_seconds": 0.05}))
    job_id = await submit(hasty, 1)
    batch = await claim(hasty)
    assert await renew(hasty, batch, 3)
    lost = await eventually(hasty.reap)
    assert [(job.job_id, job.model, job.outcome) for job in lost] == [(job_id, "digits-d2048", "requeued")]


async def test_a_job_that_loses_every_worker_fails_and_its_batch_mate_does_not(queue: Queue) -> None:
    poison, mate = await submit(queue, 1), await submit(queue, 1)
    await claim(queue)
    assert sorted(await lose(queue)) == sorted([(poison, False), (mate, False)])
    for _ in range(2):
        batch = await claim(queue)
        assert len(batch.requests) == 1, "after a loss, jobs run alone"
        while poison not in batch.requests:
            await queue.complete(batch, report(batch, mate))
            batch = await claim(queue)
        outcome = await lose(queue)
    assert outcome == [(poison, True)]
    if not (await job_of(queue, mate)).is_finished:
        batch = await claim(queue)
        await queue.complete(batch, report(batch, mate))
    assert (await job_of(queue, mate)).status == "succeeded"
    failed = await job_of(queue, poison)
    assert (failed.status, failed.attempts) == ("failed", 3)
    assert failed.error is not None
    assert failed.error.code == "worker-lost"
    assert "3 times" in failed.error.detail
    await audit(queue)


async def test_one_accident_is_one_attempt_however_many_batches_it_took(queue: Queue) -> None:
    job_id = await submit(queue, 24)
    for worker in ("worker-1", "worker-2", "worker-3"):
        await claim(queue, worker=worker)
    for worker in ("worker-1", "worker-2", "worker-3"):
        assert await lose(queue, worker) == [(job_id, False)]
    assert (await job_of(queue, job_id)).attempts == 2
    assert (await claim(queue)).images == 8
    await lose(queue)
    assert (await job_of(queue, job_id)).attempts == 3
    await audit(queue)


async def test_images_of_a_failed_job_that_come_later_change_nothing(queue: Queue, settings: Settings) -> None:
    strict = Queue(queue.redis, queue.blocking, settings.model_copy(update={"max_attempts": 1}))
    job_id = await submit(strict, 12)
    first, second = await claim(strict), await claim(strict, worker="worker-2")
    [given] = await strict.fail(first, JobError(code="sampling-failed", detail="NaN"))
    assert given.outcome == "failed"
    assert (await strict.complete(second, report(second, job_id))).ended == ()
    job = await job_of(strict, job_id)
    assert (job.status, job.done) == ("failed", 0)
    assert job.error == JobError(code="sampling-failed", detail="NaN")
    await audit(strict)


async def test_a_late_answer_for_a_forgotten_job_leaves_nothing_behind(queue: Queue) -> None:
    job_id = await submit(queue, 1)
    batch = await claim(queue)
    await queue.redis.delete(f"{queue.prefix}job:{job_id}")
    await queue.complete(batch, report(batch, job_id))
    assert await queue.read(job_id) is None


async def test_a_worker_that_leaves_hands_back_free_of_charge(queue: Queue) -> None:
    job_id = await submit(queue, 2)
    await queue.hand_back(await claim(queue))
    job = await job_of(queue, job_id)
    assert (job.attempts, job.status) == (1, "running")
    assert (await claim(queue)).images == 2
    await audit(queue)


async def test_a_job_made_by_two_checkpoints_fails(queue: Queue) -> None:
    """It says so, whatever of it is still out is of no account, and its mates are not concerned."""
    job_id, mate = await submit(queue, 20), await submit(queue, 4)
    first, second, third = await claim(queue), await claim(queue), await claim(queue)
    assert await ended(queue, first) == []
    other = report(second)
    other.jobs[job_id].checkpoint = "e" * 64
    assert [job.id for job in (await queue.complete(second, other)).ended] == [job_id]
    job = await job_of(queue, job_id)
    assert (job.status, job.error and job.error.code) == ("failed", "checkpoint-replaced")
    assert await ended(queue, third, mate) == [mate]
    await audit(queue)


async def test_the_last_part_of_a_job_is_refused_until_its_result_is_written(queue: Queue) -> None:
    job_id = await submit(queue, 12)
    first, second = await claim(queue), await claim(queue)
    assert (await queue.complete(second, report(second))).ended == ()
    assert (await queue.complete(first, report(first))).to_write == (job_id,)
    assert (await job_of(queue, job_id)).done == 4
    assert await ended(queue, first, job_id) == [job_id]
    assert (await job_of(queue, job_id)).labels == [7] * 12
    await audit(queue)


async def test_jobs_of_a_batch_are_delivered_one_by_one(queue: Queue) -> None:
    first, second, third = [await submit(queue, 2) for _ in range(3)]
    batch = await claim(queue)
    for _ in range(2):
        answer = await queue.complete(batch, report(batch, second, jobs=[second]))
        assert [job.id for job in answer.ended] == [second]
    assert (await job_of(queue, first)).done == 0
    assert [job.job_id for job in await queue.hand_back(batch, third)] == [third]
    assert await renew(queue, batch)
    assert await lose(queue) == [(first, False)]
    assert (await queue.complete(batch, report(batch, first, jobs=[first]))).is_stale
    assert (await job_of(queue, third)).attempts == 1
    assert (await job_of(queue, first)).attempts == 2
    assert (await claim(queue)).requests.keys() == {first}, "alone, after the loss"
    await audit(queue)


async def test_a_failure_of_one_job_leaves_its_batch_mates_alone(queue: Queue) -> None:
    poison, mate = await submit(queue, 1), await submit(queue, 1)
    batch = await claim(queue)
    await queue.fail(batch, JobError(code="sampling-failed", detail="NaN"), poison)
    assert await ended(queue, batch, mate, jobs=[mate]) == [mate]
    assert (await job_of(queue, poison)).attempts == 2
    await audit(queue)


async def test_a_job_that_runs_alone_needs_empty_hands(queue: Queue) -> None:
    job_id = await submit(queue, 1)
    await claim(queue)
    await lose(queue)
    with pytest.raises(EmptyHandsNeeded):
        await next_batch(queue, is_empty_handed=False)
    batch = await claim(queue)
    assert batch.is_alone
    assert batch.requests.keys() == {job_id}


async def test_shorter_jobs_go_first_until_the_longer_have_waited_long_enough(queue: Queue, settings: Settings) -> None:
    """A patience of 60 ms for each of 1,000 evaluations more is a minute of precedence."""
    patient = Queue(queue.redis, queue.blocking, settings.model_copy(update={"patience": 0.06}))
    long = await submit(patient, 1, LANE, evaluations=1010)
    short = await submit(patient, 1, OTHER_LANE, evaluations=10)
    assert (await job_of(patient, long)).place == 1
    assert [(await claim(patient)).requests.keys() for _ in range(2)] == [{short}, {long}]
    hasty = Queue(queue.redis, queue.blocking, settings.model_copy(update={"patience": 0.0}))
    long = await submit(hasty, 1, LANE, evaluations=1010)
    await a_little_later(queue)
    short = await submit(hasty, 1, OTHER_LANE, evaluations=10)
    assert [(await claim(hasty)).requests.keys() for _ in range(2)] == [{long}, {short}]


async def test_the_model_under_way_is_favoured_and_has_its_own_room(queue: Queue) -> None:
    other = await submit(queue, 20, OTHER_MODEL)
    await a_little_later(queue)
    same = await submit(queue, 20, LANE)
    rooms = {"digits-d128": 3, "digits-d2048": 5}
    for favour_seconds, expected in ((60.0, (same, 0, 5)), (0.0, (other, 0, 3)), (0.001, (other, 3, 3))):
        appetite = Appetite(rooms, favourite="digits-d2048", favour_seconds=favour_seconds)
        batch = await queue.claim(new_id(), "worker-1", appetite, is_empty_handed=True)
        assert batch is not None
        assert [tuple(part) for part in batch.parts] == [expected]


async def test_the_oldest_can_be_asked_for(queue: Queue) -> None:
    long = await submit(queue, 1, LANE, evaluations=100)
    await a_little_later(queue)
    await submit(queue, 1, OTHER_LANE, evaluations=3)
    batch = await next_batch(queue, is_for_oldest=True)
    assert batch is not None
    assert batch.requests.keys() == {long}


async def test_a_full_worker_takes_only_what_is_much_shorter(queue: Queue) -> None:
    long = await submit(queue, 1, LANE, evaluations=100)
    assert await next_batch(queue, below=100) is None
    short = await submit(queue, 20, OTHER_LANE, evaluations=99)
    batch = await next_batch(queue, 8, below=100)
    assert batch is not None
    assert [tuple(part) for part in batch.parts] == [(short, 0, 8)]
    assert (await job_of(queue, long)).status == "queued"
    await audit(queue)


async def test_renewal_tells_what_is_no_longer_wanted(queue: Queue, settings: Settings) -> None:
    strict = Queue(queue.redis, queue.blocking, settings.model_copy(update={"max_attempts": 1}))
    failed, mate = await submit(strict, 9), await submit(strict, 1)
    first, second = await claim(strict), await claim(strict)
    await strict.fail(first, JobError(code="sampling-failed", detail="NaN"))
    done = {first.id: {failed: 0}, second.id: {failed: 7, mate: 7}}
    assert await strict.renew(done) == Renewal(lost=(first.id,), closed=(failed,))
    assert (await job_of(strict, mate)).progress().evaluations_done == 7


async def test_progress_counts_what_is_done_and_what_is_under_way(queue: Queue) -> None:
    job_id = await submit(queue, 12)
    first, second = await claim(queue), await claim(queue)
    assert await renew(queue, first, 10)
    assert await renew(queue, second, 3)
    assert (await job_of(queue, job_id)).progress().evaluations_done == 8 * 10 + 4 * 3
    await queue.complete(first, report(first))
    progress = (await job_of(queue, job_id)).progress()
    assert (progress.evaluations_done, progress.images_done) == (8 * 35 + 4 * 3, 8)


async def test_a_full_queue_refuses_and_queues_nothing(queue: Queue, settings: Settings) -> None:
    tight = Queue(queue.redis, queue.blocking, settings.model_copy(update={"max_queued_evaluations": 100}))
    await submit(tight, 2)
    refused = new_id()
    assert await tight.submit(Submission(refused, "sample", LANE, 1, 35, REQUEST)) is None
    assert await tight.read(refused) is None
    await audit(tight)


async def test_a_redis_out_of_memory_refuses_jobs_but_lets_claimed_ones_end(queue: Queue) -> None:
    job_id = await submit(queue, 9)
    batch = await claim(queue)
    await queue.redis.config_set("maxmemory", 1)
    try:
        with pytest.raises(OutOfMemoryError):
            await submit(queue, 1)
        assert await renew(queue, batch, 1)
        await queue.complete(batch, report(batch))
        last = await claim(queue)
        assert await ended(queue, last, job_id) == [job_id]
    finally:
        await queue.redis.config_set("maxmemory", "512mb")
    await audit(queue)


async def test_a_queued_job_is_canceled_at_once_and_for_good(queue: Queue) -> None:
    job_id, other = await submit(queue, 5), await submit(queue, 1)
    job, is_now = await queue.cancel(job_id) or (None, False)
    assert job
    assert (job.status, job.is_finished, is_now) == ("canceled", True, True)
    assert list((await claim(queue)).requests) == [other]
    job, is_now = await queue.cancel(job_id) or (None, True)
    assert job
    assert (job.status, is_now) == ("canceled", False)
    assert await queue.cancel(new_id()) is None
    await audit(queue)


async def test_a_running_job_is_canceled_and_what_was_done_of_it_stays(queue: Queue) -> None:
    """Workers are told; what they deliver of it afterwards changes nothing, and batch mates are not disturbed."""
    heard: list[Order] = []
    listener = Queue.open(queue.settings)
    listener.listen(lambda: None, heard.append)
    await listener.read(new_id())
    job_id, mate = await submit(queue, 10), await submit(queue, 2)
    first, second = await claim(queue), await claim(queue)
    await queue.complete(first, report(first))
    await queue.cancel(job_id)
    job = await job_of(queue, job_id)
    assert (job.status, job.done, job.progress().images_done) == ("canceled", 8, 8)
    await eventually(lambda: is_done(heard == [Order("cancel", job_id)]))
    assert (await queue.renew({second.id: {job_id: 35, mate: 35}})).closed == (job_id,)
    assert await ended(queue, second, mate) == [mate]
    assert (await job_of(queue, job_id)).status == "canceled"
    await listener.close()
    await audit(queue)


async def is_done(condition: bool) -> bool:
    return condition


async def test_a_deleted_job_is_as_if_it_had_never_been(queue: Queue) -> None:
    """Queued, running or ended; a claim that is answered again leaves it out."""
    queued, running, done = await submit(queue, 3, OTHER_LANE), await submit(queue, 4), await submit(queue, 4)
    batch = await claim(queue, batch_id="b")
    await ended(queue, batch, done, jobs=[done])
    for job_id in (queued, running, done):
        assert await queue.delete(job_id)
        assert not await queue.delete(job_id)
        assert await queue.read(job_id) is None
        assert await queue.owner_of_gone(job_id) is None
    assert (await claim(queue, batch_id="b")).parts == ()
    assert await ended(queue, batch) == []
    assert await queue.jobs("", "", "", 10, "") == ([], "")
    await audit(queue)


async def test_a_job_that_is_not_begun_in_time_expires(queue: Queue) -> None:
    late, begun, patient = [await submit(queue, 1, deadline_seconds=seconds) for seconds in (0.002, 0.002, 600)]
    batch = await claim(queue, room=1)
    assert list(batch.requests) == [late]
    late, begun = begun, late
    outcomes = await eventually(queue.reap)
    assert [(job.job_id, job.outcome) for job in outcomes] == [(late, "expired")]
    job = await job_of(queue, late)
    assert (job.status, job.error and job.error.code) == ("expired", "deadline-passed")
    assert await ended(queue, batch, begun) == [begun]
    assert (await job_of(queue, patient)).status == "queued"
    assert await queue.redis.zcard(f"{queue.prefix}deadlines") == 1
    await audit(queue)


async def test_a_higher_priority_goes_first_however_long_its_path(queue: Queue) -> None:
    plain = await submit(queue, 1)
    high = await submit(queue, 1, OTHER_LANE, 500, priority=9)
    higher_than_plain = await submit(queue, 1, priority=1)
    assert (await job_of(queue, plain)).place == 2
    order = [await claim(queue, room=1) for _ in range(3)]
    assert [list(batch.requests) for batch in order] == [[high], [higher_than_plain], [plain]]
    submitted = [next(iter(batch.submitted.values())) for batch in order]
    assert submitted == sorted(submitted)


async def test_a_repeated_submission_with_a_key_is_the_same_job(queue: Queue) -> None:
    """For one caller; another body is refused, and after the job has gone the key makes another."""

    async def with_key(body: str, owner: str = "") -> Job | None:
        submission = Submission(new_id(), "sample", LANE, 1, 35, REQUEST, owner, idempotency_key="cafe", body_hash=body)
        return await queue.submit(submission)

    first, again, other = await with_key("aa"), await with_key("aa"), await with_key("aa", "someone")
    assert first
    assert again
    assert other
    assert first.id == again.id != other.id
    with pytest.raises(KeyReused):
        await with_key("bb")
    await queue.delete(first.id)
    after = await with_key("aa")
    assert after
    assert after.id != first.id
    await audit(queue)


async def test_jobs_are_listed_by_caller_the_last_first(queue: Queue) -> None:
    mine = [await submit(queue, 1, owner="me") for _ in range(7)]
    await submit(queue, 1, owner="you")
    await queue.cancel(mine[2])
    found, cursor = list[Job](), ""
    for length in (3, 3, 1):
        page, cursor = await queue.jobs("me", "", "", 3, cursor)
        assert len(page) == length
        found += page
    assert cursor == ""
    assert [job.id for job in found] == mine[::-1]
    assert [job.id for job in (await queue.jobs("me", "canceled", "", 3, ""))[0]] == [mine[2]]
    assert len((await queue.jobs("me", "", "digits", 100, ""))[0]) == 7
    assert await queue.jobs("me", "", "faces", 100, "") == ([], "")
    assert await queue.jobs("nobody", "", "", 100, "") == ([], "")


async def test_a_job_leaves_no_more_than_a_trace(queue: Queue, settings: Settings) -> None:
    """After its retention time; the list of its caller forgets it with the next submission."""
    brief = Queue(queue.redis, queue.blocking, settings.model_copy(update={"retention_seconds": 0.01}))
    job_id = await submit(brief, 1)
    await brief.cancel(job_id)
    await eventually(lambda: _is_forgotten(brief, job_id))
    assert await brief.owner_of_gone(job_id) == ""
    other = await submit(brief, 1)
    assert await queue.redis.zrange(f"{queue.prefix}jobs:", 0, -1) == [other]


async def _is_forgotten(queue: Queue, job_id: str) -> bool:
    return await queue.read(job_id) is None


async def test_what_comes_before_a_job_is_what_is_due_earlier_under_way_or_not(queue: Queue) -> None:
    """Short jobs pass long ones, also those that have begun."""
    long = await submit(queue, 10)
    batch = await claim(queue)
    await submit(queue, 4, OTHER_LANE, 100)
    assert sum((await queue.ahead(100, 0, "", MODELS)).before.values()) == 10 * 35 + 4 * 100
    assert sum((await queue.ahead(35, 0, "", MODELS)).before.values()) == 10 * 35
    assert sum((await queue.ahead(5, 0, "", MODELS)).before.values()) == 0
    assert sum((await queue.ahead(500, 9, "", MODELS)).before.values()) == 0
    await queue.renew({batch.id: {long: 80}})
    ahead = await queue.ahead(35, 0, "", MODELS)
    assert sum(ahead.before.values()) == 10 * 35 - 80
    assert sum(ahead.there.values()) == 10 * 35 - 80 + 4 * 100
    assert sum((await queue.left(long, MODELS)).before.values()) == 10 * 35 - 80


async def test_a_server_that_would_lose_jobs_is_not_fit(queue: Queue) -> None:
    assert await queue.shortcomings() == []
    for setting, value, before, words in (
        ("appendonly", "no", "yes", "append-only file"),
        ("maxmemory", "0", "512mb", "no maxmemory"),
    ):
        await queue.redis.config_set(setting, value)
        try:
            assert [words in each for each in await queue.shortcomings()] == [True]
        finally:
            await queue.redis.config_set(setting, before)
    await queue.redis.config_set("maxmemory-policy", "allkeys-lru")
    try:
        with pytest.raises(UnfitServer, match="maxmemory-policy allkeys-lru"):
            await queue.shortcomings()
    finally:
        await queue.redis.config_set("maxmemory-policy", "noeviction")


async def test_census_counts_what_waits(queue: Queue) -> None:
    for count, lane in ((3, LANE), (2, LANE), (1, OTHER_LANE)):
        await submit(queue, count, lane)
    await claim(queue, room=4)
    census = await queue.census(MODELS)
    assert {lane.lane: (lane.jobs, lane.images, lane.evaluations) for lane in census.lanes} == {
        LANE: (1, 1, 35),
        OTHER_LANE: (1, 1, 35),
    }
    assert census.running == {"digits-d2048": 2, "digits-d128": 0}
    assert census.evaluations == 6 * 35


async def test_workers_are_offered_while_they_live(queue: Queue, settings: Settings) -> None:
    hasty = Queue(queue.redis, queue.blocking, settings.model_copy(update={"heartbeat_seconds": 0.05}))
    await hasty.announce(worker_state())
    await eventually(lambda: _nobody_left(queue))
    await queue.announce(worker_state(facts(D=128), facts(D="inf")))
    await queue.announce(worker_state(facts(D="inf"), name="worker-2"))
    catalogue = await queue.catalogue()
    assert [(model.D, model.loaded_on) for model in catalogue.models.values()] == [
        (128, ("worker-1",)),
        ("inf", ("worker-1", "worker-2")),
    ]
    await queue.mark_lost("worker-2")
    await queue.retire("worker-1")
    after = await queue.catalogue()
    assert list(after.models) == ["digits-dinf"]
    assert not after.can_serve
    assert after.remembers("digits", 128)
    await queue.forget_workers(seen_before=time.time() - 60)
    assert not await _nobody_left(queue), "one that has announced itself since stays"
    await queue.forget_workers(seen_before=time.time() + 60)
    assert await _nobody_left(queue)


async def _nobody_left(queue: Queue) -> bool:
    return not (await queue.catalogue()).workers


async def test_a_claim_tells_whether_more_waits_and_takes_idle_tokens_back(queue: Queue) -> None:
    for _ in range(3):
        await submit(queue, 4)
    wake = f"{queue.prefix}wake:digits-d2048"
    assert (await claim(queue)).leaves_more
    assert await queue.redis.llen(wake) == 3
    assert not (await claim(queue)).leaves_more
    assert await queue.redis.llen(wake) == 0


async def test_waiting_ends_when_work_comes(queue: Queue) -> None:
    waiting = asyncio.create_task(queue.wait_for_work(MODELS, 60))
    await submit(queue, 1)
    await asyncio.wait_for(waiting, 10)


class Chaos:
    """Workers and clients that do anything at any time; `act` is one random thing."""

    def __init__(self, queue: Queue, seed: int):
        self.queue, self.rng = queue, random.Random(seed)
        self.held: list[Batch] = []
        self.jobs: list[str] = []

    async def act(self) -> None:
        acts = [self.submit, self.submit, self.claim, self.claim, self.lose, self.cancel, self.delete]
        if self.held:
            acts += [self.complete_one, self.complete_one, self.fail, self.hand_back]
        await self.rng.choice(acts)()

    async def submit(self) -> None:
        lane = self.rng.choice([LANE, OTHER_LANE, OTHER_MODEL])
        self.jobs.append(await submit(self.queue, self.rng.randint(1, 20), lane))

    async def claim(self) -> None:
        worker = f"worker-{self.rng.randrange(3)}"
        if batch := await next_batch(self.queue, self.rng.randint(1, 16), worker=worker):
            self.held.append(batch)

    async def cancel(self) -> None:
        if self.jobs:
            await self.queue.cancel(self.rng.choice(self.jobs))

    async def delete(self) -> None:
        """Of few jobs, or nothing would be left."""
        if self.jobs and self.rng.random() < 0.3:
            self.jobs.remove(job_id := self.rng.choice(self.jobs))
            assert await self.queue.delete(job_id)
            assert await self.queue.read(job_id) is None

    async def lose(self) -> None:
        await lose(self.queue, f"worker-{self.rng.randrange(3)}")

    async def complete_one(self) -> None:
        batch = self.rng.choice(self.held)
        await self.complete(batch, *self.rng.sample(sorted(batch.requests), self.rng.randint(1, len(batch.requests))))

    async def fail(self) -> None:
        batch = self.rng.choice(self.held)
        await self.queue.fail(batch, JobError(code="sampling-failed", detail="NaN"), self.some_job(batch))

    async def hand_back(self) -> None:
        batch = self.rng.choice(self.held)
        await self.queue.hand_back(batch, self.some_job(batch))

    def some_job(self, batch: Batch) -> str:
        """One of its jobs, or "" for all."""
        return self.rng.choice(["", *batch.requests])

    async def complete(self, batch: Batch, *jobs: str) -> None:
        answer = await self.queue.complete(batch, report(batch, jobs=jobs))
        if answer.to_write:
            await self.queue.complete(batch, report(batch, *answer.to_write, jobs=jobs))


@pytest.mark.parametrize("seed", range(5))
async def test_counters_never_drift_whatever_happens(queue: Queue, seed: int) -> None:
    """Losses, failures, late and repeated answers in any order; then everything is brought home."""
    chaos = Chaos(queue, seed)
    for _ in range(200):
        await chaos.act()
    await audit(queue)
    for late in chaos.held:
        await chaos.complete(late)
    while batch := await next_batch(queue, 16):
        await chaos.complete(batch)
    await audit(queue)
    assert {(await job_of(queue, job_id)).status for job_id in chaos.jobs} <= {"succeeded", "failed", "canceled"}
    listed, rest = await queue.jobs("", "", "", 1000, "")
    assert [job.id for job in listed] == chaos.jobs[::-1]
    assert rest == ""
    assert (await queue.census(MODELS)).evaluations == 0
