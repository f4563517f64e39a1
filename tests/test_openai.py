"""OpenAI's own client, against a real service; and what is refused, in its words."""

from base64 import b64decode
from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from openai import OpenAI
from PIL import Image

from bench.running import Service, running, until
from service.access import Caller, Keys
from service.problems import InvalidRequest
from service.queue import Queue
from service.routes import whole
from service.routes.openai import _labels
from tests.helpers import facts, worker_state

MODEL = "digits-d2048"
ALL = {"dataset": "digits", "D": 2048, "count": 256, "steps": 252, "priority": 9}
"""What keeps the worker busy for many seconds."""


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys(tmp_path_factory.mktemp("keys") / "keys.json")


@pytest.fixture(scope="module")
def key(keys: Keys) -> str:
    return keys.add(Caller(name="alice"))


@pytest.fixture(scope="module")
def limited_key(keys: Keys) -> str:
    return keys.add(Caller(name="limited", submissions_per_minute=1))


@pytest.fixture(scope="module")
def service(keys: Keys, key: str, limited_key: str) -> Iterator[Service]:
    with running(keys_file=keys.path, models=MODEL, compile=False) as service:
        service.client.headers["Authorization"] = f"Bearer {key}"
        yield service


@pytest.fixture
def openai_client(service: Service, key: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{service.url}/v1", api_key=key, max_retries=0) as client:
        yield client


def pixels(png: bytes) -> "np.ndarray[Any, Any]":
    with Image.open(BytesIO(png)) as image:
        return np.asarray(image)


def test_a_prompt_becomes_images(service: Service, openai_client: OpenAI) -> None:
    """Those that /v1/samples makes of the same seeds and classes, enlarged."""
    chosen = {"steps": 9, "seed": 5}
    answer = openai_client.images.generate(model=MODEL, prompt="7, a 3", n=2, size="24x24", extra_body=chosen)
    assert (answer.output_format, answer.background, answer.size) == ("png", "opaque", "24x24")
    images = answer.data or []
    assert [image.revised_prompt for image in images] == ["7", "3"]
    job = service.ended(service.submit(dataset="digits", D=2048, count=2, labels=[7, 3], scale=3, **chosen)["id"])
    for k, image in enumerate(images):
        assert image.b64_json
        png = b64decode(image.b64_json)
        assert pixels(png).shape == (24, 24)
        assert png == service.client.get(f"/v1/jobs/{job['id']}/images/{k}.png").content


def test_images_can_be_fetched_by_url(openai_client: OpenAI, service: Service) -> None:
    answer = openai_client.images.generate(model=MODEL, prompt="any", response_format="url", n=2)
    first, second = answer.data or []
    assert first.b64_json is None
    assert first.revised_prompt in set("0123456789")
    assert second.url
    assert pixels(service.client.get(second.url).content).shape == (8, 8)
    assert httpx.get(second.url).status_code == 401


def test_an_image_can_be_streamed(openai_client: OpenAI) -> None:
    """What it is taken for on its way, then itself: the image that comes without a stream."""
    asked: dict[str, Any] = {"model": MODEL, "prompt": "7", "size": "16x16", "extra_body": {"steps": 150, "seed": 3}}
    with openai_client.images.generate(stream=True, partial_images=3, **asked) as events:
        *partial, last = events
    assert last.type == "image_generation.completed"
    assert (last.size, last.usage.total_tokens) == ("16x16", 0)
    assert [(each.type, each.partial_image_index) for each in partial] == [
        ("image_generation.partial_image", k) for k in range(len(partial))
    ]
    assert 1 <= len(partial) <= 3
    (whole,) = openai_client.images.generate(**asked).data or []
    assert last.b64_json == whole.b64_json
    pictures = [pixels(b64decode(each.b64_json)).astype(float) for each in (*partial, last)]
    assert {picture.shape for picture in pictures} == {(16, 16)}
    away = [np.abs(picture - pictures[-1]).mean() for picture in pictures]
    assert away == sorted(away, reverse=True)
    with openai_client.images.generate(stream=True, **asked) as events:
        assert [event.type for event in events] == ["image_generation.completed"]


def test_models_are_listed_beside_images(service: Service, key: str) -> None:
    with OpenAI(base_url=f"{service.url}/openai/v1", api_key=key, max_retries=0) as client:
        assert [model.id for model in client.models.list()] == [MODEL]
        assert client.models.retrieve(MODEL).object == "model"
        with pytest.raises(openai.NotFoundError, match="there is: digits-d2048"):
            client.models.retrieve("gpt-image-2")
        assert client.images.generate(model=MODEL, prompt="0", extra_body={"steps": 2}).data


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"prompt": "a cat"}, "prompt", "There are: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9"),
        ({"prompt": "7, any"}, "prompt", "understands no other words"),
        ({"prompt": "10"}, "prompt", "understands no other words"),
        ({"prompt": "1, 2, 3", "n": 2}, "prompt", "names 3 classes for n = 2"),
        ({"size": "1024x1024"}, "size", "8x8, 16x16"),
        ({"n": 257}, "n", "at most 256"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"quality": "hd"}, "quality", "standard"),
        ({"background": "transparent"}, "background", "opaque"),
        ({"output_format": "webp"}, "output_format", "png"),
        ({"style": "vivid"}, "style", "no such field"),
        ({"stream": True, "n": 2}, "n", "must be 1 with stream"),
        ({"stream": True, "response_format": "url"}, "response_format", "b64_json with stream"),
        ({"n": 10_001}, "n", "less than or equal to 10000"),
        ({"n": 2**63}, "n", "less than or equal to 10000"),
        ({"n": 9_999}, "n", "at most 256"),
        ({"stream": True, "partial_images": 4}, "partial_images", "less than or equal to 3"),
        ({"partial_images": 1}, "partial_images", "set stream"),
        ({"extra_body": {"solver": "magic"}}, "solver", "heun"),
        ({"extra_body": {"steps": 999}}, "steps", "at most 256"),
        ({"extra_body": {"seeds": [1, 2]}}, "seeds", "count is 1"),
        ({"extra_body": {"label": 3}}, "label", "no such field"),
        ({"extra_body": {"window": {"width": 8, "height": 8}}}, "window", "patches"),
    ],
)
def test_what_cannot_be_is_a_bad_request(openai_client: OpenAI, change: dict[str, Any], param: str, words: str) -> None:
    with pytest.raises(openai.BadRequestError, match=words) as refused:
        openai_client.images.generate(**{"model": MODEL, "prompt": "7"} | change)
    assert refused.value.param == param
    assert (refused.value.code, refused.value.type) == ("invalid-request", "invalid_request_error")


def test_other_refusals_are_the_exceptions_that_clients_know(
    service: Service, openai_client: OpenAI, limited_key: str
) -> None:
    with pytest.raises(openai.NotFoundError, match="there is: digits-d2048"):
        openai_client.images.generate(model="gpt-image-2", prompt="7")
    with (
        OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError, match="not known"),
    ):
        stranger.images.generate(model=MODEL, prompt="7")
    with OpenAI(base_url=f"{service.url}/v1", api_key=limited_key, max_retries=0) as limited:
        limited.images.generate(model=MODEL, prompt="7", extra_body={"steps": 2})
        with pytest.raises(openai.RateLimitError, match="1 jobs a minute") as refused:
            limited.images.generate(model=MODEL, prompt="7", extra_body={"steps": 2})
    assert int(refused.value.response.headers["retry-after"]) >= 1
    nowhere = httpx.post(f"{service.url}/openai/v1/chat", headers=service.client.headers)
    assert (nowhere.status_code, nowhere.json()["error"]["type"]) == (404, "not_found_error")


def test_who_goes_away_leaves_no_work_behind(service: Service) -> None:
    """Unless an Idempotency-Key lets the same images be asked for again."""

    def leave(steps: int, n: int = 256, *, stream: bool = False, key: str | None = None) -> Any:
        body = {"model": MODEL, "prompt": "any", "n": n, "steps": steps, "stream": stream}
        headers = {"Idempotency-Key": key} if key else {}
        with suppress(httpx.ReadTimeout):
            service.client.post("/v1/images/generations", json=body, headers=headers, timeout=0.3)
        return until(lambda: found(steps))

    def found(steps: int) -> Any:
        jobs = service.client.get("/v1/jobs", params={"limit": 100}).json()["jobs"]
        return next((job for job in jobs if job["request"]["steps"] == steps), None)

    left = leave(255)
    assert until(lambda: service.job(left["id"], 1)["status"] == "canceled")
    busy = service.submit(**ALL)
    left = leave(253, 1, stream=True)
    assert until(lambda: service.job(left["id"], 1)["status"] == "canceled")
    kept = leave(254, key="again")
    assert kept["status"] in {"queued", "running"}
    for job in (busy, kept):
        assert service.client.post(job["links"]["cancel"]).status_code == 202


@pytest.mark.anyio
async def test_a_job_that_takes_too_long_is_canceled(
    client: httpx.AsyncClient, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whole, "MOST_SECONDS", 0.05)
    body = {"model": MODEL, "prompt": "7"}
    refused = await client.post("/v1/images/generations", json=body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "no-worker")
    assert refused.headers["retry-after"]
    await queue.announce(worker_state(facts()))
    refused = await client.post("/v1/images/generations", json=body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (504, "not-finished-in-time")
    assert refused.headers["x-should-retry"] == "false"
    (job,) = (await client.get("/v1/jobs")).json()["jobs"]
    assert (job["status"], job["request"]["labels"]) == ("canceled", [7])


CLASSES = ("cat", "owl", "the dog, hound", "a")


@pytest.mark.parametrize(
    ("prompt", "labels"),
    [
        ("", None),
        (" Any ", None),
        ("cat", [0, 0]),
        ("A Cat", [0, 0]),
        ("an owl", [1, 1]),
        ("1", [1, 1]),
        ("the dog, hound", [2, 2]),
        ("cat, an owl", [0, 1]),
        ("a", [3, 3]),
        ("a a", [3, 3]),
    ],
)
def test_a_prompt_names_classes(prompt: str, labels: list[int] | None) -> None:
    """By name before index, whole before in parts: a name may hold a comma, or be an article."""
    assert _labels(prompt, CLASSES, 2) == labels


@pytest.mark.parametrize(
    "prompt", ["the dog, hound, cat", "cats", "a cat and an owl", "cat,", "-1", "4", "²", "a", "0" * 9999]
)
def test_a_prompt_that_is_not_understood_is_refused(prompt: str) -> None:
    with pytest.raises(InvalidRequest, match="prompt"):
        _labels(prompt, CLASSES[:3], 2)


def test_a_model_without_classes_takes_no_prompt() -> None:
    assert _labels("any", (), 1) is None
    with pytest.raises(InvalidRequest, match="no classes"):
        _labels("a cat", (), 1)
