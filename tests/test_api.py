"""The HTTP contract, on a real Redis: what is accepted, and how everything else is refused."""

import asyncio
import gzip
import json
import re
from typing import Any

import httpx
import pytest

from service import api
from service.api import create_app
from service.catalogue import Pace
from service.events import Events
from service.job import JobError
from service.messages import Order
from service.problems import ProblemDocument
from service.queue import Queue, new_id
from service.redis_client import cancel
from service.settings import Settings
from service.store import LocalStore
from tests.helpers import eventually, facts, next_batch, worker_state
from tests.test_queue import ended

pytestmark = pytest.mark.anyio

GOOD = {"dataset": "digits", "D": 2048}


def problem(response: httpx.Response, status: int, code: str) -> ProblemDocument:
    """The problem in a response, which must be one of this status and code."""
    assert (response.status_code, response.headers["content-type"]) == (status, "application/problem+json")
    document = ProblemDocument.model_validate(response.json())
    assert (document.status, document.code) == (status, code), document.detail
    assert document.instance == response.request.url.raw_path.decode().partition("?")[0]
    return document


@pytest.mark.usefixtures("offered")
async def test_a_sample_is_accepted_with_everything_filled_in(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/samples", json=GOOD | {"count": 3, "seed": 5, "labels": [7, "0", 3]})
    job = response.json()
    assert response.status_code == 202
    assert response.headers["location"] == f"/v1/jobs/{job['id']}"
    assert (job["status"], job["kind"], job["queue_position"]) == ("queued", "sample", 0)
    assert job["seeds"] == [5, 6, 7]
    assert job["request"]["labels"] == [7, 0, 3]
    assert (job["request"]["steps"], job["request"]["columns"], job["request"]["scale"]) == (18, 2, 1)
    assert job["progress"] == {"evaluations_done": 0, "evaluations_total": 105, "images_done": 0, "images_total": 3}
    assert job["created_at"].endswith("Z")
    assert (await client.get(job["links"]["self"])).json() == job


@pytest.mark.usefixtures("offered")
@pytest.mark.parametrize("D", [2048, 2048.0, "inf"])
async def test_D_may_be_written_in_several_ways(client: httpx.AsyncClient, D: object) -> None:
    response = await client.post("/v1/samples", json={"dataset": "digits", "D": D})
    assert response.json()["model"]["D"] == (D if D == "inf" else 2048)


@pytest.mark.usefixtures("offered")
async def test_seeds_are_drawn_when_left_out_and_stay_readable_in_javascript(client: httpx.AsyncClient) -> None:
    jobs = [(await client.post("/v1/samples", json=GOOD | {"count": 2})).json() for _ in range(2)]
    (a, b), (c, d) = (job["seeds"] for job in jobs)
    assert (b, d) == (a + 1, c + 1)
    assert a != c
    assert max(b, d) < 2**53


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"D": 0}, "D"),
    ({"D": -3}, "D"),
    ({"D": "2048"}, "D"),
    ({"D": True}, "D"),
    ({"D": None}, "D"),
    ({"D": [1]}, "D"),
    ({"D": 10**400}, "D"),
    ({"dataset": 5}, "dataset"),
    ({"dataset": "d" * 65}, "dataset"),
    ({"steps": 1}, "steps"),
    ({"steps": 257}, "steps"),
    ({"steps": 18.0}, "steps"),
    ({"steps": "18"}, "steps"),
    ({"steps": 10**30}, "steps"),
    ({"solver": "magic"}, "solver"),
    ({"solver": 3}, "solver"),
    ({"precision": "quick"}, "precision"),
    ({"count": 0}, "count"),
    ({"count": 257}, "count"),
    ({"count": 10**20}, "count"),
    ({"count": 10**400}, "count"),
    ({"count": True}, "count"),
    ({"count": 2.5}, "count"),
    ({"priority": 10}, "priority"),
    ({"priority": -1}, "priority"),
    ({"deadline_seconds": 0}, "deadline_seconds"),
    ({"deadline_seconds": 1e9}, "deadline_seconds"),
    ({"seed": -1}, "seed"),
    ({"seed": 2**63}, "seed"),
    ({"seed": 2**63 - 1, "count": 2}, "seed"),
    ({"seed": 1.5}, "seed"),
    ({"seeds": [1, 2]}, "seeds"),
    ({"seeds": [1], "seed": 1}, "seeds"),
    ({"seeds": [-1]}, "seeds.0"),
    ({"seeds": [1, "2"], "count": 2}, "seeds.1"),
    ({"seeds": 7}, "seeds"),
    ({"label": 10}, "label"),
    ({"label": -1}, "label"),
    ({"label": "ten"}, "label"),
    ({"label": 1.0}, "label"),
    ({"label": False}, "label"),
    ({"label": 10**30}, "label"),
    ({"labels": [1, 2]}, "labels"),
    ({"labels": [3], "label": 3}, "labels"),
    ({"labels": [3, 99], "count": 2}, "labels.1"),
    ({"labels": [[3]]}, "labels.0"),
    ({"columns": 0}, "columns"),
    ({"columns": 2}, "columns"),
    ({"scale": 0}, "scale"),
    ({"scale": 17}, "scale"),
    ({"colour": "red"}, "colour"),
    ({"dataset": "faces", "D": 128, "label": 1}, "label"),
    ({"dataset": "faces", "D": 128, "steps": 51}, "steps"),
]


@pytest.mark.usefixtures("offered")
@pytest.mark.parametrize(("change", "field"), WRONG, ids=[json.dumps(change)[:40] for change, _ in WRONG])
async def test_a_wrong_field_is_named_and_nothing_is_queued(
    client: httpx.AsyncClient, queue: Queue, change: dict[str, Any], field: str
) -> None:
    document = problem(await client.post("/v1/samples", json=GOOD | change), 422, "invalid-request")
    assert field in {error.field for error in document.errors}
    assert field in document.detail
    assert (await queue.census([])).evaluations == 0


@pytest.mark.usefixtures("offered")
async def test_all_wrong_fields_are_named_at_once(client: httpx.AsyncClient) -> None:
    document = problem(
        await client.post("/v1/samples", json=GOOD | {"steps": 999, "count": 999}), 422, "invalid-request"
    )
    assert {error.field for error in document.errors} == {"steps", "count"}


@pytest.mark.usefixtures("offered")
async def test_a_grid_too_large_to_draw_is_refused(client: httpx.AsyncClient, queue: Queue) -> None:
    await queue.announce(worker_state(facts(resolution=256)))
    wide = GOOD | {"count": 256, "scale": 16}
    document = problem(await client.post("/v1/samples", json=wide), 422, "invalid-request")
    assert "scale" in {error.field for error in document.errors}


BROKEN = {
    "empty": b"",
    "cut off": b'{"dataset": "digits", "D":',
    "no object": b'["digits"]',
    "a number": b"17",
    "NaN": b'{"dataset": "digits", "D": NaN}',
    "Infinity": b'{"dataset": "digits", "D": Infinity}',
    "too large": b'{"dataset": "digits", "D": 1e999}',
    "not UTF-8": b'{"dataset": "\xff\xfe", "D": 1}',
    "lone surrogate": b'{"dataset": "\\ud800", "D": 1}',
    "null byte": b'{"dataset": "\\u0000", "D": "\\u0000"}',
    "deep": b'{"dataset": ' + b"[" * 100_000 + b"]" * 100_000 + b', "D": 1}',
    "long integer": b'{"dataset": "digits", "D": ' + b"9" * 10_000 + b"}",
    "many errors": b'{"dataset": "digits", "D": 1, "seeds": [' + b"-1," * 100_000 + b"1]}",
}


@pytest.mark.usefixtures("offered")
@pytest.mark.parametrize("body", BROKEN.values(), ids=BROKEN.keys())
async def test_a_broken_body_is_refused(client: httpx.AsyncClient, queue: Queue, body: bytes) -> None:
    response = await client.post("/v1/samples", content=body, headers={"content-type": "application/json"})
    problem(response, 422, "invalid-request")
    assert len(response.content) < 20_000
    assert (await queue.census([])).evaluations == 0


@pytest.mark.usefixtures("offered")
async def test_a_large_body_is_refused_by_its_size(client: httpx.AsyncClient) -> None:
    body = json.dumps(GOOD | {"seeds": list(range(300_000))}).encode()
    assert len(body) > 1_000_000
    response = await client.post("/v1/samples", content=body, headers={"content-type": "application/json"})
    problem(response, 413, "body-too-large")


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
async def test_a_body_that_is_not_said_to_be_json_is_refused(client: httpx.AsyncClient, kind: str) -> None:
    response = await client.post("/v1/samples", content=json.dumps(GOOD), headers={"content-type": kind})
    assert "application/json" in problem(response, 415, "not-json").detail


@pytest.mark.usefixtures("offered")
@pytest.mark.parametrize(("dataset", "D", "field"), [("cats", 2048, "dataset"), ("digits", 7, "D")])
async def test_an_unknown_model_is_refused_with_what_exists(
    client: httpx.AsyncClient, dataset: str, D: float, field: str
) -> None:
    document = problem(await client.post("/v1/samples", json={"dataset": dataset, "D": D}), 422, "unknown-model")
    assert "digits with D = 2048, inf" in document.detail
    assert [error.field for error in document.errors] == [field]


async def test_without_a_worker_submissions_are_refused_for_now(client: httpx.AsyncClient, queue: Queue) -> None:
    response = await client.post("/v1/samples", json=GOOD)
    problem(response, 503, "no-worker")
    assert int(response.headers["retry-after"]) >= 1
    await queue.announce(worker_state(facts(D="inf"), facts()))
    await queue.announce(worker_state(facts(D="inf")))
    problem(await client.post("/v1/samples", json=GOOD), 503, "no-worker")


async def test_a_full_queue_says_when_to_come_back(settings: Settings, queue: Queue) -> None:
    app = create_app(settings.model_copy(update={"max_queued_evaluations": 1000}))
    await queue.announce(worker_state(evaluations_per_second=10.0))
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
    ):
        assert (await client.post("/v1/samples", json=GOOD | {"count": 28})).status_code == 202
        response = await client.post("/v1/samples", json=GOOD | {"count": 20})
        assert "1,000" in problem(response, 503, "queue-full").detail
        assert int(response.headers["retry-after"]) == (28 + 20) * 35 // 10 - 100


async def test_a_full_redis_is_named_as_what_is_full(client: httpx.AsyncClient, queue: Queue, offered: None) -> None:
    await queue.redis.config_set("maxmemory", 1)
    try:
        response = await client.post("/v1/samples", json=GOOD)
    finally:
        await queue.redis.config_set("maxmemory", "512mb")
    assert "maxmemory" in problem(response, 503, "queue-full").detail


async def test_what_is_done_beside_answering_begins_anew_after_a_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "DEFECT_PAUSE_SECONDS", 0)
    ways, is_done = [ValueError("a defect"), None], asyncio.Event()

    async def act() -> None:
        if error := ways.pop(0):
            raise error
        is_done.set()
        await asyncio.Event().wait()

    keeping = asyncio.create_task(api._keep_up(act))
    await asyncio.wait_for(is_done.wait(), 10)
    await cancel([keeping])


async def test_without_redis_everything_says_so(settings: Settings) -> None:
    app = create_app(settings.model_copy(update={"redis_url": "redis://127.0.0.1:1"}))
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
    ):
        for response in (
            await client.post("/v1/samples", json=GOOD),
            await client.get(f"/v1/jobs/{new_id()}"),
            await client.get("/v1/models"),
        ):
            problem(response, 503, "queue-unavailable")
            assert int(response.headers["retry-after"]) >= 1
        lines = (await client.get("/metrics")).text.splitlines()
        assert "pfgmpp_redis_up 0.0" in lines
        assert any(line.startswith('pfgmpp_jobs_rejected_total{reason="queue-unavailable"}') for line in lines)
        assert not any(line.startswith(("pfgmpp_queue", "pfgmpp_workers")) for line in lines)
        assert "Redis" in problem(await client.get("/readyz"), 503, "not-ready").detail
        assert (await client.get("/livez")).status_code == 200


async def test_ready_only_with_a_warm_model(client: httpx.AsyncClient, queue: Queue) -> None:
    assert "model" in problem(await client.get("/readyz"), 503, "not-ready").detail
    await queue.announce(worker_state())
    assert (await client.get("/readyz")).json() == {"status": "ready", "models": 1, "workers": 1}
    await queue.mark_lost("worker-1")
    problem(await client.get("/readyz"), 503, "not-ready")
    assert (await client.post("/v1/samples", json=GOOD)).status_code == 202


@pytest.mark.usefixtures("offered")
async def test_models_are_listed_and_found(client: httpx.AsyncClient) -> None:
    listed = (await client.get("/v1/models")).json()
    assert [(model["dataset"], model["D"]) for model in listed] == [("digits", 2048), ("digits", "inf"), ("faces", 128)]
    assert (await client.get("/v1/models/digits/2048")).json() == listed[0]
    assert (await client.get("/v1/models/digits/inf")).json()["loaded_on"] == ["worker-1"]
    for path in ("digits/7", "digits/x", "cats/2048", "digits/-1", "digits/nan", "digits/2_048", "digits/1e999"):
        assert "digits with D" in problem(await client.get(f"/v1/models/{path}"), 404, "unknown-model").detail


@pytest.mark.parametrize(
    "path",
    [
        f"/v1/jobs/{{}}{name}"
        for name in ("", "/grid.png", "/images/0.png", "/trajectory.gif", "/images.npz", "/images.zip")
    ],
)
@pytest.mark.parametrize("job_id", ["0" * 32, "nonsense", "..%2F..%2Fetc%2Fpasswd", "é" * 40])
async def test_an_unknown_job_is_not_found(client: httpx.AsyncClient, path: str, job_id: str) -> None:
    response = await client.get(path.format(job_id))
    assert (response.status_code, response.headers["content-type"]) == (404, "application/problem+json")


@pytest.mark.usefixtures("offered")
async def test_results_before_and_after_the_end(client: httpx.AsyncClient, queue: Queue) -> None:
    job = (await client.post("/v1/samples", json=GOOD)).json()
    for name in ("grid.png", "images/0.png"):
        problem(await client.get(f"/v1/jobs/{job['id']}/{name}"), 409, "not-finished")
    for _ in range(3):
        batch = await next_batch(queue)
        assert batch is not None
        await queue.fail(batch, JobError(code="sampling-failed", detail="it was NaN"))
    assert "it was NaN" in problem(await client.get(f"/v1/jobs/{job['id']}/grid.png"), 409, "no-result").detail
    failed = (await client.get(f"/v1/jobs/{job['id']}?wait=30")).json()
    assert (failed["status"], failed["error"]["code"]) == ("failed", "sampling-failed")


@pytest.mark.usefixtures("offered")
async def test_a_job_is_canceled_and_stays_so(client: httpx.AsyncClient) -> None:
    job = (await client.post("/v1/samples", json=GOOD)).json()
    waiting = asyncio.create_task(client.get(f"{job['links']['self']}?wait=60"))
    first, again = [await client.post(job["links"]["cancel"]) for _ in range(2)]
    assert (first.status_code, again.status_code) == (202, 200)
    assert first.json()["status"] == again.json()["status"] == (await waiting).json()["status"] == "canceled"
    assert first.json()["finished_at"]
    for name in ("grid.png", "images/0.png", "images.npz", "images.zip"):
        assert "canceled" in problem(await client.get(f"{job['links']['self']}/{name}"), 409, "no-result").detail


@pytest.mark.usefixtures("offered")
async def test_a_job_is_erased_with_its_result(client: httpx.AsyncClient, queue: Queue, settings: Settings) -> None:
    job = (await client.post("/v1/samples", json=GOOD)).json()
    await work(queue, settings)
    here = job["links"]["self"]
    assert (await client.get(f"{here}/grid.png")).status_code == 200
    erased = await client.delete(here)
    assert (erased.status_code, erased.content) == (204, b"")
    assert not LocalStore(settings.results_dir / settings.queue).path(job["id"], "").exists()
    for answer in (await client.get(here), await client.get(f"{here}/grid.png"), await client.delete(here)):
        problem(answer, 404, "not-found")
    problem(await client.post(f"{here}/cancel"), 404, "not-found")


@pytest.mark.usefixtures("offered")
async def test_a_job_whose_retention_time_is_over_is_gone(settings: Settings, queue: Queue) -> None:
    app = create_app(settings.model_copy(update={"retention_seconds": 0.01}))
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost") as brief,
    ):
        job = (await brief.post("/v1/samples", json=GOOD)).json()
        here = job["links"]["self"]
        await brief.post(f"{here}/cancel")
        await eventually(lambda: _is_status(brief, here, 410))
        for path in (here, f"{here}/grid.png", f"{here}/images.zip"):
            assert "0.01 s ago" in problem(await brief.get(path), 410, "result-expired").detail


async def _is_status(client: httpx.AsyncClient, path: str, status: int) -> bool:
    return (await client.get(path)).status_code == status


@pytest.mark.usefixtures("offered")
async def test_who_waits_when_redis_loses_its_data_is_told_so(
    client: httpx.AsyncClient, queue: Queue, settings: Settings
) -> None:
    job = (await client.post("/v1/samples", json=GOOD)).json()
    await eventually(lambda: queue.redis.exists(f"{queue.prefix}epoch"))
    problem(await client.get(f"/v1/jobs/{'0' * 32}"), 404, "not-found")
    waiting = asyncio.create_task(client.get(f"{job['links']['self']}?wait=60"))
    await eventually(lambda: _is_awaited(queue))
    for key in await queue.redis.keys(f"{queue.prefix}*"):
        await queue.redis.delete(key)
    assert "submit it again" in problem(await waiting, 410, "queue-lost").detail


async def _is_awaited(queue: Queue) -> bool:
    subscribers: Any = await queue.redis.pubsub_numsub(f"{queue.prefix}events")
    return int(subscribers[0][1]) > 0


@pytest.mark.usefixtures("offered")
async def test_jobs_are_listed_page_by_page(client: httpx.AsyncClient) -> None:
    made = [(await client.post("/v1/samples", json=GOOD | {"D": D})).json()["id"] for D in (2048, "inf", 2048)]
    made.append((await client.post("/v1/samples", json={"dataset": "faces", "D": 128})).json()["id"])
    await client.post(f"/v1/jobs/{made[1]}/cancel")
    first = (await client.get("/v1/jobs?limit=3")).json()
    rest = (await client.get("/v1/jobs", params={"limit": 3, "cursor": first["next"]})).json()
    assert [job["id"] for job in first["jobs"] + rest["jobs"]] == made[::-1]
    assert rest["next"] is None
    for query, expected in (("status=canceled", made[1:2]), ("dataset=faces", made[3:]), ("status=failed", [])):
        assert [job["id"] for job in (await client.get(f"/v1/jobs?{query}")).json()["jobs"]] == expected
    for query, field in (
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("status=done", "status"),
        ("cursor=x", "cursor"),
    ):
        document = problem(await client.get(f"/v1/jobs?{query}"), 422, "invalid-request")
        assert [error.field for error in document.errors] == [field]


@pytest.mark.usefixtures("offered")
async def test_a_submission_can_be_repeated(client: httpx.AsyncClient, queue: Queue, settings: Settings) -> None:
    """With a key and the same body it is the same job, drawn seed and all, and can be waited for."""
    key = {"Idempotency-Key": "order 7"}
    first, again = [(await client.post("/v1/samples", json=GOOD, headers=key)).json() for _ in range(2)]
    assert first == again
    other = (await client.post("/v1/samples", json=GOOD)).json()
    assert other["id"] != first["id"]
    problem(await client.post("/v1/samples", json=GOOD | {"count": 2}, headers=key), 422, "idempotency-key-reused")
    working = asyncio.create_task(work(queue, settings))
    ended = await client.post("/v1/samples", json=GOOD, headers=key | {"Prefer": "wait=60"})
    await working
    assert (ended.status_code, ended.json()["id"], ended.json()["status"]) == (200, first["id"], "succeeded")
    other_words = json.dumps(dict(reversed(GOOD.items())), indent=1)
    again = await client.post("/v1/samples", content=other_words, headers=key | {"Content-Type": "application/json"})
    assert again.json()["id"] == first["id"]
    for wrong in ("", "k" * 256):
        refused = await client.post("/v1/samples", json=GOOD, headers={"Idempotency-Key": wrong})
        assert problem(refused, 422, "invalid-request").errors[0].field == "Idempotency-Key"


async def test_an_estimate_says_what_a_request_would_take_and_queues_nothing(
    client: httpx.AsyncClient, queue: Queue
) -> None:
    await queue.announce(
        worker_state(paces={"digits-d2048": Pace(evaluations_per_second=700.0, evaluation_seconds=0.01)})
    )
    await client.post("/v1/samples", json=GOOD | {"count": 100})
    found = (await client.post("/v1/estimates", json=GOOD | {"count": 20})).json()
    assert found.pop("eta_seconds") == {"p50": 6.9, "p90": 18.6}  # 1.15 and 3.1 times as long, as is supposed at first
    assert found == {"images": 20, "evaluations": 700, "wait_seconds": 5.0, "run_seconds": 1.0, "refusal": None}
    alone = (await client.post("/v1/estimates", json=GOOD | {"count": 1})).json()
    assert alone["run_seconds"] == 0.35
    urgent = (await client.post("/v1/estimates", json=GOOD | {"priority": 9})).json()
    assert urgent["wait_seconds"] == 0
    assert (await queue.census(["digits-d2048"])).evaluations == 3500
    problem(await client.post("/v1/estimates", json=GOOD | {"count": 0}), 422, "invalid-request")
    problem(await client.post("/v1/estimates", json=GOOD | {"dataset": "cats"}), 422, "unknown-model")


async def test_an_estimate_says_that_a_request_would_be_refused(settings: Settings, queue: Queue) -> None:
    await queue.announce(worker_state())
    app = create_app(settings.model_copy(update={"max_queued_evaluations": 100}))
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost") as tight,
    ):
        found = (await tight.post("/v1/estimates", json=GOOD | {"count": 3})).json()
    assert (found["wait_seconds"], found["run_seconds"], found["eta_seconds"]) == (0.0, None, None)
    assert (found["refusal"]["status"], found["refusal"]["code"]) == (503, "queue-full")


async def work(queue: Queue, settings: Settings) -> None:
    """End the next job, as a worker would."""
    batch = await eventually(lambda: next_batch(queue))
    for job_id in batch.requests:
        LocalStore(settings.results_dir / settings.queue).write(job_id, "grid.png", PICTURE)
    await ended(queue, batch, *batch.requests)


PICTURE = b"\x89PNG"


@pytest.mark.usefixtures("offered")
async def test_an_answer_can_wait_for_the_end(client: httpx.AsyncClient, queue: Queue, settings: Settings) -> None:
    working = asyncio.create_task(work(queue, settings))
    response = await client.post("/v1/samples", json=GOOD, headers={"Prefer": "respond-async, Wait=60"})
    await working
    job = response.json()
    assert (response.status_code, job["status"]) == (200, "succeeded")
    assert response.headers["preference-applied"] == "wait=60"
    assert response.headers["location"] == f"/v1/jobs/{job['id']}"
    assert (await client.get(job["links"]["self"])).json() == job


@pytest.mark.usefixtures("offered")
async def test_an_answer_can_be_the_picture(client: httpx.AsyncClient, queue: Queue, settings: Settings) -> None:
    working = asyncio.create_task(work(queue, settings))
    asked = {"Prefer": "wait=60", "Accept": "image/png, application/problem+json;q=0.5"}
    response = await client.post("/v1/samples", json=GOOD, headers=asked)
    await working
    assert (response.status_code, response.headers["content-type"], response.content) == (200, "image/png", PICTURE)
    grid = await client.get(f"{response.headers['location']}/grid.png")
    for name in ("etag", "server-timing", "cache-control"):
        assert response.headers[name] == grid.headers[name]


@pytest.mark.usefixtures("offered")
@pytest.mark.parametrize(
    ("accept", "is_picture"),
    [
        ("image/png", True),
        ("IMAGE/PNG; q=0.9, application/json;q=0.5", True),
        ("application/json, image/png", False),
        ("application/json, image/png;q=0.9", False),
        ("image/png;q=0", False),
        ("*/*", False),
    ],
)
async def test_the_picture_is_for_those_that_like_it_better(
    client: httpx.AsyncClient, queue: Queue, settings: Settings, accept: str, is_picture: bool
) -> None:
    working = asyncio.create_task(work(queue, settings))
    response = await client.post("/v1/samples", json=GOOD, headers={"Prefer": "wait=60", "Accept": accept})
    await working
    assert response.headers["content-type"] == ("image/png" if is_picture else "application/json")


@pytest.mark.usefixtures("offered")
async def test_an_answer_that_waits_tells_of_a_failure(client: httpx.AsyncClient, queue: Queue) -> None:
    async def fail() -> None:
        for _ in range(3):
            await queue.fail(
                await eventually(lambda: next_batch(queue)), JobError(code="sampling-failed", detail="NaN")
            )

    for accept in ("*/*", "image/png"):
        failing = asyncio.create_task(fail())
        response = await client.post("/v1/samples", json=GOOD, headers={"Prefer": "wait=60", "Accept": accept})
        await failing
        if accept == "image/png":
            assert "NaN" in problem(response, 409, "no-result").detail
        else:
            assert (response.status_code, response.json()["error"]["detail"]) == (200, "NaN")


@pytest.mark.usefixtures("offered")
@pytest.mark.parametrize("accept", ["application/json", "image/png"])
@pytest.mark.parametrize("seconds", [0, 1])
async def test_an_answer_waits_no_longer_than_it_should(client: httpx.AsyncClient, seconds: int, accept: str) -> None:
    asked = {"Prefer": f"wait={seconds}", "Accept": accept}
    response = await asyncio.wait_for(client.post("/v1/samples", json=GOOD, headers=asked), 10)
    assert (response.status_code, response.json()["status"]) == (202, "queued")
    assert response.headers["preference-applied"] == f"wait={seconds}"


@pytest.mark.usefixtures("offered")
@pytest.mark.parametrize("prefer", ["respond-async", "waiting=5", 'return=minimal; wait="5"', ""])
async def test_other_preferences_are_ignored(client: httpx.AsyncClient, prefer: str) -> None:
    response = await client.post("/v1/samples", json=GOOD, headers={"Prefer": prefer})
    assert (response.status_code, "preference-applied" in response.headers) == (202, False)


@pytest.mark.usefixtures("offered")
@pytest.mark.parametrize(
    "value", ["wait", "wait=", "wait=61", "wait=-1", "wait=1.5", "wait=soon", "wait=" + "9" * 5000]
)
async def test_a_wrong_preference_is_refused_and_nothing_is_queued(
    client: httpx.AsyncClient, queue: Queue, value: str
) -> None:
    document = problem(await client.post("/v1/samples", json=GOOD, headers={"Prefer": value}), 422, "invalid-request")
    assert [error.field for error in document.errors] == ["Prefer"]
    assert (await queue.census([])).evaluations == 0


@pytest.mark.usefixtures("offered")
@pytest.mark.parametrize(("method", "path"), [("POST", "/v1/samples"), ("GET", "/v1/jobs/{}")])
async def test_a_client_that_goes_away_leaves_no_waiter(
    settings: Settings, queue: Queue, method: str, path: str
) -> None:
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            job = (await client.post("/v1/samples", json=GOOD)).json()
        said: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        said.put_nowait({"type": "http.request", "body": json.dumps(GOOD).encode() if method == "POST" else b""})
        scope = {
            "type": "http",
            "method": method,
            "path": path.format(job["id"]),
            "query_string": b"wait=60" if method == "GET" else b"",
            "headers": [(b"host", b"[::1]"), (b"content-type", b"application/json"), (b"prefer", b"wait=60")],
        }
        answering = asyncio.create_task(app(scope, said.get, _nobody))
        events: Events = app.state.door.events
        await eventually(lambda: _somebody_waits(events))
        assert not answering.done()
        said.put_nowait({"type": "http.disconnect"})
        await asyncio.wait_for(answering, 10)
        assert events.waiters == 0


async def _nobody(_message: object) -> None:
    """Where an answer goes whose client has left."""


async def _somebody_waits(events: Events) -> bool:
    return events.waiters > 0


@pytest.mark.parametrize("wait", ["-1", "61", "nan", "inf", "abc", "", "1e400"])
async def test_a_wrong_wait_is_refused(client: httpx.AsyncClient, wait: str) -> None:
    document = problem(await client.get(f"/v1/jobs/{'0' * 32}", params={"wait": wait}), 422, "invalid-request")
    assert [error.field for error in document.errors] == ["wait"]


@pytest.mark.parametrize(
    ("method", "path", "known"),
    [
        ("POST", "/v1/samples?wait=30", "none"),
        ("GET", "/v1/models?wait=30", "none"),
        ("GET", f"/v1/jobs/{'0' * 32}?wait=0&seconds=1", "wait"),
        ("GET", "/v1/jobs?state=running", "cursor, dataset, limit, owner, status"),
    ],
)
async def test_an_unknown_parameter_is_refused(client: httpx.AsyncClient, method: str, path: str, known: str) -> None:
    document = problem(await client.request(method, path), 422, "invalid-request")
    assert [error.message for error in document.errors] == [f"there is no such parameter; known here: {known}"]
    for open_one in ("/livez?at=1", "/metrics?at=1", "/?at=1"):  # which others than clients of the API ask
        assert (await client.get(open_one)).is_success


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nowhere", 404), ("GET", "/v1/samples", 405), ("DELETE", "/v1/models", 405), ("BREW", "/livez", 405)],
)
async def test_what_is_no_route_is_a_problem_too(
    client: httpx.AsyncClient, method: str, path: str, status: int
) -> None:
    response = await client.request(method, path)
    assert response.status_code == status
    assert ProblemDocument.model_validate(response.json()).status == status


async def test_head_is_answered_like_get(client: httpx.AsyncClient) -> None:
    for path in ("/livez", "/v1/models", "/nowhere"):
        assert (await client.head(path)).status_code == (await client.get(path)).status_code


@pytest.mark.usefixtures("offered")
async def test_hundreds_of_submissions_at_once_wait_their_turn(client: httpx.AsyncClient) -> None:
    responses = await asyncio.gather(*(client.post("/v1/samples", json=GOOD) for _ in range(300)))
    assert {response.status_code for response in responses} == {202}


@pytest.mark.usefixtures("offered")
async def test_metrics_count_what_happened(client: httpx.AsyncClient) -> None:
    await client.post("/v1/samples", json=GOOD | {"count": 4})
    await client.post("/v1/samples", json=GOOD | {"count": 0})
    response = await client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    lines = response.text.splitlines()
    assert 'pfgmpp_queue_jobs{model="digits-d2048"} 1.0' in lines
    assert 'pfgmpp_queue_images{model="digits-d2048"} 4.0' in lines
    assert 'pfgmpp_queue_evaluations{model="digits-d2048"} 140.0' in lines
    assert 'pfgmpp_workers{state="idle"} 1.0' in lines
    assert any(line.startswith('pfgmpp_jobs_rejected_total{reason="invalid-request"}') for line in lines)
    assert any('route="/v1/samples"' in line and 'code="202"' in line for line in lines)


async def test_the_openapi_document_describes_the_contract(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    paths, schemas = document["paths"], document["components"]["schemas"]
    assert {"/v1/samples", "/v1/jobs/{job_id}", "/v1/jobs/{job_id}/grid.png", "/v1/models", "/metrics"} <= set(paths)
    submit = paths["/v1/samples"]["post"]
    assert {"200", "202", "409", "413", "415", "422", "503"} <= set(submit["responses"])
    assert {"application/json", "image/png"} == set(submit["responses"]["200"]["content"])
    assert [parameter["name"] for parameter in submit["parameters"]] == ["Prefer", "Idempotency-Key"]
    assert submit["requestBody"]["content"]["application/json"]["schema"] == {
        "$ref": "#/components/schemas/SampleRequest"
    }
    assert "count" in schemas["SampleRequest"]["properties"]
    referred = set(re.findall(r"#/components/schemas/(\w+)", json.dumps(document)))
    assert referred == schemas.keys()
    operations = {operation["operationId"] for methods in paths.values() for operation in methods.values()}
    assert {link["operationId"] for link in submit["responses"]["202"]["links"].values()} <= operations


async def test_the_methods_of_a_path_are_named(client: httpx.AsyncClient) -> None:
    answer = await client.put(f"/v1/jobs/{'0' * 32}")
    assert (answer.status_code, answer.headers["allow"]) == (405, "DELETE, GET")


@pytest.mark.usefixtures("offered")
@pytest.mark.parametrize(
    ("choice", "field"),
    [
        ({"solver": "dpm"}, "solver"),
        ({"solver": "ipndm", "steps": 3}, "steps"),
        ({"sigma_min": 0.0001}, "sigma_min"),
        ({"sigma_max": 1000}, "sigma_max"),
        ({"sigma_min": 5, "sigma_max": 5}, "sigma_min"),
        ({"S_churn": 10}, "S_churn"),
        ({"solver": "churn", "S_noise": -1}, "S_noise"),
        ({"solver": "unipc", "schedule": "vp"}, "schedule"),
        ({"discretization": "cosine"}, "discretization"),
        ({"discretization": "iddpm", "sigma_min": 40}, "sigma_min"),
        ({"alpha": "much"}, "alpha"),
        ({"bits": 1}, "bits"),
        ({"quantized": "official"}, "quantized"),
        ({"bits": 8, "precision": "fast"}, "precision"),
        ({"guidance": 2}, "guidance"),
        ({"guidance": -1, "guide": "other-d2048"}, "guidance"),
        ({"guidance": 2, "guide": "digits-d2048"}, "guide"),
        ({"guidance": 2, "guide": "digits-d128"}, "guide"),
        ({"guidance": 2, "guide": "nothing"}, "guide"),
        ({"guidance": 2, "guide": 7}, "guide"),
        ({"guide": "nothing"}, "guide"),
        ({"guidance": 2, "guide": ""}, "guide"),
    ],
)
async def test_a_choice_of_sampling_that_cannot_be_is_named(
    client: httpx.AsyncClient, choice: dict[str, Any], field: str
) -> None:
    errors = problem(await client.post("/v1/samples", json=GOOD | choice), 422, "invalid-request").errors
    assert errors is not None
    assert [error.field for error in errors] == [field]


async def test_a_queued_job_says_that_nobody_serves_its_model(client: httpx.AsyncClient, queue: Queue) -> None:
    await queue.announce(worker_state())
    job = (await client.post("/v1/samples", json=GOOD)).json()
    assert (await client.get(job["links"]["self"])).json()["waits_for"] is None
    await queue.retire("worker-1")

    async def lack() -> str | None:
        found = (await client.get(job["links"]["self"])).json()
        assert (found["status"], found["queue_position"]) == ("queued", 0)
        return found["waits_for"]  # type: ignore[no-any-return]

    assert await eventually(lack) == "a worker that serves digits-d2048; there is none at present"


async def test_models_tell_what_can_guide_them(client: httpx.AsyncClient, queue: Queue) -> None:
    """The same kernel, pixels, noise levels and classes (or none), wherever the model itself is served."""
    own, bare = facts(is_guidable=True), facts("bare", classes=())
    others = (facts(D=128), facts("large", resolution=16), facts("named", classes=("a",)), facts("low", sigma_max=40))
    worse = facts("worse", checkpoint_sha256="1" * 64)
    await queue.announce(worker_state(own, bare, worse, *others, name="one"))
    await queue.announce(worker_state(own, worse, name="two"))
    models = {model["name"]: model for model in (await client.get("/v1/models")).json()}
    assert models["digits-d2048"]["guides"] == {"worse-d2048": "1" * 64}
    assert models["bare-d2048"]["guides"] == {}
    assert models["low-d2048"]["guides"] == {
        name: models[name]["checkpoint_sha256"] for name in ("bare-d2048", "digits-d2048", "worse-d2048")
    }
    for choice, field in (
        ({"dataset": "digits"}, None),
        ({"dataset": "worse"}, "guidance"),
        ({"dataset": "bare"}, "guidance"),
    ):
        response = await client.post("/v1/samples", json={"D": 2048, "guidance": 2.5} | choice)
        if field:
            errors = problem(response, 422, "invalid-request").errors or ()
            assert [error.field for error in errors] == [field]
        else:
            assert response.json()["progress"]["evaluations_total"] == 2 * 35
    job = (await client.post("/v1/samples", json=GOOD | {"guidance": 2.5, "guide": "worse-d2048"})).json()
    echoed = {name: job["request"][name] for name in ("guidance", "guide", "guide_checkpoint_sha256")}
    assert echoed == {"guidance": 2.5, "guide": "worse-d2048", "guide_checkpoint_sha256": "1" * 64}


@pytest.mark.parametrize(
    ("window", "field"),
    [
        ({"x": -3, "y": 32, "width": 32, "height": 2}, None),
        ({"width": 3, "height": 2}, "window.width"),
        ({"width": 2, "height": 34}, "window.height"),
        ({"width": 2, "height": 0}, "window.height"),
        ({"x": 33, "width": 2, "height": 2}, "window.x"),
        ({"y": -33, "width": 2, "height": 2}, "window.y"),
        ({"width": 2}, "window.height"),
        ({"width": 2, "height": 2, "depth": 2}, "window.depth"),
        ({"width": 2.5, "height": 2}, "window.width"),
        ([0, 0, 2, 2], "window"),
    ],
)
async def test_windows_are_for_models_that_have_them(
    client: httpx.AsyncClient, queue: Queue, window: object, field: str | None
) -> None:
    """In multiples of what the network can halve, and not farther than four frames."""
    await queue.announce(worker_state(facts(coordinates=2, window_unit=2), facts("plain")))
    response = await client.post("/v1/samples", json=GOOD | {"window": window})
    if field is None:
        assert response.json()["request"]["window"] == window
        refused = await client.post("/v1/samples", json=GOOD | {"dataset": "plain", "window": window})
        errors = problem(refused, 422, "invalid-request").errors or ()
        assert [(each.field, "trained on patches" in each.message) for each in errors] == [("window", True)]
    else:
        assert [each.field for each in problem(response, 422, "invalid-request").errors or ()] == [field]


@pytest.mark.usefixtures("offered")
async def test_a_choice_of_sampling_is_filled_in_and_echoed(client: httpx.AsyncClient) -> None:
    body = GOOD | {"solver": "churn", "S_churn": 30, "S_max": 1, "sigma_min": 0.004, "steps": 20}
    job = (await client.post("/v1/samples", json=body)).json()
    echoed = {
        name: job["request"][name] for name in ("solver", "S_churn", "S_max", "S_noise", "sigma_min", "sigma_max")
    }
    assert echoed == {
        "solver": "churn", "S_churn": 30, "S_max": 1, "S_noise": 1, "sigma_min": 0.004, "sigma_max": 80
    }  # fmt: skip
    assert job["progress"]["evaluations_total"] == 39 * job["progress"]["images_total"]


@pytest.mark.usefixtures("offered")
async def test_a_trajectory_that_would_be_too_large_is_refused(client: httpx.AsyncClient) -> None:
    body = GOOD | {"count": 256, "steps": 256, "scale": 8, "trajectory": True}
    errors = problem(await client.post("/v1/samples", json=body), 422, "invalid-request").errors
    assert errors is not None
    assert [error.field for error in errors] == ["trajectory"]


@pytest.mark.usefixtures("offered")
async def test_an_order_to_load_reaches_the_workers_that_listen(client: httpx.AsyncClient, settings: Settings) -> None:
    refused = problem(await client.post("/v1/models/digits/2048/load"), 503, "no-worker")
    assert "no worker listens" in refused.detail
    problem(await client.post("/v1/models/cats/2048/unload"), 404, "unknown-model")
    listener, heard = Queue.open(settings), list[Order]()
    listener.listen(lambda: None, heard.append)
    await listener.census([])  # scripts and messages have one connection, opened now
    for act in ("load", "unload"):
        response = await eventually(lambda act=act: accepted(client, act))  # type: ignore[misc]
        assert response.json()["name"] == "digits-d2048"
    await eventually(lambda: is_done(len(heard) >= 2))
    await listener.close()
    assert set(heard) == {Order("load", "digits-d2048"), Order("unload", "digits-d2048")}


async def accepted(client: httpx.AsyncClient, act: str) -> httpx.Response | None:
    response = await client.post(f"/v1/models/digits/2048/{act}")
    return response if response.status_code == 202 else None


async def is_done(condition: bool) -> bool:
    return condition


async def test_a_job_says_when_it_should_end(client: httpx.AsyncClient, queue: Queue, offered: None) -> None:
    """Nothing while no pace is known; then 1.15 and 3.1 times what lies before its end by it, its own included.

    The calls of an urgent job, which are 35, are full of the images of others.
    """
    first = (await client.post("/v1/samples", json=GOOD | {"count": 100})).json()
    assert first["eta_seconds"] is None
    await queue.announce(
        worker_state(paces={"digits-d2048": Pace(evaluations_per_second=700.0, evaluation_seconds=0.05, images=64)})
    )

    async def eta(job: dict[str, Any]) -> float:
        return float((await client.get(f"/v1/jobs/{job['id']}")).json()["eta_seconds"]["p50"])

    await eventually(lambda: _is_known(client, first["id"]))
    assert await eta(first) == 5.75
    second = (await client.post("/v1/samples", json=GOOD | {"count": 40})).json()
    assert second["eta_seconds"] == {"p50": 8.05, "p90": 21.7}
    urgent = (await client.post("/v1/samples", json=GOOD | {"priority": 9})).json()
    assert urgent["eta_seconds"]["p50"] == pytest.approx(1.15 * 35 * 64 / 700)
    batch = await next_batch(queue)
    assert batch is not None
    await queue.renew({batch.id: {urgent["id"]: 20}})
    assert await eta(urgent) == pytest.approx(1.15 * 15 * 64 / 700, abs=0.001)
    await client.post(f"/v1/jobs/{first['id']}/cancel")
    assert (await client.get(f"/v1/jobs/{first['id']}")).json()["eta_seconds"] is None
    assert (await client.get("/v1/jobs")).json()["jobs"][0]["eta_seconds"] is None


async def _is_known(client: httpx.AsyncClient, job_id: str) -> bool:
    return (await client.get(f"/v1/jobs/{job_id}")).json()["eta_seconds"] is not None


async def test_the_status_tells_of_workers_and_queue(client: httpx.AsyncClient, queue: Queue, offered: None) -> None:
    await client.post("/v1/samples", json=GOOD | {"count": 3})
    found = (await client.get("/v1/status")).json()
    (worker,) = found["workers"]
    assert (worker["name"], worker["state"], worker["device"]) == ("worker-1", "idle", "cpu")
    assert worker["models"] == worker["loaded"] == ["digits-d2048", "digits-dinf", "faces-d128"]
    assert found["evaluations"] == 105
    of_model = {each["model"]: each for each in found["models"]}
    waiting = of_model["digits-d2048"]
    assert (waiting["queued_jobs"], waiting["queued_images"], waiting["queued_evaluations"]) == (1, 3, 105)
    assert of_model["faces-d128"]["queued_jobs"] == of_model["faces-d128"]["oldest_age_seconds"] == 0


async def test_everything_that_is_wrong_is_told_at_once(client: httpx.AsyncClient, offered: None) -> None:
    wrong = GOOD | {"count": 9999, "steps": 999, "label": "eleven", "seed": 2**63 - 1}
    refused = problem(await client.post("/v1/samples", json=wrong), 422, "invalid-request")
    assert {each.field for each in refused.errors} == {"count", "steps", "label"}
    wrong = GOOD | {"count": 3, "seeds": [1], "labels": ["x"], "columns": 4, "sigma_max": 900, "foo": 1}
    refused = problem(await client.post("/v1/samples", json=wrong), 422, "invalid-request")
    assert [(each.field, each.message) for each in refused.errors] == [("foo", "there is no such field")]
    del wrong["foo"]
    refused = problem(await client.post("/v1/samples", json=wrong), 422, "invalid-request")
    assert {each.field for each in refused.errors} == {"seeds", "labels", "labels.0", "columns", "sigma_max"}


async def test_a_compressed_body_is_refused_in_words(client: httpx.AsyncClient, offered: None) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    refused = await client.post("/v1/samples", content=gzip.compress(json.dumps(GOOD).encode()), headers=headers)
    assert "Content-Encoding" in problem(refused, 415, "not-json").detail


async def test_a_defect_is_a_problem_as_any_other(
    settings: Settings, client: httpx.AsyncClient, offered: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Queue, "census", None)
    response = await client.get("/v1/status")
    assert "logged" in problem(response, 500, "internal-error").detail
    assert response.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in response.headers["content-security-policy"]
