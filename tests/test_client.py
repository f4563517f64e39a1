"""The client against a whole service, and against a bad network before it."""

import asyncio
import inspect
import json
import logging
import re
import subprocess
import sys
import time
import typing
from collections.abc import Callable, Iterator
from importlib import resources
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bench.running import Service
from service.client import (
    AsyncClient,
    AsyncSubmitted,
    Client,
    ClientError,
    Event,
    JobFailed,
    Refused,
    SampleFields,
    Submitted,
    Unreachable,
)
from service.client.asks import body_of, portions
from service.client.exchange import retry_after
from service.client.following import MessageParser, Preview
from service.request import SampleRequest
from tests.network import BadNetwork, Trouble, bad_network

POINTS: Any = {"dataset": "points", "D": 2}
LONG: Any = {"dataset": "points", "D": 2, "count": 64, "steps": 10_000}
"""Longer than any test waits: to be canceled."""

SOON: Any = {"dataset": "points", "D": 2, "count": 64, "steps": 200}
"""Of about a second."""


@pytest.fixture
def client(live: Service) -> Iterator[Client]:
    with Client(live.url) as client:
        yield client


@pytest.fixture
def network(live: Service) -> Iterator[BadNetwork]:
    with bad_network(live.url) as network:
        yield network


def test_three_lines_give_images_and_load_little(live: Service) -> None:
    code = """
import sys
from service.client import Client
assert not {"torch", "PIL", "numpy", "fastapi", "redis"} & sys.modules.keys()
images = Client().sample(dataset="points", D=2, count=3)
print(images[0].size, images.array.shape)
"""
    command = [sys.executable, "-c", code]
    environment = {"PFGMPP_SERVER": live.url, "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("(4, 4) (3, 4, 4, 1)\n", "")


@pytest.mark.parametrize("package", ["service", "models"])
def test_type_checkers_are_told_that_there_are_types(package: str) -> None:
    assert resources.files(package).joinpath("py.typed").is_file()


def test_images_are_a_sequence_of_pictures_and_an_array(client: Client, tmp_path: Path) -> None:
    images = client.sample(**POINTS, seeds=range(5, 8), labels=np.array([1, 0, 1]).tolist(), scale=3)
    assert (len(images), images.seeds, images.labels) == (3, [5, 6, 7], [1, 0, 1])
    assert repr(images) == f"<3 images of points, D = 2, job {images.job.id}>"
    assert images.array.shape == (3, 4, 4, 1)
    assert images.array.dtype == np.uint8
    assert isinstance(images[0], Image.Image)
    for k, image in enumerate(images):
        assert image.size == (12, 12)
        assert np.array_equal(np.asarray(image), images.array[k, :, :, 0].repeat(3, 0).repeat(3, 1))
        assert (image.info["picture"], image.info["seeds"]) == ("image", f"[{5 + k}]")
    assert [image.info["labels"] for image in images[1:]] == ["[0]", "[1]"]
    assert images.grid().info["seeds"] == "[5, 6, 7]"
    with Image.open(BytesIO(images._repr_png_())) as shown:
        grid = np.asarray(images.grid())
        assert np.array_equal(
            np.asarray(shown), grid.repeat(320 // max(grid.shape), 0).repeat(320 // max(grid.shape), 1)
        )
    again = client.sample(**POINTS, seed=6, label="class 0")
    assert np.array_equal(again.array[0], images.array[1])
    images.save(tmp_path / "all")
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == ["0.png", "1.png", "2.png", "job.json"]
    images.save(tmp_path / "grid.png")
    assert (tmp_path / "grid.png").read_bytes() == images.grid_png
    images.save(tmp_path / "all.npz")
    with np.load(tmp_path / "all.npz") as arrays:
        assert np.array_equal(arrays["images"], images.array)
        assert arrays["seeds"].tolist() == images.seeds
        assert json.loads(str(arrays["request"]))["dataset"] == "points"
    with pytest.raises(ValueError, match=r"must end with \.png"):
        images.save(tmp_path / "grid.jpg")


def test_models_without_classes_and_infinity(client: Client) -> None:
    images = client.sample(dataset="plain", D=float("inf"), count=2)
    assert images.labels is None
    assert images[0].info["D"] == "inf"


def test_progress_is_told(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    events = list[Event]()
    images = client.sample(progress=events.append, **POINTS, count=64, steps=200)
    kinds = [event.kind for event in events]
    assert (kinds[-1], kinds.count("finished")) == ("finished", 1)
    assert kinds.count("started") == 1
    done = [event.job.progress.evaluations_done for event in events]
    assert done == sorted(done)
    assert done[-1] == events[-1].job.progress.evaluations_total
    assert events[-1].job == images.job
    client.sample(progress=True, **POINTS, count=2)
    shown = capsys.readouterr()
    assert ("succeeded" in shown.err, "14/14 evaluations" in shown.err, shown.out) == (True, True, "")


def test_previews_come_before_the_end(client: Client) -> None:
    previews = list[Preview]()

    def look(event: Event) -> None:
        if event.preview:
            previews.append(event.preview)
        if len(previews) == 2:
            client.job(event.job.id).cancel()

    with pytest.raises(JobFailed, match="was canceled"):
        client.sample(progress=look, **LONG, previews=64)
    first, second = previews[:2]
    assert 0 < first.evaluation < second.evaluation < first.evaluations == 19_999
    assert first.image.size == (8 * (4 + 1) + 1,) * 2


def test_a_job_is_submitted_found_listed_awaited_and_erased(client: Client) -> None:
    job = client.submit(**POINTS, count=3)
    assert repr(client.job(job.id)).startswith(f"<job {job.id}, ")
    assert job.wait().status == "succeeded"
    assert [event.kind for event in client.job(job.id).events()][-1] == "finished"
    assert len(client.job(job.id).result()) == 3
    assert job.fetch("images/2.png").startswith(b"\x89PNG")
    assert job.id in {each.id for each in client.jobs("succeeded", "points", limit=200)}
    assert len(list(client.jobs(limit=1))) == 1
    job.delete()
    with pytest.raises(Refused, match=r"not-found|result-expired"):
        client.job(job.id)


def test_what_is_there_and_what_it_would_take(client: Client) -> None:
    assert [(model.dataset, model.D) for model in client.models()] == [("plain", "inf"), ("points", 2), ("points", 128)]
    estimate = client.estimate(**POINTS, count=3, steps=10)
    assert (estimate.images, estimate.evaluations, estimate.refusal) == (3, 57, None)
    status = client.status()
    assert [model.model for model in status.models] == ["plain-dinf", "points-d128", "points-d2"]
    assert status.workers[0].state in {"idle", "busy"}


def test_a_refusal_says_what_is_wrong(client: Client) -> None:
    with pytest.raises(Refused) as refused:
        client.sample(**POINTS, count=2, seeds=[1], label="none such")
    error = refused.value
    assert (error.status, error.code, error.retry_after_seconds) == (422, "invalid-request", None)
    assert {each.field for each in error.errors} == {"seeds", "label"}
    assert str(error).startswith("invalid-request: ")
    assert error.problem()["errors"][0].keys() == {"field", "message"}


def test_what_cannot_be_asked_is_told_at_once(live: Service) -> None:
    began = time.monotonic()
    with pytest.raises(Unreachable, match=r"cannot reach http://127\.0\.0\.1:1 .*is `pfgmpp serve` running\?"):
        Client("http://127.0.0.1:1").models()
    with pytest.raises(ClientError, match=r"lacks http:// or https://: is http://localhost:8000 meant\?"):
        Client("localhost:8000")
    with pytest.raises(ClientError, match="is not a URL"):
        Client("http://[::1")
    with pytest.raises(Unreachable, match="ftp://"):
        Client("ftp://127.0.0.1").models()
    with pytest.raises(ClientError, match="characters that no key has"):
        Client(live.url, "schlüssel")
    with pytest.raises(ClientError, match="characters that no key has"):
        Client(live.url, "in two\nlines")
    for name in ("", ".", "..", "a/b"):
        with pytest.raises(ClientError, match=f"'{re.escape(name)}' is no id of a job"):
            Client(live.url).job(name)
    with pytest.raises(ClientError, match="cannot be sent as JSON"):
        Client(live.url).sample(dataset="points", D=2, label=object())  # type: ignore[arg-type]
    assert time.monotonic() - began < 10, "nobody waits for what is wrong"


def test_a_job_that_fails_is_an_error_with_the_job(client: Client) -> None:
    job = client.submit(**LONG)
    assert job.cancel().status == "canceled"
    with pytest.raises(JobFailed, match=f"job {job.id} was canceled") as failed:
        job.result()
    assert failed.value.job.id == failed.value.problem()["job"]["id"] == job.id


def test_a_sample_that_is_broken_off_is_canceled(client: Client, live: Service) -> None:
    """By Ctrl-C, by an error of who looks on, and by the end of a task."""
    seen = list[str]()

    def broken_off_by(error: BaseException) -> Callable[[Event], None]:
        def look(event: Event) -> None:
            seen.append(event.job.id)
            raise error

        return look

    for error in (KeyboardInterrupt(), RuntimeError("of the caller")):
        with pytest.raises(type(error)):
            client.sample(progress=broken_off_by(error), **LONG)
        assert client.job(seen[-1]).job.status == "canceled"

    async def cut_short() -> None:
        async with AsyncClient(live.url) as other:
            looked_at = asyncio.Event()

            def look(event: Event) -> None:
                seen.append(event.job.id)
                looked_at.set()

            task = asyncio.create_task(other.sample(progress=look, **LONG))
            await looked_at.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(cut_short())
    assert client.job(seen[-1]).job.status == "canceled"


def test_many_requests_are_mapped_in_order_and_canceled_when_nobody_wants_them(client: Client) -> None:
    requests: list[Any] = [{**POINTS, "seed": seed, "count": 1 + seed % 3} for seed in range(6)]
    done = list(client.map(requests, in_flight=3))
    assert [(images.seeds[0], len(images)) for images in done] == [(seed, 1 + seed % 3) for seed in range(6)]
    wanted = client.map([POINTS, LONG, LONG], in_flight=3)
    next(wanted)
    wanted.close()  # type: ignore[attr-defined]
    statuses = {job.id: job.status for job in client.jobs(limit=3) if len(job.seeds) == 64}
    assert list(statuses.values()) == ["canceled", "canceled"]
    with pytest.raises(Refused, match="unknown-model"):
        list(client.map([POINTS, {"dataset": "none", "D": 2}]))


def test_a_stream_is_the_images_of_one_request_in_several_jobs(client: Client) -> None:
    whole = client.sample(**POINTS, count=10, seed=7)
    streamed = [np.asarray(image) for image in client.stream(per_job=4, **POINTS, count=10, seed=7, columns=5)]
    assert np.array_equal(np.stack(streamed), whole.array[..., 0])
    assert len(list(client.stream(per_job=2, **POINTS, seeds=[3, 1, 2]))) == 3
    three: Any = {**POINTS, "seeds": [1, 2, 3], "labels": [0, 1, 0]}
    parts = list(portions(three, 2))
    assert [(part["count"], part["seeds"], part["labels"]) for part in parts] == [(2, [1, 2], [0, 1]), (1, [3], [0])]
    with pytest.raises(ValueError, match="at least 1 image"):
        next(client.stream(per_job=0, **POINTS))


def refusal(status: int, code: str, **headers: str) -> dict[str, Any]:
    """The answer of a service that refuses."""
    document = {"title": code, "status": status, "detail": "it says why", "instance": "/v1/samples", "code": code}
    named = {"Content-Type": "application/problem+json", **{n.replace("_", "-"): v for n, v in headers.items()}}
    return {"status": status, "headers": named, "content": json.dumps(document).encode()}


def test_what_is_refused_for_now_is_asked_again_when_the_service_says(
    network: BadNetwork, caplog: pytest.LogCaptureFixture
) -> None:
    network.troubles += [
        Trouble("/v1/samples", **refusal(503, "queue-full", Retry_After="1")),
        Trouble("/v1/samples", **refusal(429, "too-many-requests", Retry_After="0")),
        Trouble("/v1/samples"),
        Trouble("/v1/samples", status=502, content=b"<h1>Bad Gateway</h1>"),
    ]
    began = time.monotonic()
    with Client(network.url) as client:
        job = client.submit(**POINTS)
        assert job.wait().status == "succeeded"
    assert time.monotonic() - began > 1, "the first refusal says after how long"
    asked = [headers["idempotency-key"] for method, path, headers in network.seen if path == "/v1/samples"]
    assert (len(asked), len(set(asked))) == (5, 1)
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert told[0] == "queue-full: it says why (try again in 1 s); trying again in 1.0 s"
    assert "502" in told[3]


def test_a_job_whose_answer_is_lost_is_not_made_twice(network: BadNetwork, client: Client) -> None:
    before = {job.id for job in client.jobs(limit=500)}
    network.troubles += [Trouble("/v1/samples", is_answer_lost=True)] * 2
    with Client(network.url) as unlucky:
        job = unlucky.submit(**POINTS)
    assert {each.id for each in client.jobs(limit=500)} - before == {job.id}
    with Client(network.url) as unlucky:
        mine = [unlucky.submit(idempotency_key=job.id, **POINTS, seed=1).id for _ in range(2)]
    assert mine[0] == mine[1]


def test_patience_ends_with_the_reason(network: BadNetwork) -> None:
    with Client(network.url, patience_seconds=5) as client:
        network.troubles += [Trouble("/v1/models", **refusal(503, "no-worker", Retry_After="60"))]
        with pytest.raises(Refused, match=r"no-worker: it says why \(try again in 60 s\)$") as refused:
            client.models()
        assert refused.value.retry_after_seconds == 60
        network.troubles += [Trouble("/v1/models", **refusal(503, "draining", Retry_After="1"))] * 9
        with pytest.raises(Refused, match=r"draining: .*; tried [2-6] times in \d s"):
            client.models()
        network.troubles.clear()
        for never in (refusal(429, "quota-exceeded"), refusal(409, "no-result"), refusal(500, "internal-error")):
            network.troubles += [Trouble("/v1/models", **never)]
            network.seen.clear()
            with pytest.raises(Refused, match="it says why"):
                client.models()
            assert len(network.seen) == 1
        network.troubles += [Trouble("/v1/models", status=200, content=b"hello")]
        with pytest.raises(ClientError, match="does not understand"):
            client.models()


def test_events_go_on_where_the_connection_was_lost(network: BadNetwork, caplog: pytest.LogCaptureFixture) -> None:
    network.troubles += [Trouble("/events", cut_after=4000), Trouble("/events")]
    with Client(network.url) as client:
        job = client.submit(**SOON, previews=8)
        kinds = [event.kind for event in job.events()]
    assert (kinds.count("started"), kinds.count("finished"), kinds[-1]) == (1, 1, "finished")
    asked = [headers.get("last-event-id") for _, path, headers in network.seen if path.endswith("/events")]
    assert asked[0] is None
    assert len(asked) == 3
    assert asked[-1]
    assert "broke off" in caplog.text


def test_a_service_without_events_is_asked_again_and_again(
    network: BadNetwork, caplog: pytest.LogCaptureFixture
) -> None:
    network.troubles += [Trouble("/events", **refusal(404, "not-found"))]
    with Client(network.url) as client:
        job, kinds = client.submit(**LONG), list[str]()
        for event in job.events():
            kinds.append(event.kind)
            if event.kind == "progress":
                job.cancel()
        assert (kinds[-2:], job.job.status) == (["progress", "finished"], "canceled")
        assert caplog.text.count("this service has no events of jobs") == 1
        gone = client.submit(**POINTS)
        gone.delete()
        with pytest.raises(Refused, match=r"not-found|result-expired"):
            gone.wait()


@pytest.mark.anyio
async def test_the_asynchronous_client_does_the_same(live: Service, network: BadNetwork) -> None:
    async with AsyncClient(network.url) as client:
        network.troubles += [
            Trouble("/v1/samples", **refusal(503, "queue-full", Retry_After="0")),
            Trouble("/events", cut_after=500),
        ]
        events = list[Event]()
        images = await client.sample(progress=events.append, **POINTS, count=3, seed=1)
        assert (images.seeds, events[-1].kind) == ([1, 2, 3], "finished")
        many = await asyncio.gather(*(client.sample(**POINTS, seed=seed) for seed in range(8)))
        assert [each.seeds for each in many] == [[seed] for seed in range(8)]
        streamed = [np.asarray(image) async for image in client.stream(per_job=2, **POINTS, count=3, seed=1)]
        assert np.array_equal(np.stack(streamed), images.array[..., 0])
        job = await client.submit(**LONG)
        assert (await job.cancel()).status == "canceled"
        with pytest.raises(JobFailed):
            await job.result()
        assert (await client.job(job.id)).job.status == "canceled"
        assert job.id in {each.id async for each in client.jobs(limit=5)}
        network.troubles += [Trouble("/events", **refusal(404, "not-found"))]
        polled = await client.submit(**SOON)
        assert (await polled.wait()).status == "succeeded"
        await polled.delete()
        assert (await client.estimate(**POINTS)).images == 1
        assert len(await client.models()) == 3
        assert (await client.status()).workers
        with pytest.raises(Refused, match="unknown-model"):
            await client.sample(dataset="none", D=2)


@pytest.mark.parametrize(("blocking", "asynchronous"), [(Client, AsyncClient), (Submitted, AsyncSubmitted)])
def test_both_clients_have_the_same_calls(blocking: type, asynchronous: type) -> None:
    def calls(kind: type) -> dict[str, list[str]]:
        functions = inspect.getmembers(kind, inspect.isfunction)
        return {
            name: list(inspect.signature(function).parameters)
            for name, function in functions
            if not name.startswith("_") and name not in {"close", "aclose"}
        }

    assert calls(blocking) == calls(asynchronous)


def test_the_fields_are_those_of_a_request() -> None:
    assert set(SampleFields.__annotations__) == set(SampleRequest.model_fields)
    required = {name for name, field in SampleRequest.model_fields.items() if field.is_required()}
    assert SampleFields.__required_keys__ == required
    hints = typing.get_type_hints(SampleFields, localns={"Window": object})
    assert hints.keys() == SampleRequest.model_fields.keys()


def test_a_request_may_hold_what_python_has() -> None:
    body = json.loads(body_of({"dataset": "points", "D": float("inf"), "seeds": np.arange(3), "labels": ("a", 1, 2)}))
    assert body == {"dataset": "points", "D": "inf", "seeds": [0, 1, 2], "labels": ["a", 1, 2], "count": 3}
    for wrong in (float("nan"), {1, 2}, "\ud800".encode):
        with pytest.raises(ClientError, match="cannot be sent as JSON"):
            body_of({"dataset": "points", "D": wrong})


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_messages_are_read_however_they_are_cut(end: str, size: int) -> None:
    lines = [
        "retry: 250",
        "",
        ": heartbeat",
        "id: a",
        "event: progress",
        'data: {"x": "\u2028\x85"}',
        "",
        "data:1",
        "data: 2",
    ]
    lines += ["id: b", "", "id: c", "event: lost"]
    content = (end.join(lines) + end).encode()
    parser, found = MessageParser(), list[tuple[str, str]]()
    for start in range(0, len(content), size):
        found += parser.feed(content[start : start + size])
    assert found == [("progress", '{"x": "\u2028\x85"}'), ("message", "1\n2")]
    assert (parser.last_id, parser.retry_seconds) == ("b", 0.25), "the third was not whole"


def test_when_to_come_again_may_be_a_time() -> None:
    assert retry_after("2.5") == 2.5
    assert retry_after(None) is retry_after("soon") is None
    assert retry_after("Thu, 01 Jan 1970 00:00:00 GMT") == 0
    later = retry_after(time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 100)))
    assert later == pytest.approx(100, abs=3)
