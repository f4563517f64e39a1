"""Waiting for changes of jobs, and the connection their messages come by, on a real server."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
from redis.asyncio import ConnectionPool
from redis.exceptions import ConnectionError as ConnectionLost
from redis.exceptions import RedisError, ResponseError

from service.events import REREAD_SECONDS, WAITERS_PER_SECOND, Events, Patience
from service.queue import Queue, new_id
from service.redis_client import Link
from tests.helpers import eventually
from tests.test_queue import claim, ended, job_of, submit

pytestmark = pytest.mark.anyio


async def awaited(events: Events, job_id: str, patience: Patience) -> "asyncio.Task[str]":
    """The status a waiter will be told, who is registered by now."""

    async def status() -> str:
        job = await events.follow(job_id, events.queue.read(job_id), patience)
        assert job is not None
        return job.status

    before = events.waiters

    async def is_registered() -> bool:
        return events.waiters > before

    waiting = asyncio.create_task(status())
    await eventually(is_registered)
    return waiting


async def test_a_waiter_is_told_the_next_change_of_status_or_the_end(queue: Queue) -> None:
    events, job_id = Events(queue), await submit(queue, 1)
    change = await awaited(events, job_id, Patience(60))
    end = await awaited(events, job_id, Patience(60, wish="end"))
    batch = await claim(queue)
    assert await asyncio.wait_for(change, 10) == "running"
    assert not end.done()
    await ended(queue, batch, job_id)
    assert await asyncio.wait_for(end, 10) == "succeeded"
    assert events.waiters == 0


async def test_nobody_waits_for_what_has_ended_or_is_not_there(queue: Queue) -> None:
    events, job_id = Events(queue), await submit(queue, 1)
    await ended(queue, await claim(queue), job_id)
    job = await events.follow(job_id, queue.read(job_id), Patience(60))
    assert job == await job_of(queue, job_id)
    unknown = new_id()
    assert await events.follow(unknown, queue.read(unknown), Patience(60)) is None


async def test_patience_ends_with_its_time_or_when_told(queue: Queue) -> None:
    events, job_id = Events(queue), await submit(queue, 1)
    job = await asyncio.wait_for(events.follow(job_id, queue.read(job_id), Patience(0.01)), 10)
    assert (job and job.status) == "queued"
    patience = Patience(60)
    waiting = await awaited(events, job_id, patience)
    patience.end()
    assert await asyncio.wait_for(waiting, 10) == "queued"
    assert events.waiters == 0


async def test_news_wake_at_once_and_then_with_a_distance() -> None:
    patience = Patience(60, wish="news")
    patience.wake_after(0.0)
    assert await asyncio.wait_for(patience.wait(60), 10)
    before = asyncio.get_running_loop().time()
    for seconds in (0.1, 0.0):
        patience.wake_after(seconds)
    assert await asyncio.wait_for(patience.wait(60), 10)
    assert asyncio.get_running_loop().time() - before >= 0.1


async def test_who_waits_with_many_others_looks_less_often(queue: Queue) -> None:
    events = Events(queue)
    alone = events._spread(REREAD_SECONDS)
    events.waiters = 10 * WAITERS_PER_SECOND
    in_a_crowd = [events._spread(REREAD_SECONDS) - REREAD_SECONDS for _ in range(100)]
    assert alone == REREAD_SECONDS
    assert all(5 <= seconds <= 15 for seconds in in_a_crowd)
    assert len(set(in_a_crowd)) > 50, "not all of them at once"


async def test_a_waiter_outlives_the_loss_of_the_connection(queue: Queue) -> None:
    events, job_id = Events(queue), await submit(queue, 1)
    end = await awaited(events, job_id, Patience(60, wish="end"))
    await queue.redis.client_kill_filter(_type="pubsub")
    # The first call after it may come before the loss is noticed.
    with suppress(ConnectionLost):
        await queue.read(job_id)
    await ended(queue, await claim(queue), job_id)
    assert await asyncio.wait_for(end, 10) == "succeeded"


async def test_a_waiter_outlives_a_job_that_cannot_be_read(queue: Queue) -> None:
    """It is told with the next change, for what it waits for goes on."""
    events, job_id = Events(queue), await submit(queue, 1)
    end = await awaited(events, job_id, Patience(60, wish="end"))
    batch, key, away = await claim(queue), f"{queue.prefix}job:{job_id}", f"{queue.prefix}away"
    await queue.redis.rename(key, away)
    await queue.redis.set(key, "no job")
    before = await refusals(queue)

    async def has_failed() -> bool:
        return await refusals(queue) > before

    await queue.redis.publish(f"{queue.prefix}events", f"{job_id} succeeded")
    await eventually(has_failed)
    await queue.redis.rename(away, key)
    assert not end.done()
    await ended(queue, batch, job_id)
    assert await asyncio.wait_for(end, 10) == "succeeded"


async def refusals(queue: Queue) -> int:
    """How often the server has answered with an error."""
    return int((await queue.redis.info("stats"))["total_error_replies"])


@pytest.fixture
async def pool(redis_url: str) -> AsyncIterator[ConnectionPool]:
    pool = ConnectionPool.from_url(redis_url, protocol=3, decode_responses=True)
    yield pool
    await pool.aclose()


@pytest.fixture
async def link(pool: ConnectionPool) -> AsyncIterator[Link]:
    link = Link(pool)
    yield link
    await link.close()


async def test_every_caller_of_a_link_gets_its_own_answer(link: Link) -> None:
    async def echo(k: int) -> bool:
        return bool(await link.call("ECHO", f"{k}") == f"{k}")

    assert all(await asyncio.gather(*(echo(k) for k in range(200))))


async def test_an_error_and_a_caller_that_leaves_disturb_nobody(link: Link) -> None:
    leaving, wrong, right = (
        asyncio.create_task(link.call(*words)) for words in (("ECHO", "1"), ("NONSENSE",), ("ECHO", "3"))
    )
    await asyncio.sleep(0)
    leaving.cancel()
    with pytest.raises(ResponseError, match="unknown command"):
        await wrong
    assert await right == "3"


async def test_a_lost_link_fails_what_is_under_way_and_opens_again(link: Link, pool: ConnectionPool) -> None:
    told: list[str] = []
    link.subscribe("news", told.append)
    own = await link.call("CLIENT", "ID")
    waiting = asyncio.create_task(link.call("BLPOP", f"nothing-{new_id()}", 0))
    other = Link(pool)
    await other.call("CLIENT", "KILL", "ID", own)
    await other.close()
    with pytest.raises(ConnectionLost):
        await waiting
    assert await link.call("PUBLISH", "news", "hello") == 1
    assert told == ["hello"]


async def test_a_subscriber_that_fails_ends_no_link(link: Link, capsys: pytest.CaptureFixture[str]) -> None:
    told: list[str] = []

    def take(message: str) -> None:
        if message == "wrong":
            raise ValueError("of the subscriber")
        told.append(message)

    link.subscribe("news", take)
    for message in ("wrong", "right"):
        await link.call("PUBLISH", "news", message)
    assert told == ["right"]
    assert "message not understood" in "".join(capsys.readouterr())


async def test_a_silent_server_is_taken_for_lost(pool: ConnectionPool) -> None:
    link = Link(pool, timeout_seconds=1)
    with pytest.raises(RedisError):
        await asyncio.wait_for(link.call("BLPOP", f"nothing-{new_id()}", 0), 10)
    assert await link.call("ECHO", "again") == "again"
    await link.close()
