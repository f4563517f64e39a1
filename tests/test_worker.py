"""The worker, in this process: real queue, real checkpoints, real files."""

import asyncio
import json
import math
import os
import shutil
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bench.stores import exact_checkpoint, untrained_checkpoint
from models.card import UNetOptions
from models.checkpoint import load
from models.commands import import_official
from models.generate import Generator, Walk
from models.sampling import SOLVER_FACTS, Sampling, SolverName
from models.shapes import Shapes
from service import sample
from service.catalogue import Catalogue, OfferedModel
from service.job import Job, JobError
from service.messages import JobReport, Order, Report, Submission
from service.policy import Flight
from service.queue import Queue, new_id
from service.request import Resolved, SampleRequest, resolve
from service.sample import TRAJECTORY, Images
from service.settings import Settings
from service.store import LocalStore
from service.worker import Hung, Misconfigured, Worker
from tests.helpers import eventually, metric, next_batch
from tests.models.helpers import card, solve
from tests.models.officials import INDEX, recorded_file

pytestmark = pytest.mark.anyio

Submit = Callable[..., Awaitable[str]]


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    for D in (2.0, 128.0, math.inf):
        exact_checkpoint(tmp_path / "store", D)
    return settings.model_copy(update={"model_store": tmp_path / "store", "heartbeat_seconds": 0.5})


@asynccontextmanager
async def working(settings: Settings) -> AsyncIterator[Worker]:
    """A worker at work; at the end it is told to stop, and must."""
    worker = Worker(settings)
    life = asyncio.create_task(worker.run())
    try:
        await eventually(lambda: _is_offered(worker, life))
        yield worker
    finally:
        worker.stop()
        await asyncio.wait_for(life, 30)


async def _is_offered(worker: Worker, life: "asyncio.Task[None]") -> bool:
    if life.done():
        life.result()
    return worker.name in {each.name for each in (await worker.queue.catalogue()).workers}


@pytest.fixture
async def submit(settings: Settings, queue: Queue) -> Submit:
    """Queues a sample request for `points`, checked as at the door."""

    async def submit(catalogue: Catalogue | None = None, **fields: object) -> str:
        offered = catalogue or await queue.catalogue()
        request = SampleRequest.model_validate({"dataset": "points", "D": 128} | fields)
        model = offered.find(request.dataset, request.D)
        assert model is not None
        resolved = resolve(request, model, "exact", settings.max_count, settings.max_pixels)
        job_id, lane, cost = new_id(), sample.lane(resolved), resolved.evaluations
        text = resolved.model_dump_json()
        assert await queue.submit(Submission(job_id, sample.KIND, lane, resolved.count, cost, text))
        return job_id

    return submit


async def ended(queue: Queue, job_id: str) -> Job:
    async def read() -> Job | None:
        job = await queue.read(job_id)
        return job if job and job.is_finished else None

    job = await eventually(read)
    assert job is not None
    return job


def images_of(settings: Settings, job_id: str) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    path = LocalStore(settings.results_dir / settings.queue).path(job_id, "images.npy")
    images: np.ndarray[tuple[int, ...], np.dtype[np.uint8]] = np.load(path, allow_pickle=False)
    return images


@pytest.mark.parametrize("solver", SOLVER_FACTS)
async def test_every_solver_gives_a_seed_its_image_whatever_shares_the_batch(
    settings: Settings, queue: Queue, submit: Submit, solver: SolverName
) -> None:
    async with working(settings):
        alone = await ended(queue, await submit(count=1, seed=3, steps=6, solver=solver, alpha=0.1))
        crowd = await ended(queue, await submit(count=5, seed=1, steps=6, solver=solver, alpha=0.1))
    assert (alone.status, crowd.status) == ("succeeded", "succeeded")
    assert (images_of(settings, alone.id)[0] == images_of(settings, crowd.id)[2]).all()
    assert crowd.progress().evaluations_done == 5 * Sampling(steps=6, solver=solver).evaluations


async def test_guided_jobs_take_two_evaluations_each_and_say_what_guided_them(
    settings: Settings, queue: Queue, submit: Submit
) -> None:
    assert settings.model_store
    exact_checkpoint(settings.model_store, 128.0, "worse", seed=1)
    async with working(settings):
        choices: tuple[dict[str, object], ...] = ({}, {"guidance": 2.0}, {"guidance": 2.0, "guide": "worse-d128"})
        jobs = [await ended(queue, await submit(count=12, seed=1, steps=6, **choice)) for choice in choices]
    assert [job.status for job in jobs] == ["succeeded"] * 3
    assert [job.progress().evaluations_done for job in jobs] == [12 * 11, 12 * 22, 12 * 22]
    assert len({images_of(settings, job.id).tobytes() for job in jobs}) == 3
    store = LocalStore(settings.results_dir / settings.queue)
    with Image.open(store.path(jobs[2].id, "grid.png")) as grid:
        assert (grid.info["guidance"], grid.info["guide"]) == ("2.0", "worse-d128")
        assert len(grid.info["guide_checkpoint_sha256"]) == 64


async def test_windows_of_a_model_are_images_of_their_own_size(
    settings: Settings, queue: Queue, submit: Submit
) -> None:
    """The whole frame as a window is the frame; at another place, it is another image."""
    assert settings.model_store
    architecture = UNetOptions(
        model_channels=16, channel_mult=(1, 2), num_blocks=1, attn_resolutions=(4,), coordinates=2
    )
    untrained_checkpoint(settings.model_store, card(architecture=architecture))
    frame, corner = ({"x": at, "y": at, "width": 8, "height": 8} for at in (0, 4))
    windows: list[object] = [None, frame, corner, {"width": 12, "height": 4}]
    asked: dict[str, Any] = {"dataset": "tiny", "count": 3, "seed": 1, "steps": 3, "labels": [0, 1, 2], "columns": 2}
    async with working(settings):
        ids = [await submit(**asked, window=window) for window in windows]
        jobs = [await ended(queue, job_id) for job_id in ids]
    assert [job.status for job in jobs] == ["succeeded"] * 4
    images = [images_of(settings, job.id) for job in jobs]
    assert np.array_equal(images[0], images[1])
    assert not np.array_equal(images[1], images[2])
    assert images[3].shape == (3, 4, 12, 3)
    store = LocalStore(settings.results_dir / settings.queue)
    with Image.open(store.path(jobs[3].id, "grid.png")) as grid:
        assert grid.size == (2 * 13 + 1, 2 * 5 + 1)
        assert grid.info["window"] == '{"x": 0, "y": 0, "width": 12, "height": 4}'


@pytest.mark.parametrize("solver", ["heun", "dpmpp-2m"])
async def test_a_trajectory_holds_every_step_of_every_image_and_ends_with_it(
    settings: Settings, queue: Queue, submit: Submit, solver: SolverName
) -> None:
    """Of a job in several batches; the last step of a solver takes the estimate itself."""
    async with working(settings):
        job = await ended(queue, await submit(count=20, seed=1, steps=5, solver=solver, trajectory=True))
    assert job.status == "succeeded"
    store = LocalStore(settings.results_dir / settings.queue)
    estimates = np.load(store.path(job.id, TRAJECTORY))
    assert estimates.shape == (20, 5, 4, 4, 1)
    assert (estimates[:, -1] == images_of(settings, job.id)).all()
    assert (estimates[:, 0] != estimates[:, -1]).any()


async def test_a_job_ends_with_images_grid_and_latency(settings: Settings, queue: Queue, submit: Submit) -> None:
    async with working(settings):
        job = await ended(queue, await submit(count=5, seed=1, labels=[0, 1, 0, 1, 0], steps=6, scale=3))
    assert (job.status, job.error, job.labels) == ("succeeded", None, [0, 1, 0, 1, 0])
    latency = job.latency()
    assert latency is not None
    assert (latency.evaluations, latency.batch_images) == (11, 5)
    stages = latency.queue_seconds, latency.batch_wait_seconds, latency.sampling_seconds, latency.encoding_seconds
    assert all(stage >= 0 for stage in stages)
    assert latency.sampling_seconds > 0
    assert sum(stages) == pytest.approx(latency.total_seconds, abs=1e-5)
    assert job.progress().evaluations_done == job.progress().evaluations_total == 55
    assert images_of(settings, job.id).shape == (5, 4, 4, 1)
    with Image.open(LocalStore(settings.results_dir / settings.queue).path(job.id, "grid.png")) as grid:
        assert grid.size == ((3 * 5 + 1) * 3, (2 * 5 + 1) * 3)
        text = grid.info
    assert (text["dataset"], text["D"], text["steps"], text["solver"]) == ("points", "128", "6", "heun")
    assert json.loads(text["seeds"]) == [1, 2, 3, 4, 5]
    assert json.loads(text["labels"]) == job.labels
    assert text["checkpoint_sha256"] == job.request["checkpoint_sha256"] == job.view().model.checkpoint_sha256


async def test_the_same_request_gives_the_same_images_in_any_company(
    settings: Settings, queue: Queue, submit: Submit
) -> None:
    """Alone, split over batches, and merged with others; whoever draws labels or is told them."""
    seeds = list(range(100, 120))
    async with working(settings):
        whole = await ended(queue, await submit(count=20, seeds=seeds))
        alone = [await submit(seed=seed) for seed in seeds[:4]]
        others = [await submit(count=3, seed=7), await submit(count=20, seeds=seeds[::-1])]
        told = await submit(count=20, seeds=seeds, labels=whole.labels)
        for job_id in (*alone, *others, told):
            await ended(queue, job_id)
    reference = images_of(settings, whole.id)
    for k, job_id in enumerate(alone):
        assert np.array_equal(images_of(settings, job_id)[0], reference[k])
    assert np.array_equal(images_of(settings, others[1])[::-1], reference)
    assert np.array_equal(images_of(settings, told), reference)


async def test_concurrent_requests_of_one_kind_share_batches(
    settings: Settings, queue: Queue, submit: Submit, redis_url: str
) -> None:
    """20 requests need no more network calls than ceil(images / limit) + 1 full batches; the metrics agree."""
    async with working(settings):
        catalogue = await queue.catalogue()
        calls_before = metric("pfgmpp_network_evaluation_seconds_count", model="points-d128")
        images_before = metric("pfgmpp_batch_images_sum", model="points-d128")
        ids = await asyncio.gather(*(submit(catalogue, count=3, seed=k) for k in range(20)))
        other = await submit(catalogue, D="inf", count=2)
        for job_id in (*ids, other):
            assert (await ended(queue, job_id)).status == "succeeded"
    calls = metric("pfgmpp_network_evaluation_seconds_count", model="points-d128") - calls_before
    assert calls <= (math.ceil(60 / settings.batch_images) + 1) * Sampling(steps=18).evaluations
    assert metric("pfgmpp_batch_images_sum", model="points-d128") - images_before == 60


async def test_a_short_job_overtakes_a_long_one_under_way(settings: Settings, queue: Queue, submit: Submit) -> None:
    async with working(settings):
        long = await submit(count=64, steps=400)
        await eventually(lambda: _runs(queue, long))
        short = await ended(queue, await submit(steps=2))
        waiting = await queue.read(long)
        assert waiting is not None
        assert (short.status, waiting.status) == ("succeeded", "running")
        assert (await ended(queue, long)).status == "succeeded"


async def test_by_key_a_short_job_waits_for_the_batch_under_way(
    settings: Settings, queue: Queue, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with working(settings.model_copy(update={"batching": "by-key"})) as worker:
        evaluate, widths = worker.engine.evaluate, list[int]()

        def noted(flight: Flight, walks: Sequence[Walk]) -> None:
            widths.append(sum(len(walk.labels) for walk in walks))
            evaluate(flight, walks)

        monkeypatch.setattr(worker.engine, "evaluate", noted)
        long = await submit(count=8, steps=400)
        await eventually(lambda: _runs(queue, long))
        short = await submit(steps=2)
        for job_id in (long, short):
            assert (await ended(queue, job_id)).status == "succeeded"
    assert widths == [8] * 799 + [1] * 3, "the short one began when the device was free"


async def test_jobs_of_other_lengths_share_network_calls(settings: Settings, queue: Queue, submit: Submit) -> None:
    async with working(settings):
        catalogue = await queue.catalogue()
    before = metric("pfgmpp_network_evaluation_seconds_count", model="points-d128")
    ids = [await submit(catalogue, steps=steps) for steps in range(493, 501)]
    async with working(settings):
        for job_id in ids:
            assert (await ended(queue, job_id)).status == "succeeded"
    calls = metric("pfgmpp_network_evaluation_seconds_count", model="points-d128") - before
    assert calls <= 2 * 999, "eight jobs of 985 to 999 evaluations, side by side"


async def test_images_of_a_job_that_has_failed_elsewhere_leave(
    settings: Settings, queue: Queue, submit: Submit
) -> None:
    strict = Queue(queue.redis, queue.blocking, settings.model_copy(update={"max_attempts": 1}))
    async with working(settings):
        catalogue = await queue.catalogue()
    failing = await submit(catalogue, count=16, steps=10_000)
    elsewhere = await next_batch(queue, worker="other", models=["points-d128"])
    assert elsewhere is not None
    wasted = metric("pfgmpp_network_evaluations_total", kind="wasted")
    async with working(settings) as worker:
        await eventually(lambda: _holds(worker))
        await strict.fail(elsewhere, JobError(code="sampling-failed", detail="NaN"))
        await eventually(lambda: _is_empty_handed(worker))
        assert (await ended(queue, await submit())).status == "succeeded"
    assert (await ended(queue, failing)).done == 0
    assert metric("pfgmpp_network_evaluations_total", kind="wasted") > wasted


async def _holds(worker: Worker) -> bool:
    return any(share.evaluations_done for shares in worker.in_hand.values() for share in shares.values())


async def _is_empty_handed(worker: Worker) -> bool:
    return not worker.in_hand


async def test_a_canceled_job_leaves_the_device_within_two_evaluations(
    settings: Settings, queue: Queue, submit: Submit
) -> None:
    """And others go on; what was computed of it was in vain."""
    async with working(settings) as worker:
        before = metric("pfgmpp_network_evaluations_total", kind="wasted")
        job_id = await submit(count=64, steps=1000)
        await eventually(lambda: _is_computed(worker))
        assert await queue.cancel(job_id)
        worker._on_order(Order("cancel", job_id))
        calls = metric("pfgmpp_network_evaluation_seconds_count", model="points-d128")
        await eventually(lambda: _is_empty_handed(worker))
        other = await ended(queue, await submit(count=1, steps=2))
        after = metric("pfgmpp_network_evaluation_seconds_count", model="points-d128")
    assert (await ended(queue, job_id)).status == "canceled"
    assert other.status == "succeeded"
    assert calls <= after <= calls + 2 + other.evaluations
    assert metric("pfgmpp_network_evaluations_total", kind="wasted") > before
    assert await queue.redis.zcard(f"{queue.prefix}leases") == 0


async def _is_computed(worker: Worker) -> bool:
    return any(share.evaluations_done for shares in worker.in_hand.values() for share in shares.values())


async def test_a_network_call_that_hangs_ends_the_worker(
    settings: Settings, queue: Queue, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its job is charged for it, and waits for another worker, to run alone."""
    worker, hung = Worker(settings.model_copy(update={"hang_seconds": 0.2})), threading.Event()
    life = asyncio.create_task(worker.run())
    await eventually(lambda: _is_offered(worker, life))
    monkeypatch.setattr(worker.engine, "evaluate", lambda flight, walks: hung.wait(60))
    job_id = await submit()
    with pytest.raises(Hung, match="more than"):
        await asyncio.wait_for(life, 30)
    hung.set()
    assert [(job.job_id, job.outcome) for job in await eventually(queue.reap)] == [(job_id, "requeued")]
    job = await queue.read(job_id)
    assert job
    assert (job.status, job.attempts, job.fields["alone"]) == ("running", 2, "1")


async def test_a_job_that_lost_a_worker_runs_alone(settings: Settings, queue: Queue, submit: Submit) -> None:
    """It waits until the worker's hands are empty, and nothing joins it."""
    async with working(settings):
        catalogue = await queue.catalogue()
    marked = await submit(catalogue, count=2, steps=40)
    assert await next_batch(queue, models=["points-d128"])
    await queue.disown("worker-1")
    await queue.reap()
    async with working(settings):
        others = await asyncio.gather(*(submit(catalogue, steps=steps) for steps in (39, 40, 41, 42)))
        jobs = [await ended(queue, job_id) for job_id in (marked, *others)]
    assert {job.status for job in jobs} == {"succeeded"}
    latency = jobs[0].latency()
    assert latency is not None
    assert latency.batch_images == 2


async def test_steps_and_D_keep_batches_apart(settings: Settings, queue: Queue, submit: Submit) -> None:
    async with working(settings) as worker:
        catalogue = await queue.catalogue()
    requests: list[dict[str, object]] = [
        {"D": 128},
        {"D": 2},
        {"D": "inf"},
        {"D": 128, "steps": 5},
        {"D": 128, "steps": 6},
    ]
    ids = [await submit(catalogue, **fields) for fields in requests * 2]
    lanes = []
    while batch := await next_batch(queue, worker=worker.name, models=worker.engine.models):
        lanes.append(batch.lane)
        assert batch.images == 2
    assert len(set(lanes)) == len(lanes) == len(requests)
    assert len(ids) == 10


async def test_metrics_tell_useful_evaluations_from_padding(settings: Settings, queue: Queue, submit: Submit) -> None:
    async with working(settings):
        labels = {"model": "points-d2"}
        before = {
            kind: metric("pfgmpp_network_evaluations_total", kind=kind, **labels) for kind in ("useful", "padding")
        }
        await ended(queue, await submit(D=2, count=3, steps=4))
        await eventually(lambda: _counted("points-d2"))
    useful, padding = (
        metric("pfgmpp_network_evaluations_total", kind=kind, **labels) - before[kind] for kind in ("useful", "padding")
    )
    assert useful == 7 * 3
    assert padding in {0, 7 * 1, 7 * 5}  # run as 2 and 1, as 4, or as 8 images: as measured
    for stage in ("queue", "batch_wait", "sampling", "encoding", "total"):
        assert metric("pfgmpp_job_duration_seconds_count", stage=stage, **labels) >= 1


async def _counted(model: str) -> bool:
    return metric("pfgmpp_jobs_finished_total", model=model, outcome="succeeded") >= 1


async def test_a_bad_checkpoint_is_refused_and_the_others_are_served(
    settings: Settings, queue: Queue, submit: Submit, capsys: pytest.CaptureFixture[str]
) -> None:
    assert settings.model_store
    (settings.model_store / "broken.safetensors").write_bytes(b"not a checkpoint")
    (settings.model_store / "copy.safetensors").write_bytes(
        (settings.model_store / "points-d2.safetensors").read_bytes()
    )
    async with working(settings):
        offered = await queue.catalogue()
        assert [model.name for model in offered.models.values()] == ["points-d2", "points-d128", "points-dinf"]
        assert (await ended(queue, await submit())).status == "succeeded"
    printed = "".join(capsys.readouterr())
    assert "broken.safetensors: not a safetensors file" in printed
    assert "another file of the store already holds points-d2" in printed


async def test_without_any_model_the_worker_does_not_start(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(Misconfigured, match="empty"):
        await Worker(settings.model_copy(update={"model_store": tmp_path / "empty"})).run()
    with pytest.raises(Misconfigured, match="not a directory"):
        await Worker(settings.model_copy(update={"model_store": tmp_path / "nowhere"})).run()
    with pytest.raises(Misconfigured, match="abacus"):
        await Worker(settings.model_copy(update={"device": "abacus"})).run()
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(Misconfigured, match="file"):
        await Worker(settings.model_copy(update={"results_dir": tmp_path / "file"})).run()


async def test_a_batch_that_cannot_be_sampled_fails_with_the_reason(
    settings: Settings, queue: Queue, submit: Submit
) -> None:
    """A kept request that no longer fits the model, as after a change of checkpoint."""
    async with working(settings):
        catalogue = await queue.catalogue()
        model = catalogue.find("points", 128)
        assert model is not None
        good = resolve(SampleRequest(dataset="points", D=128, label=1), model, "exact", 10, 10**6)
        bad = Resolved.model_validate(good.model_dump() | {"labels": [99]})
        job_id = new_id()
        await queue.submit(Submission(job_id, "sample", sample.lane(bad), 1, 7, bad.model_dump_json()))
        job = await ended(queue, job_id)
        assert (await ended(queue, await submit())).status == "succeeded", "the worker goes on"
    assert (job.status, job.attempts) == ("failed", 3)
    assert job.error is not None
    assert job.error.code == "sampling-failed"


async def test_a_result_that_cannot_be_stored_fails_the_job(settings: Settings, queue: Queue, submit: Submit) -> None:
    async with working(settings):
        shutil.rmtree(settings.results_dir)
        settings.results_dir.write_text("a file where the folder should be")
        job = await ended(queue, await submit())
        settings.results_dir.unlink()
        assert (await ended(queue, await submit())).status == "succeeded", "the worker goes on"
    assert job.error is not None
    assert (job.status, job.error.code) == ("failed", "store-failed")
    assert str(settings.results_dir) not in job.error.detail


@pytest.mark.parametrize("damage", ["lost", "cut off"])
async def test_a_job_whose_parts_are_damaged_fails_and_never_shows_blanks(
    settings: Settings, queue: Queue, submit: Submit, damage: str
) -> None:
    store = LocalStore(settings.results_dir / settings.queue)
    async with working(settings):
        catalogue = await queue.catalogue()
    job_id = await submit(catalogue, count=12)
    first = await next_batch(queue, models=["points-d128"])
    assert first is not None
    sample.keep(store, first.parts[0], Images(np.zeros((8, 4, 4, 1), np.uint8), [0] * 8))
    done = JobReport(
        began_ms_ago=2,
        sampled_ms_ago=1,
        images=8,
        arithmetic="float32",
        checkpoint=catalogue.models["points-d128"].checkpoint_sha256,
        labels={0: json.dumps([0] * 8)},
        is_written=False,
    )
    await queue.complete(first, Report(jobs={job_id: done}))
    part = store.path(job_id, "part-0-images.npy")
    part.unlink() if damage == "lost" else part.write_bytes(part.read_bytes()[:90])
    async with working(settings):
        job = await ended(queue, job_id)
        assert (await ended(queue, await submit())).status == "succeeded", "the worker goes on"
    assert job.error is not None
    assert (job.status, job.error.code) == ("failed", "store-failed")


async def offered_now(queue: Queue, D: float, checkpoint: str = "") -> OfferedModel | None:
    """The model of that D, once it is on offer with other weights than these."""
    model = (await queue.catalogue()).find("points", D)
    return model if model and model.checkpoint_sha256 != checkpoint else None


async def test_new_files_are_offered_and_replaced_ones_are_used_by_new_jobs(
    settings: Settings, queue: Queue, submit: Submit
) -> None:
    quick, store = settings.model_copy(update={"store_seconds": 0.05}), settings.model_store
    assert store
    async with working(quick):
        first = await ended(queue, await submit(seed=1))
        exact_checkpoint(store, 7.0)
        await eventually(lambda: offered_now(queue, 7))
        added = await ended(queue, await submit(D=7))
        exact_checkpoint(store, 128.0, examples=6)
        replaced = await eventually(lambda: offered_now(queue, 128, first.request["checkpoint_sha256"]))
        second = await ended(queue, await submit(seed=1))
        (store / "points-d7.safetensors").unlink()
        await eventually(lambda: gone(queue, 7))
    assert [job.status for job in (first, added, second)] == ["succeeded"] * 3
    assert second.view().model.checkpoint_sha256 == replaced.checkpoint_sha256
    assert first.view().model.checkpoint_sha256 != replaced.checkpoint_sha256


async def test_a_worker_outlives_a_store_without_models(settings: Settings, queue: Queue) -> None:
    store = settings.model_store
    assert store
    async with working(settings.model_copy(update={"store_seconds": 0.05})) as worker:
        for file in store.iterdir():
            file.unlink()
        await eventually(lambda: gone(queue, 128))
        assert worker._appetite() is None
        await queue.wait_for_work(worker.engine.models, 0.01)
        exact_checkpoint(store, 7.0)
        await eventually(lambda: offered_now(queue, 7))


async def gone(queue: Queue, D: float) -> bool:
    return (await queue.catalogue()).find("points", D) is None


async def test_imported_official_files_are_served(settings: Settings, queue: Queue, submit: Submit) -> None:
    """Both containers: imported by the command, sampled through the service, as the network that was recorded."""
    assert settings.model_store

    def as_dataset(name: str) -> str:
        return name.replace(".", "-")

    for name in INDEX:
        file = settings.model_store / name
        file.write_bytes(recorded_file(name))
        dataset = as_dataset(name)
        import_official(file, dataset=dataset, D="128", output=settings.model_store / f"{dataset}.safetensors")
    async with working(settings):
        offered = await queue.catalogue()
        for name in INDEX:
            dataset = as_dataset(name)
            model = offered.models[f"{dataset}-d128"]
            assert model.license == "CC BY-NC-SA 4.0"
            assert model.training["source"] == name
            job = await ended(queue, await submit(dataset=dataset, count=3, seed=5, steps=6))
            recorded = Generator(load(settings.model_store / f"{dataset}.safetensors"), Shapes((8,), (1.0,)))
            alone = recorded.images([5, 6, 7], [None] * 3, 6)
            assert job.status == "succeeded"
            assert (images_of(settings, job.id) == alone).all()


async def test_a_model_is_unloaded_and_loaded_by_order_and_when_it_is_asked_for(
    settings: Settings, queue: Queue, submit: Submit
) -> None:
    async def is_loaded(wanted: bool) -> bool:
        model = (await queue.catalogue()).find("points", 128)
        return model is not None and bool(model.loaded_on) == wanted

    async with working(settings):
        assert await queue.order(Order("unload", "points-d128")) == 1
        await eventually(lambda: is_loaded(False))
        await queue.order(Order("load", "points-d128"))
        await eventually(lambda: is_loaded(True))
        await queue.order(Order("unload", "points-d128"))
        await eventually(lambda: is_loaded(False))
        assert (await ended(queue, await submit())).status == "succeeded"
        await eventually(lambda: is_loaded(True))
        assert await queue.order(Order("unload", "points-d128")) == 1
        await eventually(lambda: is_loaded(False))


async def test_a_worker_serves_the_models_that_it_is_told_to(
    settings: Settings, queue: Queue, capsys: pytest.CaptureFixture[str]
) -> None:
    async with working(settings.model_copy(update={"models": "points-d2,points-dinf"})):
        assert sorted((await queue.catalogue()).models) == ["points-d2", "points-dinf"]
    spaced = settings.model_copy(update={"models": "points-d2, points-dinf,nosuch"})
    capsys.readouterr()
    async with working(spaced):
        assert sorted((await queue.catalogue()).models) == ["points-d2", "points-dinf"]
    assert "no model is like this pattern" in capsys.readouterr().out
    with pytest.raises(Misconfigured, match=r"no checkpoint of .* whose model is like digits-\*"):
        await Worker(settings.model_copy(update={"models": "digits-*"})).run()


async def test_a_stopped_worker_finishes_what_it_holds_and_leaves(
    settings: Settings, queue: Queue, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with working(settings) as worker:
        evaluate, may_go_on = worker.engine.evaluate, threading.Event()

        def held_up(flight: Flight, walks: Sequence[Walk]) -> None:
            may_go_on.wait()
            evaluate(flight, walks)

        monkeypatch.setattr(worker.engine, "evaluate", held_up)
        job_id = await submit(count=8, steps=4)
        await eventually(lambda: _runs(queue, job_id))
        worker.stop()
        catalogue = await eventually(lambda: _draining(queue))
        assert catalogue.models
        assert not catalogue.can_serve
        may_go_on.set()
        assert (await ended(queue, job_id)).status == "succeeded"
    assert not (await queue.catalogue()).workers


async def _draining(queue: Queue) -> Catalogue | None:
    """The catalogue, once its worker drains."""
    catalogue = await queue.catalogue()
    return catalogue if [worker.state for worker in catalogue.workers] == ["draining"] else None


async def test_a_stopped_worker_leaves_nothing_behind(settings: Settings) -> None:
    before = asyncio.all_tasks()
    async with working(settings):
        pass
    assert asyncio.all_tasks() == before


async def test_a_worker_out_of_grace_hands_its_batch_back(settings: Settings, queue: Queue, submit: Submit) -> None:
    async with working(settings.model_copy(update={"grace_seconds": 0.01})) as worker:
        job_id = await submit(count=64, steps=400)
        await eventually(lambda: _runs(queue, job_id))
        worker.stop()
    job = await queue.read(job_id)
    assert job is not None
    assert (job.status, job.attempts) == ("running", 1)
    assert await queue.redis.zcard(f"{queue.prefix}leases") == 0
    async with working(settings):
        assert (await ended(queue, job_id)).status == "succeeded"


async def _runs(queue: Queue, job_id: str) -> bool:
    job = await queue.read(job_id)
    return job is not None and job.status == "running"


async def test_a_worker_that_lost_its_lease_drops_the_batch(settings: Settings, queue: Queue, submit: Submit) -> None:
    async with working(settings):
        job_id = await submit(count=64, steps=400)
        await eventually(lambda: _runs(queue, job_id))
        await eventually(lambda: _lost(queue))
        job = await ended(queue, job_id)
    assert (job.status, job.attempts, job.done) == ("succeeded", 2, 64)


async def _lost(queue: Queue) -> bool:
    await queue.disown(f"worker-1-{os.getpid()}")
    return bool(await queue.reap())


@pytest.mark.parametrize("steps", [2, 3, 18, 50])
async def test_the_cost_is_what_the_solver_asks_for(steps: int) -> None:
    import torch

    from models.levels import noise_levels
    from models.sampler import heun

    asked: list[int] = []
    x = torch.ones(1, 1, 2, 2, dtype=torch.float64)

    def denoiser(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        asked.append(1)
        return x / 2

    solve(heun(x, noise_levels(steps)), denoiser)
    assert len(asked) == Sampling(steps=steps).evaluations
