"""The real processes, end to end: `pfgmpp serve`, its children, and the client."""

import json
import os
import signal
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from tempfile import gettempdir, mkdtemp

import httpx
import numpy as np
import pytest
from PIL import Image, ImageSequence
from typer.testing import CliRunner, Result

from bench.running import Service, running, until
from bench.stores import exact_checkpoint
from service.cli import app
from service.settings import Settings
from service.supervisor import PREFIX, SHARED_MEMORY, in_memory
from tests.helpers import S3_SECRET, forbid, full_disk, small_disk

DIGITS = {"dataset": "digits", "D": 2048}
POINTS = {"dataset": "points", "D": 2}


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where what was found out about networks is kept, so that all services here run them alike."""
    return tmp_path_factory.mktemp("memory")


@pytest.fixture(scope="module")
def points(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of a model that is loaded at once, for services that are started to be stopped."""
    return exact_checkpoint(tmp_path_factory.mktemp("points"), 2.0).parent


@pytest.fixture(scope="module")
def service(memory: Path) -> Iterator[Service]:
    with running(memory=memory, compile=False) as service:
        yield service


def typed(*arguments: str, **environment: str) -> Result:
    """What a command comes to that ends before it starts anything, in this process; no error may escape it."""
    done = CliRunner().invoke(app, arguments, env=environment)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def pfgmpp(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """The command as a user types it."""
    command = [str(Path(sys.executable).with_name("pfgmpp")), *arguments]
    return subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60, check=False
    )


def test_a_request_becomes_a_picture(service: Service) -> None:
    job = service.submit(**DIGITS, count=12, seed=1, label="7", steps=5, columns=4, scale=2)
    done = service.ended(job["id"])
    assert (done["status"], done["labels"], done["seeds"]) == ("succeeded", [7] * 12, list(range(1, 13)))
    assert done["latency"]["evaluations"] == 9
    assert done["latency"]["total_seconds"] > 0
    response = service.client.get(done["links"]["grid"])
    assert response.headers["content-type"] == "image/png"
    assert "sampling;dur=" in response.headers["server-timing"]
    with Image.open(BytesIO(response.content)) as grid:
        assert grid.size == ((4 * 9 + 1) * 2, (3 * 9 + 1) * 2)
        assert grid.info["seeds"] == str(done["seeds"])
    tag = response.headers["etag"]
    for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        again = service.client.get(done["links"]["grid"], headers={"If-None-Match": known})
        assert (again.status_code, again.content) == (304, b"")
    with Image.open(BytesIO(service.client.get(f"/v1/jobs/{job['id']}/images/11.png").content)) as image:
        assert image.size == (16, 16)
    for k in ("12", "-1", "x", "00", "9" * 5000):
        assert service.client.get(f"/v1/jobs/{job['id']}/images/{k}.png").status_code == 404


def test_the_logs_tell_what_became_of_a_job(service: Service) -> None:
    """Every line is JSON that begins alike, and a job can be followed by its id from process to process."""
    job = service.submit(**DIGITS, count=2, steps=2)["id"]
    service.ended(job)
    until(lambda: service.events("job succeeded", job=job))
    lines = [json.loads(line) for line in service.log.read_text().splitlines()]
    assert {tuple(line)[:4] for line in lines} == {("timestamp", "level", "process", "event")}
    followed = [(line["process"], line["event"]) for line in lines if line.get("job") == job]
    claim = ("worker-1", "job claimed")
    assert sorted(followed) == [("api", "job accepted"), claim, ("worker-1", "job succeeded")]
    assert followed.index(claim) < followed.index(("worker-1", "job succeeded"))


def test_the_answer_says_which_precision_was_used(service: Service) -> None:
    """Both at once, from the same seeds: nobody sees the difference, and exact bytes stay as they are."""
    request = {**DIGITS, "count": 6, "seed": 11, "label": 3, "steps": 9}
    jobs = [service.submit(**request, precision=precision) for precision in ("exact", "fast", "exact")]
    queued = jobs[1]["model"]
    assert (queued["precision"], queued["arithmetic"]) == ("fast", None)
    done = [service.ended(job["id"]) for job in jobs]
    assert [job["model"]["precision"] for job in done] == ["exact", "fast", "exact"]
    assert [done[0]["model"]["arithmetic"], done[2]["model"]["arithmetic"]] == ["float32", "float32"]
    assert done[1]["model"]["arithmetic"].split("-")[0] in {"float32", "bfloat16"}
    pictures = [service.client.get(job["links"]["grid"]).content for job in done]
    exact, fast = (np.asarray(Image.open(BytesIO(picture)), dtype=float) for picture in pictures[:2])
    assert 10 * np.log10(255**2 / max(1e-9, np.square(exact - fast).mean())) >= 40
    assert pictures[0] == pictures[2]
    with Image.open(BytesIO(pictures[1])) as grid:
        assert grid.info["precision"] == "fast"


def test_a_client_that_leaves_in_the_middle_of_a_body_is_no_error(service: Service) -> None:
    host, port = service.url.removeprefix("http://").split(":")
    for _ in range(3):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(
                b"POST /v1/samples HTTP/1.1\r\nHost: [::1]\r\nContent-Type: application/json\r\n"
                b"Content-Length: 30\r\n\r\n{"
            )
    until(lambda: 'code="400"' in service.client.get("/metrics").text)
    assert 'code="500"' not in service.client.get("/metrics").text
    assert "Traceback" not in service.log.read_text()


def test_the_same_request_gives_the_same_bytes(service: Service) -> None:
    def grid(**fields: object) -> bytes:
        job = service.ended(service.submit(**DIGITS, steps=4, seed=9, count=3, **fields)["id"])
        return service.client.get(job["links"]["grid"]).content

    with ThreadPoolExecutor(6) as pool:
        grids = list(pool.map(lambda _: grid(), range(6)))
    assert len(set(grids)) == 1


def test_results_in_a_bucket_are_the_same_and_an_outage_passes(service: Service, memory: Path, bucket: str) -> None:
    asked = {**DIGITS, "count": 5, "seed": 3, "steps": 4, "scale": 2, "trajectory": True}
    with running(memory=memory, results_url=bucket, models="digits-d2048", compile=False) as other:
        jobs = [each.ended(each.submit(**asked)["id"]) for each in (service, other)]
        here, there = [pictures(each, job["id"]) for each, job in zip((service, other), jobs, strict=True)]
        assert len(here) == 10
        assert here == there
        assert not any(path.is_file() for path in other.folder.glob("results/**/*"))
        forbid(bucket)
        away = other.client.get(jobs[1]["links"]["grid"])
        assert (away.status_code, away.json()["code"]) == (503, "store-unavailable")
        failed = other.ended(other.submit(**DIGITS)["id"])
        assert (failed["status"], failed["attempts"], failed["error"]["code"]) == ("failed", 3, "store-failed")
        assert failed["error"]["detail"] == "The result could not be stored: the store answers 403"
        forbid(bucket, is_forbidden=False)
        assert pictures(other, jobs[1]["id"]) == there
        assert other.ended(other.submit(**DIGITS)["id"])["status"] == "succeeded"
        assert S3_SECRET not in other.log.read_text()


def pictures(service: Service, job_id: str) -> dict[str, bytes]:
    """Everything that can be fetched of a job of five images with a trajectory, but for what differs by job."""
    names = ["grid.png", "images.npz", "trajectory.gif", "trajectory.png", "images/4.png"]
    found = {name: service.client.get(f"/v1/jobs/{job_id}/{name}").raise_for_status().content for name in names}
    with zipfile.ZipFile(BytesIO(service.client.get(f"/v1/jobs/{job_id}/images.zip").content)) as files:
        return found | {name: files.read(name) for name in files.namelist() if name != "job.json"}


def test_a_bucket_out_of_reach_is_named_by_a_worker_and_a_wrong_endpoint_by_the_api() -> None:
    settings = {"REDIS_URL": "redis://unused", "PFGMPP_RESULTS_URL": "s3://bucket", "AWS_SECRET_ACCESS_KEY": S3_SECRET}
    away = pfgmpp("worker", **settings, AWS_ACCESS_KEY_ID="key", AWS_ENDPOINT_URL="http://127.0.0.1:9")
    assert away.returncode == 1, "another time it may be there"
    assert "PFGMPP_RESULTS_URL=s3://bucket: the store cannot be reached" in away.stderr
    wrong = pfgmpp("api", **settings, AWS_ENDPOINT_URL="minio:9000")
    assert wrong.returncode == 2
    assert "AWS_ENDPOINT_URL must be a URL" in wrong.stderr
    for shown in (away.stderr, wrong.stderr):
        assert "Traceback" not in shown
        assert S3_SECRET not in shown


def test_concurrent_requests_share_network_calls(service: Service) -> None:
    """How many images a call takes is measured at the start: 64 on a quiet machine, and hardly ever fewer than 16."""

    def metric(name: str) -> float:
        lines = service.client.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(f'pfgmpp_{name}{{model="digits-d128"'))

    assert metric("network_evaluation_seconds_count") == 0
    with ThreadPoolExecutor(20) as pool:
        jobs = list(pool.map(lambda k: service.submit(dataset="digits", D=128, steps=6, count=8, seed=k), range(20)))
        ended = list(pool.map(lambda job: service.ended(job["id"]), jobs))
    assert {job["status"] for job in ended} == {"succeeded"}
    until(lambda: metric("images_generated_total") == 160)
    assert metric("network_evaluation_seconds_count") <= (160 // 16 + 1) * 11
    lanes = {event["lane"] for event in service.events("job succeeded")}
    assert "digits-d128|sample|6|heun|exact" in lanes


def test_the_client_draws_a_grid(service: Service, tmp_path: Path) -> None:
    out = tmp_path / "grid.png"
    asked = ["sample", "--dataset", "digits", "--count", "16", "--steps", "4", "-o", str(out), "--server", service.url]
    done = pfgmpp(*asked, "--D", "inf")
    assert (done.returncode, done.stdout.startswith(f"wrote {out}: 16 images in ")) == (0, True), done.stderr
    with Image.open(out) as grid:
        assert grid.size == (37, 37)
    refused = typed(*asked, "--D", "7")
    assert refused.exit_code == 1
    assert "unknown-model" in refused.stderr
    assert "D = 1, 128, 2048, inf" in refused.stderr
    for wrong in (
        ["--D", "128", "--label", "ten"],
        ["--D", "nan"],
        ["--D", "1e999"],
        ["--D", "1", "--server", "http://[::1"],
    ):
        assert typed(*asked, *wrong).exit_code == 1


def test_the_client_takes_seeds_fields_and_a_film(service: Service, tmp_path: Path) -> None:
    film, out = tmp_path / "film.gif", tmp_path / "grid.png"
    asked = ["sample", "--dataset", "digits", "--D", "128", "--steps", "4", "-o", str(out), "--server", service.url]
    done = pfgmpp(*asked, "--seeds", "1,2,5-7", "-s", "solver=ipndm", "-s", "alpha=0.1", "--trajectory", str(film))
    assert done.returncode == 0, done.stderr
    assert "5 images in" in done.stdout
    assert "seeds 1, 2, 5, 6, 7" in done.stdout
    with Image.open(out) as grid, Image.open(film) as frames:
        assert (grid.info["seeds"], grid.info["solver"], grid.info["alpha"]) == ("[1, 2, 5, 6, 7]", "ipndm", "0.1")
        assert not grid.info.keys() & {"S_churn", "second_order", "quantized", "guide"}, "of no account here"
        assert sum(1 for _ in ImageSequence.Iterator(frames)) >= 4
    for wrong, named in (
        (["--seeds", "5-1"], "--seeds 5-1"),
        (["--seeds", "1,,2"], "--seeds 1,,2"),
        (["--seeds", "0-99999999999"], "--seeds 0-99999999999"),
        (["--set", "solver"], "--set solver"),
        (["--set", "solver=dpm"], "solver"),
        (["--set", "steps=5"], "--set steps: is given twice"),
        (["--set", "rho=3", "--set", "rho=4"], "--set rho: is given twice"),
        (["--set", "alpha=NaN"], "cannot be sent as JSON"),
        (["--set", "alpha=" + "[" * 50_000], "alpha"),
        (["--set", 'solver="\\ud800"'], "invalid-request"),
        (["--trajectory", str(out)], "is also the file of the grid"),
        (["--trajectory", "film.mp4"], "--trajectory film.mp4"),
        (["--trajectory", str(tmp_path / "none" / "film.gif")], "no directory"),
    ):
        mistake = typed(*asked, *wrong)
        assert mistake.exit_code in (1, 2)
        assert named in mistake.stderr


def test_the_client_lists_the_models(service: Service) -> None:
    done = pfgmpp("models", "--server", service.url)
    rows = [line.split() for line in done.stdout.splitlines()[1:]]
    assert done.returncode == 0, done.stderr
    assert [row[:3] for row in rows] == [["digits", D, "8x8x1"] for D in ("1", "128", "2048", "inf")]
    refused = typed("models", "--server", "http://127.0.0.1:1")
    assert (refused.exit_code, "is `pfgmpp serve` running?" in refused.stderr) == (1, True)


def test_the_client_says_when_nobody_is_there(tmp_path: Path) -> None:
    done = typed(
        "sample", "--dataset", "digits", "--D", "1", "--server", "http://127.0.0.1:1", "-o", str(tmp_path / "g.png")
    )
    assert done.exit_code == 1
    assert "is `pfgmpp serve` running?" in done.stderr


def test_the_api_process_is_small_and_holds_no_torch(service: Service) -> None:
    assert "torch" not in Path(f"/proc/{service.pid('api')}/maps").read_text()
    assert service.memory("api") < 120


def test_metrics_cover_queue_api_and_local_workers(service: Service) -> None:
    service.ended(service.submit(**DIGITS, steps=2)["id"])
    text = until(
        lambda: text if "pfgmpp_jobs_finished_total" in (text := service.client.get("/metrics").text) else None
    )
    for name in (
        "jobs_submitted_total", "jobs_finished_total", "images_generated_total", "network_evaluations_total",
        "batches_total", "job_duration_seconds_bucket", "batch_images_bucket", "network_evaluation_seconds_bucket",
        "http_request_duration_seconds_bucket", "queue_jobs", "queue_images", "queue_evaluations",
        "queue_oldest_age_seconds", "jobs_running", "workers", "worker_memory_bytes", "build_info",
    ):  # fmt: skip
        assert f"\npfgmpp_{name}{{" in text, name


def test_a_killed_worker_is_replaced_and_its_job_succeeds_once(service: Service) -> None:
    job = service.submit(**DIGITS, count=16, seed=3, steps=128)
    until(lambda: bool(service.job(job["id"])["progress"]["evaluations_done"]))
    victim = service.pid("worker-1")
    os.kill(victim, signal.SIGKILL)
    done = service.ended(job["id"])
    assert (done["status"], done["attempts"]) == ("succeeded", 2)
    assert service.pid("worker-1") != victim
    quiet = service.ended(service.submit(**DIGITS, count=16, seed=3, steps=128)["id"])
    until(lambda: service.events("job succeeded", job=quiet["id"]))
    assert len(service.events("job succeeded", job=job["id"])) == 1
    grids = [service.client.get(each["links"]["grid"]).content for each in (done, quiet)]
    assert grids[0] == grids[1]


def test_a_killed_api_is_replaced_on_the_same_port(service: Service) -> None:
    victim = service.pid("api")
    os.kill(victim, signal.SIGKILL)
    until(lambda: service.pid("api") != victim)
    assert until(lambda: service.client.get("/readyz").status_code == httpx.codes.OK)


def test_an_api_that_is_to_stop_says_so_first(service: Service) -> None:
    """And answers who waits; what it has accepted goes on without it."""
    url = f"unix://{service.folder / 'data' / 'redis.sock'}"
    with socket.create_server(("127.0.0.1", 0)) as door, ThreadPoolExecutor(1) as elsewhere:
        api = subprocess.Popen(
            [sys.executable, "-m", "service", "api", "--fd", str(door.fileno())],
            env=service.environment | {"REDIS_URL": url, "PFGMPP_DRAIN_SECONDS": "600"},
            stderr=subprocess.DEVNULL,
            pass_fds=[door.fileno()],
        )
        address = f"http://127.0.0.1:{door.getsockname()[1]}"
        with api, httpx.Client(base_url=address, timeout=70) as client:
            job = until(lambda: client.post("/v1/samples", json=DIGITS | {"count": 32, "steps": 40}).json())
            until(lambda: client.get(job["links"]["self"]).json()["status"] != "queued")
            waiting = elsewhere.submit(client.get, "/v1/jobs/" + job["id"], params={"wait": 60})
            api.terminate()
            ready = until(lambda: found if (found := client.get("/readyz")).status_code == 503 else None)
            for each in (ready, client.post("/v1/samples", json=DIGITS), client.post("/v1/estimates", json=DIGITS)):
                assert (each.status_code, each.json()["code"], each.headers["retry-after"]) == (503, "draining", "1")
            assert waiting.result(20).json()["id"] == job["id"]
            assert client.get(job["links"]["self"]).status_code == 200
            api.send_signal(signal.SIGINT)  # sooner than it meant to
            api.wait(20)
    assert service.ended(job["id"])["status"] == "succeeded"


def test_a_killed_redis_comes_back_with_its_jobs(service: Service) -> None:
    job = service.ended(service.submit(**DIGITS, count=2, steps=2)["id"])
    waiting = [service.submit(**DIGITS, count=32, steps=30) for _ in range(4)]
    until((service.folder / "data/redis/appendonlydir").exists)
    victim = service.pid("redis")
    os.kill(victim, signal.SIGTERM)
    until(lambda: service.pid("redis") != victim)
    until(lambda: service.client.get("/livez").status_code == httpx.codes.OK)
    until(lambda: service.job(job["id"])["status"] == "succeeded")
    assert {service.ended(each["id"])["status"] for each in waiting} == {"succeeded"}


def test_what_is_counted_lies_in_memory_and_goes_with_the_service(tmp_path: Path) -> None:
    memory = SHARED_MEMORY if SHARED_MEMORY.exists() else Path(gettempdir())
    of_a_killed_one, new_one = (Path(mkdtemp(prefix=PREFIX, dir=memory)) for _ in range(2))
    os.utime(of_a_killed_one, (0, 0))
    one, other = tmp_path / "one", tmp_path / "other"
    one.symlink_to(of_a_killed_one)
    with in_memory(one):
        with in_memory(other):
            assert {one.resolve().parent, other.resolve().parent} == {memory}
            assert (one.is_dir(), other.is_dir(), of_a_killed_one.exists()) == (True, True, False)
            assert new_one.is_dir(), "another service may be about to hold it"
        assert one.is_dir()
    assert not list(tmp_path.iterdir())
    new_one.rmdir()


def test_on_a_full_disk_the_service_answers_and_goes_on_when_there_is_room(points: Path, tmp_path: Path) -> None:
    service = Service(tmp_path, model_store=points, compile=False)
    service.wrapper = small_disk(tmp_path / "data")
    if not service.wrapper:
        pytest.skip("users have no namespaces here, so there is no small disk")
    service.start()
    try:
        with full_disk(Path(f"/proc/{service.process.pid}/root{tmp_path}/data")):
            until(lambda: service.client.post("/v1/samples", json=POINTS).status_code == 503)
            os.kill(service.pid("api"), signal.SIGKILL)  # so that it counts in new files
            until(lambda: service.client.get("/metrics").status_code == httpx.codes.OK)
            assert len(service.events("child died")) == 1
            there = ["nsenter", "--user", "--mount", "--preserve-credentials", f"--target={service.process.pid}"]
            doctor = [*there, sys.executable, "-m", "service", "doctor", "--server", service.url]
            told = subprocess.run(doctor, env=service.environment, capture_output=True, text=True, check=False)
        job = until(
            lambda: found.json() if (found := service.client.post("/v1/samples", json=POINTS)).is_success else None
        )
        assert service.ended(job["id"])["status"] == "succeeded"
    finally:
        assert service.stop() == 0
    assert "FAIL  redis: it takes nothing new" in told.stdout, told


def test_a_second_service_in_the_same_place_is_refused(service: Service) -> None:
    port = service.url.rsplit(":", 1)[1]
    same_data = pfgmpp("serve", "--port", "0", PFGMPP_DATA_DIR=str(service.folder / "data"))
    assert same_data.returncode == 2
    assert "PFGMPP_DATA_DIR" in same_data.stderr
    same_port = pfgmpp("serve", "--port", port, PFGMPP_DATA_DIR=str(service.folder / "other"))
    assert same_port.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}" in same_port.stderr
    no_folder = pfgmpp("serve", "--port", "0", PFGMPP_DATA_DIR=str(service.log))
    assert no_folder.returncode == 2
    assert "PFGMPP_DATA_DIR" in no_folder.stderr
    assert "Traceback" not in same_data.stderr + same_port.stderr + no_folder.stderr


def test_a_closed_terminal_and_ctrl_c_stop_everything_and_jobs_outlive_a_restart(points: Path) -> None:
    with running(model_store=points, compile=False) as service:
        first = service.ended(service.submit(**POINTS, count=1, steps=2, seed=1)["id"])
        _stop(service, signal.SIGHUP)
        service.start()
        assert service.job(first["id"]) == first
        assert service.client.get(first["links"]["grid"]).status_code == httpx.codes.OK
        _stop(service, signal.SIGINT)


def _stop(service: Service, number: signal.Signals) -> None:
    """Stop it cleanly, so that nothing of it is left."""
    pids = [service.pid(child) for child in ("redis", "api", "worker-1")]
    assert service.stop(number) == 0
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_children_do_not_outlive_a_killed_supervisor(points: Path) -> None:
    with running(model_store=points, compile=False) as service:
        pids = [service.pid(child) for child in ("redis", "api", "worker-1")]
        service.process.kill()
        service.process.wait()
        until(lambda: not [pid for pid in pids if _is_alive(pid)], 20)


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_store_without_a_checkpoint_stops_the_service_with_a_reason(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = pfgmpp(
        "serve", "--port", "0", PFGMPP_DATA_DIR=str(tmp_path / "data"), PFGMPP_MODEL_STORE=str(tmp_path / "empty")
    )
    assert done.returncode == 2
    assert "no checkpoint of" in done.stderr


def test_processes_alone_need_a_redis() -> None:
    for command in ("api", "worker"):
        done = typed(command, REDIS_URL="")
        assert done.exit_code == 2
        assert "REDIS_URL is not set" in done.stderr


def test_wrong_settings_are_named() -> None:
    done = typed("serve", PFGMPP_PORT="eighty", PFGMPP_LEASE_SECONDS="-1")
    assert done.exit_code == 2
    assert "port" in done.stderr
    assert "lease_seconds" in done.stderr


def test_a_lease_outlasts_renewals() -> None:
    done = typed("api", PFGMPP_LEASE_SECONDS="4", REDIS_URL="")
    assert done.exit_code == 2
    assert "lease_seconds: must be at least 10.2" in done.stderr
    assert "lower heartbeat_seconds or progress_seconds (it is '4')" in done.stderr
    Settings(lease_seconds=4, heartbeat_seconds=1.5, progress_seconds=0.5)
    with pytest.raises(ValueError, match="at least 20"):
        Settings(lease_seconds=19, heartbeat_seconds=5, progress_seconds=5)


def test_a_worker_alone_serves_its_own_metrics(redis_url: str, points: Path, tmp_path: Path) -> None:
    environment = {
        **os.environ, "REDIS_URL": redis_url, "PFGMPP_QUEUE": "alone", "PFGMPP_RESULTS_DIR": str(tmp_path),
        "PFGMPP_METRICS_PORT": "0", "PFGMPP_LOG_FORMAT": "json", "PFGMPP_DATA_DIR": str(tmp_path),
        "PFGMPP_MODEL_STORE": str(points),
    }  # fmt: skip
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen([sys.executable, "-m", "service", "worker"], env=environment, stderr=log) as process,
    ):
        ready = until(lambda: [line for line in (tmp_path / "log").read_text().splitlines() if "worker ready" in line])
        port = httpx.Response(200, text=ready[0]).json()["metrics_port"]
        assert "pfgmpp_build_info{" in until(lambda: httpx.get(f"http://127.0.0.1:{port}/metrics").text)
        process.terminate()
        assert process.wait(20) == 0
