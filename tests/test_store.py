"""The result store: what a directory and a bucket do alike, and what becomes of jobs and pictures when they do not."""

import json
import os
import resource
import signal
import subprocess
import sys
import traceback
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from bench.stores import exact_checkpoint
from service import sample
from service.api import create_app
from service.job import Part
from service.messages import Submission
from service.picture import Damaged, array_bytes
from service.queue import Queue, new_id
from service.sample import TRAJECTORY, Images
from service.settings import Settings
from service.store import ResultStore, StoreAway, open_store
from service.worker import Misconfigured, Worker
from tests.helpers import LANE, S3_SECRET, eventually, forbid, full_disk, next_batch, small_disk
from tests.test_api import GOOD, problem
from tests.test_queue import ended

pytestmark = pytest.mark.anyio

CLOSED = "http://127.0.0.1:9"
"""Where nobody listens."""


@pytest.fixture(params=["directory", "bucket"])
def settings(request: pytest.FixtureRequest, settings: Settings) -> Settings:
    """Settings of each store in turn."""
    if request.param == "directory":
        return settings
    return settings.model_copy(update={"results_url": request.getfixturevalue("bucket")})


@pytest.fixture
def store(settings: Settings) -> ResultStore:
    opened = open_store(settings)
    opened.prepare()
    return opened


def pixels(count: int = 8) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    return np.random.default_rng(count).integers(256, size=(count, 8, 8, 1), dtype=np.uint8)


def test_a_file_is_what_was_written_last(store: ResultStore) -> None:
    job, other, content = new_id(), new_id(), bytes(range(256)) * 30_000
    assert store.names(job) == []
    for each in (b"", b"first", content):
        store.write(job, "grid.png", each)
        assert store.read(job, "grid.png") == each
    store.write(job, "images.npy", array_bytes(pixels()))
    assert sorted(store.names(job)) == ["grid.png", "images.npy"]
    assert np.array_equal(store.array(job, "images.npy"), pixels())
    for missing in ((job, "part-0-images.npy"), (other, "grid.png")):
        for read in (store.read, store.array):
            with pytest.raises(FileNotFoundError):
                read(*missing)
    store.write(job, "images.npy", array_bytes(pixels())[:90])
    with pytest.raises(Damaged, match=r"images\.npy is damaged"):
        store.array(job, "images.npy")


def test_jobs_are_listed_by_age_and_erased_one_by_one(store: ResultStore) -> None:
    first, second = new_id(), new_id()
    for job in (first, second, "not a job"):
        store.write(job, "a", b"x")
        store.write(job, "b", b"x")
    assert store.jobs(older_than_seconds=60) == []
    assert sorted(store.jobs(older_than_seconds=-5)) == sorted([first, second])
    store.remove([first, new_id()])
    assert (store.names(first), sorted(store.names(second))) == ([], ["a", "b"])
    assert store.jobs(older_than_seconds=-5) == [second]


@pytest.mark.parametrize("classes", [[7] * 8, []])
def test_parts_put_aside_come_back_as_they_were(store: ResultStore, classes: list[int]) -> None:
    job_id, film = new_id(), np.stack([pixels()] * 3, axis=1)
    kept = {
        Part(job_id, 0, 8): Images(pixels(8), classes, film),
        Part(job_id, 16, 5): Images(pixels(5), classes[:5]),
    }
    for part, images in kept.items():
        sample.keep(store, part, images)
    found = sample.kept(store, job_id)
    assert found.keys() == kept.keys()
    for part, images in kept.items():
        assert np.array_equal(found[part].images, images.images)
        assert found[part].labels == images.labels
    walked = found[Part(job_id, 0, 8)].trajectory
    assert walked is not None
    assert np.array_equal(walked, film)
    assert found[Part(job_id, 16, 5)].trajectory is None
    assert sample.kept(store, new_id()) == {}


@pytest.mark.usefixtures("offered")
async def test_what_a_canceled_job_had_finished_can_be_fetched(
    client: httpx.AsyncClient, queue: Queue, store: ResultStore
) -> None:
    """Images 0 to 7 of 10 were delivered before; a lost worker had put 4 to 9 aside, which do not count."""
    job = (await client.post("/v1/samples", json=GOOD | {"count": 10, "seed": 5})).json()
    batch = await next_batch(queue)
    assert batch is not None
    sample.keep(store, batch.parts[0], Images(pixels(), [0] * 8))
    sample.keep(store, Part(job["id"], 4, 6), Images(pixels(6), [1] * 6))
    await ended(queue, batch)
    canceled = (await client.post(job["links"]["cancel"])).json()
    assert canceled["links"].keys() == {"self", "events", "cancel", "images", "npz", "zip"}
    here = job["links"]["self"]
    with Image.open(BytesIO((await client.get(f"{here}/images/7.png")).content)) as picture:
        assert np.array_equal(np.asarray(picture), pixels()[7, ..., 0])
    assert "not finished" in problem(await client.get(f"{here}/images/8.png"), 409, "no-result").detail
    refused = problem(await client.get(f"{here}/grid.png"), 409, "no-result").detail
    assert f"what was finished (8 of 10 images) is at {here}/images.npz" in refused
    with np.load(BytesIO((await client.get(f"{here}/images.npz")).content)) as arrays:
        assert np.array_equal(arrays["images"], pixels())
        assert arrays["index"].tolist() == list(range(8))
        assert arrays["seeds"].tolist() == list(range(5, 13))
        assert arrays["labels"].tolist() == [0] * 8
    with zipfile.ZipFile(BytesIO((await client.get(f"{here}/images.zip")).content)) as files:
        assert files.namelist() == ["job.json", *(f"{k}.png" for k in range(8))]
        assert json.loads(files.read("job.json"))["status"] == "canceled"
    store.remove([job["id"]])
    for name in ("images/7.png", "images.npz", "images.zip"):
        problem(await client.get(f"{here}/{name}"), 410, "result-expired")


@pytest.mark.usefixtures("offered")
async def test_a_trajectory_is_there_for_those_who_asked(
    client: httpx.AsyncClient, queue: Queue, store: ResultStore
) -> None:
    jobs = [(await client.post("/v1/samples", json=GOOD | {"trajectory": kept})).json() for kept in (True, False)]
    batch = await eventually(lambda: next_batch(queue))
    await ended(queue, batch, *batch.requests)
    store.write(jobs[0]["id"], "images.npy", array_bytes(np.zeros((1, 8, 8, 1), np.uint8)))
    store.write(jobs[0]["id"], TRAJECTORY, array_bytes(np.zeros((1, 18, 8, 8, 1), np.uint8)))
    links = (await client.get(jobs[0]["links"]["self"])).json()["links"]
    for name, media_type in (("film", "image/gif"), ("trajectory", "image/png")):
        response = await client.get(links[name])
        assert (response.status_code, response.headers["content-type"]) == (200, media_type)
        with Image.open(BytesIO(response.content)) as picture:
            assert picture.size == ((10, 10) if name == "film" else (19 * 9 + 1, 10))
        known = {"If-None-Match": response.headers["etag"]}
        assert (await client.get(links[name], headers=known)).status_code == 304
    assert "trajectory" not in (await client.get(jobs[1]["links"]["self"])).json()["links"]
    refused = problem(await client.get(f"/v1/jobs/{jobs[1]['id']}/trajectory.gif"), 404, "not-found")
    assert "kept no trajectory" in refused.detail


@pytest.mark.usefixtures("offered")
async def test_a_store_that_is_away_is_no_result_that_is_gone(
    settings: Settings, client: httpx.AsyncClient, queue: Queue, store: ResultStore
) -> None:
    job = (await client.post("/v1/samples", json=GOOD)).json()
    batch = await eventually(lambda: next_batch(queue))
    await ended(queue, batch, *batch.requests)
    here = job["links"]["self"]
    problem(await client.get(f"{here}/grid.png"), 410, "result-expired")
    store.write(job["id"], "grid.png", b"\x89PNG")
    assert (await client.get(f"{here}/grid.png")).content == b"\x89PNG"
    with away(settings):
        for name in ("grid.png", "images/0.png", "images.npz", "images.zip"):
            response = await client.get(f"{here}/{name}")
            detail = problem(response, 503, "store-unavailable").detail
            assert response.headers["retry-after"] == "5"
            assert str(settings.results_dir) not in detail
    assert (await client.get(f"{here}/grid.png")).content == b"\x89PNG"
    store.write(job["id"], "images.npy", b"no array")
    problem(await client.get(f"{here}/images/0.png"), 410, "result-expired")
    with away(settings):
        assert (await client.delete(here)).status_code == 204
    problem(await client.get(f"{here}/grid.png"), 404, "not-found")


@contextmanager
def away(settings: Settings) -> Iterator[None]:
    """The store as after its mount was lost, or its bucket closed to us."""
    if settings.results_url:
        forbid(settings.results_url)
        yield
        forbid(settings.results_url, is_forbidden=False)
    else:
        aside = settings.results_dir.rename(settings.results_dir.with_name("aside"))
        yield
        aside.rename(settings.results_dir)


KILLED_WRITER = """
import os, signal, sys
from pathlib import Path
from service.store import LocalStore

Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
LocalStore(Path(sys.argv[1])).write(sys.argv[2], "images.npy", b"x" * 1000)
"""
"""A process that dies between the writing of a file and its name."""


def _be_killed_while_writing(root: Path, job_id: str) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED_WRITER, str(root), job_id], check=False)
    assert killed.returncode == -signal.SIGKILL


async def test_workers_sweep_what_nobody_knows_and_spare_what_lives(
    settings: Settings, queue: Queue, store: ResultStore
) -> None:
    living, forgotten = new_id(), new_id()
    assert await queue.submit(Submission(living, "sample", LANE, 16, 35, "{}"))
    for job in (living, forgotten, "not a job"):
        store.write(job, "part-0-images.npy", b"x")
    root = settings.results_dir / settings.queue
    if not settings.results_url:
        empty = root / new_id()
        empty.mkdir()
        _be_killed_while_writing(root, living)
        unfinished = list((root / ".unfinished").iterdir())
        assert [each.stat().st_size for each in unfinished] == [1000]
    worker = Worker(settings)
    worker.store = store
    await worker._sweep(older_than_seconds=60)
    assert store.names(forgotten)
    await worker._sweep(older_than_seconds=-5)
    await worker.queue.close()
    assert store.names(forgotten) == []
    assert (store.names(living), store.names("not a job")) == (["part-0-images.npy"], ["part-0-images.npy"])
    if not settings.results_url:
        assert not empty.exists()
        assert list((root / ".unfinished").iterdir()) == []


@pytest.mark.parametrize("settings", ["bucket"], indirect=True)
async def test_a_bucket_that_cannot_be_used_stops_a_worker_at_its_start(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert settings.results_url
    forbid(settings.results_url)
    with pytest.raises(Misconfigured, match=f"PFGMPP_RESULTS_URL={settings.results_url}: the store answers 403") as why:
        await Worker(settings).run()
    assert S3_SECRET not in "".join(traceback.format_exception(why.value))
    forbid(settings.results_url, is_forbidden=False)
    with pytest.raises(Misconfigured, match="PFGMPP_RESULTS_URL=s3://nobodys: the store answers NoSuchBucket"):
        await Worker(settings.model_copy(update={"results_url": "s3://nobodys"})).run()
    monkeypatch.setenv("AWS_ENDPOINT_URL", CLOSED)
    with pytest.raises(StoreAway, match=f"PFGMPP_RESULTS_URL={settings.results_url}: the store cannot be reached"):
        await Worker(settings).run()
    for wrong in ("", "minio:9000", "ftp://minio"):
        monkeypatch.setenv("AWS_ENDPOINT_URL", wrong)
        with pytest.raises(Misconfigured, match="AWS_ENDPOINT_URL must be a URL"):
            await Worker(settings).run()
        with pytest.raises(ValueError, match="AWS_ENDPOINT_URL must be a URL"):
            create_app(settings)


@pytest.mark.parametrize(
    "url", ["s3://", "s3://b", "https://bucket", "s3://key:secret@bucket", "s3://Bucket", "bucket"]
)
def test_a_url_that_names_no_bucket_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="results_url"):
        Settings(results_url=url)


@contextmanager
def small_files(process: int) -> Iterator[str]:
    """No room in any file of a process, not in its log either; what the system says of it. Takes no rights."""
    resource.prlimit(process, resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
    yield "File too large"
    resource.prlimit(process, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@pytest.mark.parametrize("settings", ["directory"], indirect=True)
async def test_while_the_disk_is_full_jobs_fail_with_the_reason_and_the_worker_goes_on(
    settings: Settings, client: httpx.AsyncClient, queue: Queue, tmp_path: Path
) -> None:
    async def outcome(count: int) -> Any:
        job = (await client.post("/v1/samples", json={"dataset": "points", "D": 128, "count": count})).json()
        return await eventually(lambda: _ended(client, job["links"]["self"]))

    exact_checkpoint(tmp_path / "store", 128.0)
    settings.results_dir.mkdir()
    disk = small_disk(settings.results_dir)
    command = [*disk, sys.executable, "-m", "service", "worker", "--metrics-port", "0"]
    environment = os.environ | settings.environment() | {"PFGMPP_MODEL_STORE": str(tmp_path / "store")}
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(command, env=environment, stderr=log) as worker,  # noqa: ASYNC220
        ExitStack() as stack,
    ):
        stack.callback(worker.terminate)
        await eventually(lambda: _is_offered(queue))
        folder = Path(f"/proc/{worker.pid}/root{settings.results_dir}") if disk else settings.results_dir
        for obstacle in (small_files(worker.pid), *([full_disk(folder)] if disk else [])):
            assert (await outcome(count=3))["status"] == "succeeded"
            with obstacle as reason:
                for count in (3, 20):
                    job = await outcome(count)
                    assert (job["status"], job["attempts"], job["error"]["code"]) == ("failed", 3, "store-failed")
                    assert job["error"]["detail"] == f"The result could not be stored: {reason}"
            assert list((folder / settings.queue / ".unfinished").iterdir()) == [], "nothing half written stays"
            job = await outcome(count=20)
            assert job["status"] == "succeeded"
            assert (folder / settings.queue / job["id"] / "grid.png").read_bytes().startswith(b"\x89PNG")
    assert worker.returncode == 0


async def _is_offered(queue: Queue) -> bool:
    return bool((await queue.catalogue()).models)


async def _ended(client: httpx.AsyncClient, link: str) -> Any:
    job = (await client.get(link, params={"wait": 30})).json()
    return job if job["finished_at"] else None
