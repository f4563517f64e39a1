"""The command line: what asks a service, reproduces pictures, and finds out what is wrong."""

import asyncio
import io
import json
import os
import re
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import redis
from PIL import Image, PngImagePlugin
from typer.testing import CliRunner, Result

from bench.running import Service, until
from models.sampling import SamplingOptions
from service import __version__
from service.catalogue import OfferedModel
from service.cli import ASKING, SECTIONS, app
from service.embedded import find_socket, socket_folder
from service.provenance import of_one, provenance, remake
from service.queue import Queue
from service.request import SampleRequest, resolve
from service.settings import Settings
from tests.helpers import facts, worker_state
from tests.network import bad_network

POINTS = ["--dataset", "points", "--D", "2"]
LONG = [*POINTS, "--count", "256", "--steps", "10000"]
"""Longer than any test waits: to be canceled."""
PFGMPP = str(Path(sys.executable).with_name("pfgmpp"))


def typed(*arguments: object, **environment: str) -> Result:
    """What a command comes to; no error may escape it."""
    done = CliRunner().invoke(app, [str(each) for each in arguments], env=environment)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


class Shell:
    """Types commands for a service."""

    def __init__(self, service: Service):
        self.service = service

    def __call__(self, *arguments: object, status: int = 0) -> str:
        """What a command prints."""
        done = typed(*arguments, "--server", self.service.url)
        assert done.exit_code == status, done.output
        return done.stdout.strip()

    def json(self, *arguments: object) -> Any:
        """What a command prints for a program, which is all that it prints."""
        return json.loads(self(*arguments, "--json"))

    def problem(self, *arguments: object) -> Any:
        """What a command that is refused says to a program."""
        done = typed(*arguments, "--json", "--server", self.service.url)
        assert (done.exit_code, done.stdout) == (1, ""), done.output
        return json.loads(done.stderr)


@pytest.fixture
def shell(live: Service) -> Shell:
    return Shell(live)


def test_the_help_is_in_sections_and_every_command_has_an_example() -> None:
    shown = typed("--help").stdout
    for title in (*SECTIONS, "Make and judge models", "Exit status: 0 done; 1 failed"):
        assert f"\n{title}" in shown or title in shown
    names = {command.__name__ for command in ASKING} | {name for names in SECTIONS.values() for name in names}
    names |= {entry.name for entry in entry_points(group="pfgmpp.commands")}
    assert all(re.search(rf"^  {name} ", shown, re.MULTILINE) for name in names)
    for section in SECTIONS.values():
        for name in section:
            command = ["keys", "add"] if name == "keys" else [name]
            example = re.split("Examples?:\n", typed(*command, "--help").stdout)[1]
            assert f"pfgmpp {' '.join(command)}" in example
    assert not [
        line for line in shown.splitlines() if line.endswith("...") and line.split()[0] in sum(SECTIONS.values(), ())
    ]


def test_the_help_loads_nothing_that_takes_its_time() -> None:
    slow = {"asyncio", "pydantic", "httpx", "numpy", "torch", "PIL", "rich", "redis"}
    code = f"import sys, service.cli; print({slow} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "set()\n"


def test_a_job_is_submitted_watched_listed_and_canceled(shell: Shell) -> None:
    job_id = shell("submit", *POINTS, "--count", 3, "--seed", 5)
    assert re.fullmatch("[0-9a-f]{32}", job_id)
    watched = shell("watch", job_id)
    assert watched.startswith(
        f"job {job_id}: succeeded\n3 images of points, D = 2, seeds 5 to 7\n21/21 evaluations, 3/3"
    )
    assert shell("status", job_id) == watched
    assert f"job {job_id} had already succeeded" in shell("cancel", job_id)
    assert job_id in shell("jobs", "--status", "succeeded", "--dataset", "points")
    assert shell.json("status", job_id)["status"] == "succeeded"
    assert shell.json("jobs", "--limit", 1)[0]["id"]
    other = shell.json("submit", *LONG)["id"]
    assert shell("cancel", other) == f"job {other} is canceled"
    assert f"job {other} was canceled" in typed("watch", other, "--server", shell.service.url).stderr
    assert shell("cancel", other) == f"job {other} had already been canceled"
    problem = shell.problem("watch", "0" * 32)
    assert (problem["code"], problem["status"]) == ("not-found", 404)


def parts(content: bytes) -> dict[str, bytes]:
    """What a file holds: those of an archive, which has the time when it was made as well, or itself."""
    if not zipfile.is_zipfile(io.BytesIO(content)):
        return {"": content}
    with zipfile.ZipFile(io.BytesIO(content)) as files:
        return {name: files.read(name) for name in files.namelist()}


def test_the_images_of_a_job_are_fetched_when_it_has_ended(shell: Shell, tmp_path: Path) -> None:
    job_id = shell("submit", *POINTS, "--count", 3, "--seed", 5, "--solver", "euler", "--set", "trajectory=true")
    for command in ("status", "fetch"):
        assert shell.problem(command, "")["detail"] == "'' is no id of a job"
    assert shell.json("status", job_id)["request"]["solver"] == "euler"
    files = {name: tmp_path / f"own{name}" for name in (".png", ".npz", ".zip", ".gif")}
    files[".npz"] = tmp_path / "OWN.NPZ"
    said = shell("fetch", job_id, "-o", files[".png"], "--trajectory", files[".gif"])
    assert re.fullmatch(
        rf"wrote {files['.png']}: 3 images in .* s \(.* s of sampling\), seeds 5 to 7\nwrote {files['.gif']}", said
    )
    for name in (".npz", ".zip"):
        assert shell.json("fetch", job_id, "-o", files[name])["status"] == "succeeded"
    stored = {".png": "grid.png", ".gif": "trajectory.gif", ".npz": "images.npz", ".zip": "images.zip"}
    for name, path in files.items():
        expected = shell.service.client.get(f"/v1/jobs/{job_id}/{stored[name]}").content
        assert parts(path.read_bytes()) == parts(expected)
    elsewhere = shell.problem("fetch", job_id, "-o", "/proc/own.png")  # where nobody can write
    assert (elsewhere["code"], elsewhere["job"]) == ("file-error", job_id)
    assert f"`pfgmpp fetch {job_id}` writes it elsewhere" in elsewhere["detail"]
    without = shell("submit", *POINTS)
    problem = shell.problem("fetch", without, "-o", tmp_path / "grid.png", "--trajectory", tmp_path / "rows.png")
    assert (problem["code"], "kept no trajectory" in problem["detail"]) == ("not-found", True)
    assert not (tmp_path / "grid.png").exists()
    assert "must end with .png or .npz or .zip" in typed("fetch", job_id, "-o", "grid.jpg").stderr


def test_what_was_finished_of_a_canceled_job_is_fetched_as_single_images(shell: Shell, tmp_path: Path) -> None:
    job_id = shell("submit", *POINTS, "--count", 256, "--steps", 1500)
    until(lambda: shell.service.job(job_id)["progress"]["images_done"])
    shell("cancel", job_id)
    said = shell("fetch", job_id, "-o", tmp_path / "some.zip")
    assert re.search(r"some.zip: \d+ images .*, of the 256 of a canceled job$", said)
    assert zipfile.is_zipfile(tmp_path / "some.zip")
    problem = shell.problem("fetch", job_id, "-o", tmp_path / "grid.png")
    assert (problem["code"], "was canceled" in problem["detail"]) == ("no-result", True)


def test_events_are_lines_for_a_program(shell: Shell) -> None:
    job_id = shell("submit", *POINTS, "--count", 64, "--steps", 100)
    events = [json.loads(line) for line in shell("watch", job_id, "--json").splitlines()]
    assert [event["event"] for event in events][-1] == "finished"
    assert events[-1]["job"]["status"] == "succeeded"
    assert [json.loads(shell("watch", job_id, "--json"))["event"]] == ["finished"]


def test_the_service_tells_what_it_has_and_what_a_request_takes(shell: Shell) -> None:
    assert shell("estimate", *POINTS, "--count", 3, "--steps", 10).startswith("3 images, 57 evaluations: ")
    assert shell.json("estimate", *POINTS, "--count", 3)["images"] == 3
    assert "points-d128" in shell("status")
    assert shell.json("status")["workers"][0]["loaded"]
    assert [model["name"] for model in shell.json("models")] == ["plain-dinf", "points-d2", "points-d128"]
    problem = shell.problem("estimate", "--dataset", "points", "--D", "3")
    assert (problem["code"], problem["errors"][0]["field"]) == ("unknown-model", "D")


@contextmanager
def another_api(service: Service, port: int, **settings: str) -> Iterator[dict[str, str]]:
    """Another API of the same service on that port, with other settings: its environment."""
    environment = service.environment | {"REDIS_URL": f"unix://{service.folder}/data/redis.sock"} | settings
    command = [sys.executable, "-m", "service", "api", "--port", str(port)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as api:
        until(lambda: httpx.get(f"http://127.0.0.1:{port}/livez").is_success)
        yield {name: value for name, value in environment.items() if name.startswith(("PFGMPP_", "REDIS_"))}
        api.terminate()


def test_errors_of_a_program_are_json_too(shell: Shell, tmp_path: Path) -> None:
    away = typed("models", "--json", "--server", "http://127.0.0.1:1")
    assert (away.exit_code, json.loads(away.stderr)["code"]) == (1, "unreachable")
    assert shell.problem("reproduce", tmp_path / "none.png")["code"] == "not-reproducible"
    assert shell.problem("reproduce", tmp_path)["detail"].endswith("is a directory")
    assert shell.problem("sample", *POINTS, "-o", tmp_path / "none" / "grid.png")["code"] == "file-error"
    assert typed("sample", "--dataset", "points").exit_code == 2
    for command in (["sample", *POINTS], ["reproduce", Path(__file__).parent.parent / "docs" / "digits.png"]):
        wrong = typed(*command, "-o", tmp_path / "grid.jpg")
        assert (wrong.exit_code, "grid.jpg: must end with .png" in wrong.stderr) == (2, True), wrong.output
    job = shell.json("sample", *POINTS, "-o", tmp_path / "grid.png")
    assert (job["status"], (tmp_path / "grid.png").exists()) == ("succeeded", True)


def latest(service: Service) -> Any:
    """The job that was submitted last."""
    return service.client.get("/v1/jobs", params={"limit": 1}).json()["jobs"][0]


@pytest.mark.parametrize("options", [[], ["--json"]])
@pytest.mark.parametrize("command", ["sample", "watch", "reproduce"])
def test_an_interruption_leaves_the_job_alone_and_says_so(
    command: str, options: list[str], live: Service, shell: Shell, tmp_path: Path
) -> None:
    grid = tmp_path / "grid.png"
    others = []
    if command == "watch":  # it waits for others, so that it has not ended before the command has started
        *others, given = [[live.submit(dataset="points", D=2, count=64, steps=10_000)["id"]] for _ in range(4)]
    elif command == "sample":
        given = [*LONG, "-o", str(grid)]
    else:
        shell("sample", *POINTS, "--count", 64, "-o", grid)
        given = [str(rewritten(grid, {"steps": "10000"}))]
    # What a shell has begun with `&` ignores it, and so would what is begun here.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with bad_network(live.url) as network:
        process = subprocess.Popen(
            [PFGMPP, command, *given, *options, "--server", network.url],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        until(lambda: any(path.endswith("/events") for _, path, _ in network.seen))
        process.send_signal(signal.SIGINT)
        _, shown = process.communicate(timeout=20)
        [job_id] = {path.split("/")[3] for _, path, _ in network.seen if path.endswith("/events")}
    words = f"job {job_id} goes on: `pfgmpp fetch {job_id}`, or cancel it"
    if options:
        assert json.loads(shown) == {"code": "interrupted", "detail": words, "job": job_id}
    else:
        assert shown.splitlines()[-1] == f"pfgmpp: {words}"
    assert process.returncode == 130
    assert live.job(job_id)["status"] in {"queued", "running"}
    for each in (job_id, *(other for (other,) in others)):
        live.client.post(f"/v1/jobs/{each}/cancel")


def test_every_picture_is_made_again_from_itself(shell: Shell, tmp_path: Path) -> None:
    grid, rows = tmp_path / "grid.png", tmp_path / "rows.png"
    options = ["--count", 5, "--scale", 3, "--columns", 2, "-s", "solver=churn", "-s", "S_churn=10", "--steps", 5]
    job = shell.json("sample", *POINTS, *options, "-o", grid, "--trajectory", rows)
    client, here = shell.service.client, job["links"]["self"]
    (tmp_path / "one.png").write_bytes(client.get(f"{here}/images/3.png").content)
    with zipfile.ZipFile(io.BytesIO(client.get(f"{here}/images.zip").content)) as files:
        assert files.read("3.png") == (tmp_path / "one.png").read_bytes()
    for name in ("grid.png", "rows.png", "one.png"):
        made = shell("reproduce", tmp_path / name, "-o", tmp_path / "again.png")
        assert made.startswith(f"{tmp_path / name}: identical, all "), made
        assert (tmp_path / "again.png").read_bytes() == (tmp_path / name).read_bytes()
    with Image.open(tmp_path / "one.png") as one:
        text = text_of(one)
    assert (text["picture"], text["seeds"], text["labels"]) == (
        "image",
        f"[{job['seeds'][3]}]",
        f"[{job['labels'][3]}]",
    )
    assert (text["solver"], text["S_churn"], "columns" in text) == ("churn", "10.0", False)


def test_images_of_a_canceled_job_are_made_again_as_well(shell: Shell, tmp_path: Path) -> None:
    job_id = shell("submit", *POINTS, "--count", 256, "--steps", 1500)
    until(lambda: shell.service.job(job_id)["progress"]["images_done"])
    job = shell.json("cancel", job_id)
    assert (job["status"], job["labels"]) == ("canceled", None)
    content = shell.service.client.get(f"/v1/jobs/{job_id}/images.zip").content
    with zipfile.ZipFile(io.BytesIO(content)) as files:
        first = next(name for name in files.namelist() if name.endswith(".png"))
        (tmp_path / "one.png").write_bytes(files.read(first))
    assert "identical" in shell("reproduce", tmp_path / "one.png")


def test_a_model_without_classes_makes_its_pictures_again(shell: Shell, tmp_path: Path) -> None:
    shell("sample", "--dataset", "plain", "--D", "inf", "--seeds", "3,1", "-o", tmp_path / "grid.png")
    assert shell.json("reproduce", tmp_path / "grid.png")["is_identical"]


def text_of(image: Image.Image) -> dict[str, str]:
    """The text chunks of a PNG."""
    assert isinstance(image, PngImagePlugin.PngImageFile)
    image.load()
    return dict(image.text)


def rewritten(path: Path, change: dict[str, str | None], paint: bool = False) -> Path:
    """A copy of a picture with other text chunks, as another program might write it."""
    text = PngImagePlugin.PngInfo()
    with Image.open(path) as image:
        for name, value in {**text_of(image), **change}.items():
            if value is not None:
                text.add_text(name, value)
        if paint:
            image.putpixel((0, 0), 255)
        image.save(path.with_name("other.png"), pnginfo=text)
    return path.with_name("other.png")


def test_a_picture_that_cannot_be_made_again_is_told_why(shell: Shell, tmp_path: Path) -> None:
    grid = tmp_path / "grid.png"
    shell("sample", *POINTS, "--count", 4, "-o", grid)
    assert "identical" in shell("reproduce", rewritten(grid, {"Comment": "by another program"}))
    painted = shell("reproduce", rewritten(grid, {}, paint=True), status=1)
    assert "different: 1 pixel (0.83%), by 207 of 255 at most" in painted
    other = shell("reproduce", rewritten(grid, {"checkpoint_sha256": "f" * 64}))
    assert re.search("identical.*; checkpoint_sha256 was ffffffffffff when it was made and is [0-9a-f]{12} now", other)
    assert "different: 33x33 pixels in place of 11x11" in shell("reproduce", rewritten(grid, {"scale": "3"}), status=1)
    for change, reason in (
        ({"seeds": None}, "its text chunks lack seeds"),
        ({"seeds": "5"}, "its text chunk seeds is no list"),
        ({"picture": "film"}, "none of grid, image, trajectory: 'film'"),
        ({"D": "9"}, "there is no dataset"),
        ({"steps": "many"}, "steps"),
    ):
        assert reason in shell.problem("reproduce", rewritten(grid, change))["detail"]  # type: ignore[arg-type]
    (tmp_path / "no.png").write_text("no picture")
    assert "is no picture" in shell.problem("reproduce", tmp_path / "no.png")["detail"]
    with Image.open(grid) as image:
        image.save(tmp_path / "bare.jpg")
    assert "does not say how it was made" in shell.problem("reproduce", tmp_path / "bare.jpg")["detail"]
    (tmp_path / "half.png").write_bytes(grid.read_bytes()[:-40])
    assert "half.png: cannot be decoded" in shell.problem("reproduce", tmp_path / "half.png")["detail"]


@pytest.mark.parametrize(
    "choice",
    [
        {},
        {"D": "inf", "solver": "euler", "steps": 7, "alpha": 0.1, "label": 3},
        {"solver": "churn", "S_churn": 3.5, "S_min": 0.1, "S_max": 30.0, "S_noise": 1.01},
        {"solver": "dpmpp-3m", "sigma_min": 0.004, "sigma_max": 60.0, "rho": 5.5},
        {"discretization": "vp", "schedule": "vp", "scaling": "vp", "second_order": 0.7},
        {"bits": 8, "quantized": "official", "precision": "exact"},
        {"guidance": 1.5, "guide": "123", "seeds": [2**63 - 1, 0], "count": 2, "labels": [1, "9"]},
        {"window": {"x": -4, "y": 2, "width": 12, "height": 8}, "precision": "fast", "columns": 2, "count": 3},
        {"trajectory": True, "previews": 3, "priority": 9, "scale": 4},
    ],
)
def test_text_chunks_hold_every_choice_that_counts(choice: dict[str, Any]) -> None:
    model = OfferedModel(
        **facts(D=choice.get("D", 2048), coordinates=2).model_dump(), loaded_on=("w",), guides={"123": "2" * 64}
    )
    fields = {"dataset": "digits", "D": 2048, **choice}
    request = SampleRequest.model_validate_json(json.dumps(fields))
    resolved = resolve(request, model, "exact", 256, 2**26)
    labels = [3 if label is None else label for label in resolved.labels or []]
    for picture in ("grid", "trajectory"):
        known = remake(provenance(resolved, labels, "1" * 64, picture))
        again = resolve(SampleRequest.model_validate_json(json.dumps(known.fields)), model, "exact", 256, 2**26)
        without = {"labels", "trajectory", "previews", "priority", *(() if picture == "grid" else ("columns",))}
        assert again.model_dump(exclude=without) == resolved.model_dump(exclude=without)
        assert (again.labels, again.trajectory) == (labels, picture == "trajectory")
        assert known.checkpoints["checkpoint_sha256"] == "1" * 64
        assert ("guide_checkpoint_sha256" in known.checkpoints) == ("guide" in choice)
    one = remake(of_one(provenance(resolved, labels, "1" * 64, "image"), 5, 2))
    assert (one.fields["seeds"], one.fields["labels"], one.fields["count"], one.picture) == ([5], [2], 1, "image")
    options = {name: getattr(resolved, name) for name in SamplingOptions.model_fields if name != "trajectory"}
    single = resolve(SampleRequest.model_validate_json(json.dumps(one.fields)), model, "exact", 256, 2**26)
    assert {name: getattr(single, name) for name in options} == options


def examined(**environment: str) -> dict[str, list[tuple[str, str]]]:
    """What the doctor finds, as level and words, by what it is about."""
    done = typed("doctor", "--json", **environment)
    answer = json.loads(done.stdout)
    found = dict[str, list[tuple[str, str]]]()
    for finding in answer["findings"]:
        assert finding["advice"] or finding["level"] == "ok", finding
        found.setdefault(finding["about"], []).append((finding["level"], finding["found"]))
    has_failed = any(level == "FAIL" for findings in found.values() for level, _ in findings)
    assert (done.exit_code, answer["is_healthy"]) == (int(has_failed), not has_failed)
    return found


def test_the_doctor_finds_a_healthy_service_healthy(live: Service) -> None:
    environment = {name: value for name, value in live.environment.items() if name.startswith("PFGMPP_")}
    done = typed("doctor", "--server", live.url, **environment)
    assert (done.exit_code, done.stdout.splitlines()[-1]) == (0, "all is well"), done.output
    assert {line[:4] for line in done.stdout.splitlines()[:-2]} == {"ok  "}
    found = examined(PFGMPP_SERVER=live.url, **environment)
    assert found.keys() == {"versions", "settings", "redis", "workers", "results", "models", "API"}
    assert f"pfgmpp {__version__}" in found["versions"][0][1]
    assert "points-d2" in found["workers"][0][1]
    assert "3 checkpoints in" in found["models"][0][1]


def test_the_doctor_names_what_is_wrong(redis_url: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "bad.safetensors").write_bytes(b"\x05\0\0\0\0\0\0\0{}   ")
    settings = {
        "REDIS_URL": redis_url,
        "PFGMPP_QUEUE": "doctored",
        "PFGMPP_RESULTS_DIR": str(tmp_path / "file"),
        "PFGMPP_MODEL_STORE": str(tmp_path / "models"),
        "PFGMPP_KEY_FILE": "keys.json",
        "PFGMPP_SERVER": "http://127.0.0.1:1",
    }

    async def announce() -> None:
        queue = Queue.open(Settings(redis_url=redis_url, queue="doctored"))
        old = worker_state(facts(checkpoint_sha256="1" * 64), name="old", version="0.0.1")
        for worker in (old, worker_state(facts(), name="new"), worker_state(name="dead", state="lost")):
            await queue.announce(worker)
        await queue.close()

    assert ("FAIL", "none lives") in examined(**settings)["workers"]
    asyncio.run(announce())
    with redis.Redis.from_url(redis_url) as server:
        server.config_set("maxmemory-policy", "allkeys-lru")
        try:
            found = examined(**settings)
        finally:
            server.config_set("maxmemory-policy", "noeviction")
    assert found["settings"][0] == ("warn", "there is no setting PFGMPP_KEY_FILE")
    assert [level for level, words in found["redis"] if "maxmemory-policy allkeys-lru" in words] == ["FAIL"]
    assert ("warn", f"old runs version 0.0.1, here is {__version__}") in found["versions"]
    assert any(level == "warn" and words.startswith("dead is lost") for level, words in found["workers"])
    assert any("different checkpoints of digits-d2048" in words for _, words in found["models"])
    assert any("bad.safetensors: is no checkpoint" in words for _, words in found["models"])
    assert found["results"][0][0] in {"FAIL", "warn"}
    assert found["API"] == [("FAIL", found["API"][0][1])]


@pytest.mark.parametrize(
    ("environment", "about", "level", "words"),
    [
        ({"PFGMPP_PORT": "eighty", "PFGMPP_LEASE_SECONDS": "-1"}, "settings", "FAIL", "port: "),
        ({"PFGMPP_PORT": "eighty"}, "API", "FAIL", "does not answer"),
        ({"REDIS_URL": ""}, "redis", "warn", "no `pfgmpp serve` uses"),
        ({"REDIS_URL": "redis://127.0.0.1:1"}, "redis", "FAIL", "does not answer"),
        ({"PFGMPP_MODEL_STORE": "none"}, "models", "FAIL", "there is no folder"),
        ({"PFGMPP_MODEL_STORE": "."}, "models", "FAIL", "holds no .safetensors file"),
        ({"PFGMPP_KEYS_FILE": "none.json"}, "keys", "FAIL", "cannot be read"),
        ({"PFGMPP_HOST": "0.0.0.0", "PFGMPP_ALLOW_ANYONE": "1"}, "keys", "warn", "anyone who reaches"),
        ({"PFGMPP_SERVER": "http://[::1"}, "API", "FAIL", "does not answer as it should"),
        ({"PFGMPP_SERVER": "localhost:1"}, "API", "FAIL", "does not answer as it should"),
    ],
)  # fmt: skip
def test_the_doctor_knows_one_ill_from_another(
    environment: dict[str, str], about: str, level: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = examined(**({"REDIS_URL": "", "PFGMPP_SERVER": "http://127.0.0.1:1"} | environment))
    assert [each for each in found[about] if each[0] == level and words in each[1]], found


def test_the_doctor_looks_for_the_port_where_workers_live(live: Service) -> None:
    environment = {name: value for name, value in live.environment.items() if name.startswith("PFGMPP_")}
    for server, advice in (
        (
            "http://127.0.0.1:1",
            "-> workers live, so it may have another port: name its URL with --server or PFGMPP_SERVER",
        ),
        ("localhost:1", "-> write http://localhost:1, in --server or PFGMPP_SERVER"),
    ):
        done = typed("doctor", "--server", server, **environment)
        assert (done.exit_code, advice in done.stdout) == (1, True), done.output


def test_the_doctor_needs_a_key_where_one_is_needed(live: Service, free_tcp_port: int, tmp_path: Path) -> None:
    """And an estimate of what would be refused fails: both need an API of other settings."""
    key = typed("keys", "add", "me", "--file", tmp_path / "keys.json").stdout.strip()
    url, strict = f"http://127.0.0.1:{free_tcp_port}", {"PFGMPP_MAX_QUEUED_EVALUATIONS": "5"}
    with another_api(live, free_tcp_port, PFGMPP_KEYS_FILE=str(tmp_path / "keys.json"), **strict) as given:
        level, words = examined(PFGMPP_SERVER=url, **given)["API"][-1]
        assert (level, "it does not let you in" in words) == ("FAIL", True)
        assert {level for level, _ in examined(PFGMPP_SERVER=url, PFGMPP_KEY=key, **given)["API"]} == {"ok"}
        done = typed("estimate", *POINTS, "--server", url, "--key", key)
        assert "; a client gives one by PFGMPP_KEY, Client(key=...) or --key" in typed("models", "--server", url).stderr
    assert (done.exit_code, "would be refused: queue-full" in done.stdout) == (1, True), done.output


def test_the_socket_of_a_service_is_found_wherever_it_lies(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 60) / ("y" * 60)
    deep.mkdir(parents=True)
    assert find_socket(deep) is None
    with socket_folder(deep) as folder:
        assert folder != deep
        import socket

        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(folder / "redis.sock"))
            assert find_socket(deep) == folder / "redis.sock"
    assert find_socket(deep) is None


def completed(line: str, **environment: str) -> list[str]:
    """What bash would offer after so much of a line."""
    words = line.split(" ")
    variables = {"_PFGMPP_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    done = subprocess.run(
        [PFGMPP], env=os.environ | variables | environment, capture_output=True, text=True, check=False, timeout=30
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_a_shell_completes_commands_and_what_the_service_knows(live: Service) -> None:
    assert completed("pfgmpp rep") == ["reproduce"]
    assert completed("pfgmpp sample --dataset points --D ", PFGMPP_SERVER=live.url) == ["2", "128"]
    job = live.submit(dataset="points", D=2)
    assert completed(f"pfgmpp watch {job['id'][:20]}", PFGMPP_SERVER=live.url) == [job["id"]]
    assert completed("pfgmpp sample --dataset p", PFGMPP_SERVER="http://127.0.0.1:1") == []
    assert completed("pfgmpp jobs --status s") == ["succeeded"]
    assert completed("pfgmpp sample --precision ") == ["exact", "fast"]
    assert completed("pfgmpp sample --solver dpm", PFGMPP_SERVER=live.url) == ["dpmpp-2m", "dpmpp-3m"]
    assert completed("pfgmpp sample --dataset points --set sigma_") == ["sigma_max=", "sigma_min="]
    assert completed("pfgmpp sample --set l") == completed("pfgmpp sample --set count") == []


@pytest.mark.parametrize(
    ("shell_name", "words"),
    [
        ("bash", "complete -o default"),
        ("zsh", "#compdef pfgmpp"),
        ("fish", "complete --command pfgmpp"),
        ("powershell", "Register-ArgumentCompleter -Native -CommandName pfgmpp"),
    ],
)
def test_every_shell_is_told_how_to_complete(shell_name: str, words: str) -> None:
    shown = subprocess.run([PFGMPP, "--show-completion", shell_name], capture_output=True, text=True, check=True)
    assert (words in shown.stdout, "_PFGMPP_COMPLETE" in shown.stdout, shown.stderr) == (True, True, "")


def test_the_program_tells_its_version_and_knows_its_shells() -> None:
    assert typed("--version").stdout == f"pfgmpp {__version__}\n"
    refused = typed("--show-completion", "csh")
    assert (refused.exit_code, "'csh' is not one of 'bash', 'zsh', 'fish'" in refused.stderr) == (2, True)


def test_pixels_of_other_packings_compare(shell: Shell, tmp_path: Path) -> None:
    """A picture that a program has saved as RGB or with a palette is the same picture."""
    shell("sample", *POINTS, "--count", 4, "-o", tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as image:
        text = PngImagePlugin.PngInfo()
        for name, value in text_of(image).items():
            text.add_text(name, value)
        image.convert("RGB").quantize(256).save(tmp_path / "palette.png", pnginfo=text)
        assert len(np.unique(np.asarray(image))) <= 256
    assert "identical" in shell("reproduce", tmp_path / "palette.png")
