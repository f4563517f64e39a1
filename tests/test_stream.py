"""What a stream of events says of a job, and when it is predicted to end."""

import asyncio
import base64
import json
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import aclosing
from io import BytesIO
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from fastapi import Request
from PIL import Image

from bench.running import Service, running
from service.access import Anyone, Caller, Keys
from service.api import create_app
from service.forecast import Forecast
from service.job import Eta, Job, Shown
from service.picture import array_bytes
from service.queue import Queue
from service.routes import events
from service.server import Server
from service.settings import Settings
from service.stream import Kind, Known, Seen, news
from tests.helpers import eventually, metric
from tests.test_queue import claim, ended, job_of, lose, submit

pytestmark = pytest.mark.anyio

WALK = ["queued", "started", "progress", "preview", "finished"]
GOOD: dict[str, Any] = {"dataset": "digits", "D": 2048}


def request_of(client: httpx.AsyncClient, caller: Caller | None = None) -> Request:
    """A request to the application of a client, as one of its routes has it."""
    app = client._transport.app  # type: ignore[attr-defined]
    return Request({"type": "http", "app": app, "state": {"caller": caller or Anyone()}})


def kinds(job: Job, event_id: str = "") -> list[Kind]:
    return [kind for kind, _ in news(Known.parse([job.id], event_id)[job.id], job)]


def ids(job: Job, event_id: str = "") -> list[str]:
    return [str(Known({job.id: seen})) for _, seen in news(Known.parse([job.id], event_id)[job.id], job)]


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with running(compile=False) as service:
        yield service


async def test_whatever_a_client_heard_last_it_is_told_the_rest_and_nothing_twice(queue: Queue) -> None:
    job_id = await submit(queue, 4)
    waiting = await job_of(queue, job_id)
    assert kinds(waiting) == ["queued"]
    (heard,) = ids(waiting)
    assert kinds(waiting, heard) == []
    batch = await claim(queue)
    await queue.renew({batch.id: {job_id: 12}}, {job_id: {0: Shown(3, 2.5)}})
    running = await job_of(queue, job_id)
    assert running.previews == {0: Shown(3, 2.5)}
    assert kinds(running) == ["queued", "started", "progress", "preview"]
    assert kinds(running, heard) == ["started", "progress", "preview"]
    for told, each in enumerate(ids(running), 1):
        assert kinds(running, each) == ["queued", "started", "progress", "preview"][told:]
    last = ids(running)[-1]
    await ended(queue, batch, job_id)
    done = await job_of(queue, job_id)
    assert kinds(done) == ["queued", "started", "finished"]
    assert kinds(done, last) == ["finished"]
    assert Known.parse([job_id], ids(done)[-1]).is_of_the_end
    assert not Known.parse([job_id], last).is_of_the_end


async def test_progress_that_is_lost_with_a_worker_is_told(queue: Queue) -> None:
    job_id = await submit(queue, 4)
    batch = await claim(queue)
    await queue.renew({batch.id: {job_id: 12}})
    heard = ids(await job_of(queue, job_id))[-1]
    await lose(queue)
    again = await job_of(queue, job_id)
    assert again.progress().evaluations_done == 0
    assert kinds(again, heard) == ["progress"]
    assert kinds(again, ids(again, heard)[-1]) == []


async def test_a_job_that_never_began_is_never_told_to_have_started(queue: Queue) -> None:
    job_id = await submit(queue, 4)
    await queue.cancel(job_id)
    assert kinds(await job_of(queue, job_id)) == ["queued", "finished"]


@pytest.mark.parametrize(
    "event_id",
    ["", "x", "running", "1.2", "01234567.running.-1.0.0", "01234567.done.1.0.0", "76543210.running.1.0.0", "9" * 100],
)
async def test_an_id_that_is_none_of_ours_means_that_nothing_is_known(event_id: str) -> None:
    assert Known.parse(["0123456789abcdef"], event_id) == {"0123456789abcdef": Seen()}


async def test_an_id_that_was_made_up_keeps_nobody_from_the_truth(queue: Queue) -> None:
    job_id = await submit(queue, 4)
    batch = await claim(queue)
    running = await job_of(queue, job_id)
    assert kinds(running, f"{job_id[:8]}.running.99999.0.99999") == ["progress"]
    assert kinds(running, f"{job_id[:8]}.succeeded.1.0.0") == ["queued", "started"]
    await ended(queue, batch, job_id)
    done = await job_of(queue, job_id)
    assert kinds(done, f"{job_id[:8]}.running.99999.0.99999") == ["finished"]
    other = await submit(queue, 4)
    known = Known.parse([other, job_id], ids(done)[-1])
    assert known == {other: Seen(), job_id: Seen("succeeded", 140)}


async def test_streams_end_when_the_server_is_about_to(client: httpx.AsyncClient, queue: Queue, offered: None) -> None:
    job = (await client.post("/v1/samples", json=GOOD)).json()
    request = request_of(client)
    door, said = request.app.state.door, []
    async with aclosing(events._stream(request, Known.parse([job["id"]], ""), float("inf"))) as stream:
        async for text in stream:
            said.append(text)
            if len(said) == 2:
                door.drain()
    assert said[0] == "retry: 1000\n\n"
    assert said[1].startswith(f"id: {job['id'][:8]}.queued.0.0.0\nevent: queued\ndata: {{")
    assert len(said) == 2
    assert door.events.waiters == door.events.watchers == 0
    again = await client.get(job["links"]["events"])  # what there is to say, at once, and no more
    assert again.text == "".join(said)


async def test_a_server_that_closes_answers_those_who_began_to_wait_since_it_drains(
    client: httpx.AsyncClient, queue: Queue, offered: None
) -> None:
    job = (await client.post("/v1/samples", json=GOOD)).json()
    app = request_of(client).app
    events, server = app.state.door.events, Server(uvicorn.Config(app), app, drain_seconds=0.2)
    server.should_exit = True
    assert not await server.on_tick(1)

    async def has_closed() -> bool:
        return await server.on_tick(1)

    async def is_waited_for() -> bool:
        return bool(events.waiters)

    waiting = asyncio.create_task(client.get(job["links"]["self"], params={"wait": 60}))
    await eventually(is_waited_for)
    await eventually(has_closed)
    assert (await asyncio.wait_for(waiting, 10)).json()["status"] == "queued"


async def test_streams_end_with_the_key_that_they_were_asked_for_with(
    settings: Settings, queue: Queue, offered: None
) -> None:
    keys = Keys(settings.data_dir.parent / "keys.json")
    key = keys.add(Caller(name="alice"))
    app = create_app(settings.model_copy(update={"keys_file": keys.path}))
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=transport, base_url="http://localhost", headers={"Authorization": f"Bearer {key}"}
        ) as client,
    ):
        job = (await client.post("/v1/samples", json=GOOD)).json()
        request = request_of(client, app.state.keys.caller(key))
        async with aclosing(events._stream(request, Known.parse([job["id"]], ""), float("inf"))) as stream:
            assert "event: queued" in [await anext(stream) for _ in range(2)][1]
            keys.revoke("alice")
            await queue.cancel(job["id"])
            assert [text async for text in stream] == []


async def test_half_of_all_connections_are_kept_from_streams(
    client: httpx.AsyncClient, offered: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "most_connections", lambda: 2)
    jobs = [(await client.post("/v1/samples", json=GOOD)).json() for _ in range(2)]
    request = request_of(client)
    async with aclosing(events._stream(request, Known.parse([jobs[0]["id"]], ""), float("inf"))) as stream:
        assert len([await anext(stream) for _ in range(2)]) == 2
        refused = await client.get(jobs[1]["links"]["events"])
    assert (refused.status_code, refused.json()["code"]) == (503, "too-many-streams")
    assert (await client.head(jobs[1]["links"]["events"])).status_code == 200


async def test_a_stream_ends_when_redis_is_lost(
    settings: Settings, client: httpx.AsyncClient, queue: Queue, offered: None
) -> None:
    job = (await client.post("/v1/samples", json=GOOD)).json()
    request = request_of(client)
    async with aclosing(events._stream(request, Known.parse([job["id"]], ""), float("inf"))) as stream:
        assert len([await anext(stream) for _ in range(2)]) == 2
        await queue.redis.set(f"{queue.prefix}job:{job['id']}", "no job", xx=True)  # every script fails on it
        request.app.state.door.events._wake(f"{job['id']} running")
        assert [text async for text in stream] == []


async def test_a_silent_stream_shows_that_it_lives(
    client: httpx.AsyncClient, offered: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "HEARTBEAT_SECONDS", 0)
    job = (await client.post("/v1/samples", json=GOOD)).json()
    heard = Known.parse([job["id"]], f"{job['id'][:8]}.queued.0.0.0")
    async with aclosing(events._stream(request_of(client), heard, float("inf"))) as stream:
        assert [await anext(stream) for _ in range(2)] == ["retry: 1000\n\n", ": heartbeat\n\n"]


async def test_a_stream_of_no_job_or_of_one_all_told_is_none(
    client: httpx.AsyncClient, queue: Queue, offered: None
) -> None:
    assert (await client.get(f"/v1/jobs/{'0' * 32}/events")).status_code == 404
    job = (await client.post("/v1/samples", json=GOOD)).json()
    head = await client.head(f"/v1/jobs/{job['id']}/events")
    assert head.headers["content-type"] == "text/event-stream; charset=utf-8"
    await client.post(f"/v1/jobs/{job['id']}/cancel")
    told = await client.get(f"/v1/jobs/{job['id']}/events", headers={"Last-Event-ID": f"{job['id'][:8]}.queued.0.0.0"})
    assert "event: finished" in told.text
    last = told.text.partition("id: ")[2].partition("\n")[0]
    over = await client.get(f"/v1/jobs/{job['id']}/events", headers={"Last-Event-ID": last})
    assert (over.status_code, over.content) == (204, b"")


def test_a_stream_shows_a_job_from_its_queue_to_its_end(service: Service) -> None:
    """Its previews become what it would be: a later one is closer to the result than the first.

    The job is so long that there are previews on any machine, and canceled when there are some.
    """
    asked = {**GOOD, "label": 3, "seed": 1, "columns": 8}
    job = service.submit(**asked, count=64, steps=256, previews=64)
    told, previews = [], []
    with service.client.stream("GET", job["links"]["events"]) as stream:
        lines = stream.iter_lines()
        for line in lines:
            name, _, value = line.partition(": ")
            if name == "event":
                told.append(value)
            elif name == "data" and told[-1] == "preview":
                previews.append(json.loads(value))
                if len(previews) == 3:
                    service.client.post(job["links"]["cancel"])
            elif name == "data":
                latest = json.loads(value)
    assert latest["status"] == "canceled"
    assert [kind for kind in WALK if kind in told] == WALK
    assert Counter(told)["finished"] == 1
    assert [each["evaluation"] for each in previews] == sorted({each["evaluation"] for each in previews})
    assert all(each["evaluations"] == 511 and 0.002 <= each["sigma"] < 80 for each in previews)
    done = service.ended(service.submit(**asked, count=64, steps=9)["id"])
    with Image.open(BytesIO(service.client.get(done["links"]["grid"]).content)) as grid:
        end = np.asarray(grid, dtype=float)
    shown = [np.asarray(Image.open(BytesIO(base64.b64decode(each["png"]))), dtype=float) for each in previews]
    assert all(picture.shape == end.shape for picture in shown)
    assert np.abs(shown[-1] - end).mean() < np.abs(shown[0] - end).mean()
    again = service.client.get(job["links"]["events"], headers={"Last-Event-ID": f"{job['id'][:8]}.queued.0.0.0"})
    assert again.text.count("event: ") == 2


def test_images_do_not_depend_on_previews(service: Service) -> None:
    request = {**GOOD, "count": 5, "seed": 7, "steps": 9}
    jobs = [service.ended(service.submit(**request, previews=previews)["id"]) for previews in (0, 64)]
    grids = [service.client.get(job["links"]["grid"]).content for job in jobs]
    assert grids[0] == grids[1]


def test_several_jobs_are_told_of_on_one_stream(service: Service) -> None:
    """Whoever lost it in the middle is told the rest of all of them."""
    jobs = [service.submit(**GOOD, count=4, steps=steps) for steps in (5, 9, 18)]
    path = "/v1/events?" + "&".join(f"job={job['id']}" for job in jobs)
    whole = told_by(service, path, "")
    assert {each: whole.count((each, "finished")) for each, _ in whole} == {job["id"]: 1 for job in jobs}
    ids = [line[4:] for line in service.client.get(path).text.splitlines() if line.startswith("id: ")]
    rest = told_by(service, path, ids[3])
    assert rest == told_by(service, path, "")[4:]
    assert service.client.get(path, headers={"Last-Event-ID": ids[-1]}).status_code == 204
    assert service.client.get(f"{path}&job={'0' * 32}").status_code == 404
    assert service.client.get("/v1/events").status_code == 422


def told_by(service: Service, path: str, last: str) -> list[tuple[str, str]]:
    """Of which job, and what, a stream tells after an event."""
    text = service.client.get(path, headers={"Last-Event-ID": last}).text
    blocks = [dict(line.split(": ", 1) for line in block.splitlines()) for block in text.split("\n\n") if block]
    data = [(json.loads(block["data"]), block["event"]) for block in blocks if "event" in block]
    return [(each.get("job") or each["id"], event) for each, event in data]


async def test_a_preview_is_grey_where_nothing_is_known_and_missing_when_the_store_lost_it(
    settings: Settings, client: httpx.AsyncClient, queue: Queue, offered: None
) -> None:
    job = (await client.post("/v1/samples", json=GOOD | {"count": 4, "previews": 4})).json()
    batch = await claim(queue, 2)
    await queue.renew({batch.id: {job["id"]: 12}}, {job["id"]: {0: Shown(6, 2.5)}})
    door = client._transport.app.state.door  # type: ignore[attr-defined]
    assert await events._preview(door, await job_of(queue, job["id"])) is None
    door.store.write(job["id"], "part-0-preview.npy", array_bytes(np.full((2, 8, 8, 1), 255, np.uint8)))
    preview = json.loads(await events._preview(door, await job_of(queue, job["id"])) or "")
    assert (preview["evaluation"], preview["evaluations"], preview["sigma"]) == (6, 35, 2.5)
    picture = np.asarray(Image.open(BytesIO(base64.b64decode(preview["png"]))))
    assert (picture[1:9, 1:9] == 255).all()
    assert (picture[10:18, 1:9] == 128).all()


class Clock:
    """A clock that is moved."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def promised(forecast: Forecast, clock: Clock, job_id: str, truth: float) -> Eta:
    """What was predicted for a job of ten seconds by its paces, which then took so many."""
    eta = forecast.promise(job_id, "running", "toy", 10.0)
    clock.now += truth
    forecast.ended(job_id, "succeeded")
    return eta


def test_predictions_learn_their_spread() -> None:
    """Of jobs that take 1 to 3 times as long as their paces say, half end within p50, and nine in ten within p90."""
    clock, rng, inside = Clock(), random.Random(1), Counter[str]()
    forecast = Forecast(clock)
    assert forecast.eta(10.0) == Eta(p50=11.5, p90=31.0)
    for k in range(2000):
        truth = 10.0 * rng.uniform(1, 3)
        eta = promised(forecast, clock, str(k), truth)
        inside["p50"] += truth <= eta.p50
        inside["p90"] += truth <= eta.p90
    assert inside["p50"] / 2000 == pytest.approx(0.5, abs=0.05)
    assert inside["p90"] / 2000 == pytest.approx(0.9, abs=0.03)
    assert forecast.eta(10.0).p90 == pytest.approx(28, rel=0.1)
    assert forecast.eta(1000.0).p50 == 1150.0  # of which nothing was learned


def test_jobs_that_end_together_teach_once() -> None:
    """A burst says little of the next one: they all had the same luck."""
    clock = Clock()
    forecast = Forecast(clock)
    for k in range(100):
        forecast.promise(str(k), "queued", "toy", 10.0)
    clock.now += 10.0
    for k in range(100):
        forecast.ended(str(k), "succeeded")
    assert forecast.eta(10.0) == Eta(p50=11.0, p90=30.0)


def test_predictions_are_counted_where_the_truth_fell_once_for_every_state() -> None:
    clock = Clock()
    forecast = Forecast(clock)

    def counted() -> list[float]:
        return [
            metric("pfgmpp_eta_total", model="toy", range=each) for each in ("below_p50", "p50_to_p90", "above_p90")
        ]

    before = counted()
    for job_id, truth in (("a", 11.0), ("b", 20.0), ("c", 45.0)):
        forecast.promise(job_id, "running", "toy", 10.0)
        promised(forecast, clock, job_id, truth)
        forecast.ended(job_id, "succeeded")
    for how in ("failed", "canceled", "expired"):
        forecast.promise("d", "queued", "toy", 10.0)
        forecast.ended("d", how)
    assert [now - then for now, then in zip(counted(), before, strict=True)] == [1, 1, 1]
