"""A real Redis server for the whole run; every test has a queue of its own in it."""

import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
import redis

from bench.running import Service, running, until
from bench.stores import exact_checkpoint
from service.api import create_app
from service.embedded import die_with_parent, find_server, server_command
from service.queue import Queue
from service.settings import Settings
from tests.helpers import S3_SECRET, facts, worker_state

os.environ["OMP_NUM_THREADS"] = "1"
"""Of torch, here and in all processes that are started: threads that wait for a busy core are slow."""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """The URL of a server of the kind that `pfgmpp serve` embeds, started the same way."""
    with tempfile.TemporaryDirectory(prefix="pfgmpp-test-") as folder:
        socket = Path(folder) / "redis.sock"
        command = server_command(find_server(), socket, Path(folder))
        with subprocess.Popen(command, preexec_fn=die_with_parent()) as process:  # noqa: PLW1509
            until(socket.exists)
            with redis.Redis(unix_socket_path=str(socket), protocol=3) as client:
                until(client.ping)
            yield f"unix://{socket}"
            process.terminate()


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A whole service with models that are loaded at once: of two classes and of none."""
    store = tmp_path_factory.mktemp("live")
    exact_checkpoint(store, 2.0)
    exact_checkpoint(store, 128.0)
    exact_checkpoint(store, math.inf, "plain", classes=0)
    with running(model_store=store, compile=False) as service:
        yield service


@pytest.fixture
def settings(redis_url: str, tmp_path: Path) -> Settings:
    """Settings of this test alone: its own queue, its own folders."""
    return Settings(
        redis_url=redis_url,
        queue=f"test-{uuid4().hex}",
        data_dir=tmp_path / "data",
        results_dir=tmp_path / "results",
        worker_name="worker-1",
        threads=1,
        progress_seconds=0.02,
        reap_seconds=0.05,
        batch_images=8,
        device="cpu",
        compile=False,
    )


@pytest.fixture
async def queue(settings: Settings) -> AsyncIterator[Queue]:
    opened = Queue.open(settings)
    yield opened
    await opened.close()


@pytest.fixture
async def client(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application whose lifespan runs."""
    app = create_app(settings)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost") as open_,
    ):
        yield open_


@pytest.fixture
async def offered(queue: Queue) -> None:
    """Two conditional models and one without classes, announced by a live worker."""
    models = (facts(), facts(D="inf"), facts("faces", 128, classes=(), max_steps=50))
    await queue.announce(worker_state(*models))


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """The URL of a server that speaks S3 over HTTP, in a process of its own."""
    command = [str(Path(sys.executable).with_name("moto_server")), "--host", "127.0.0.1", "--port", "0"]
    with (
        tempfile.NamedTemporaryFile() as log,
        subprocess.Popen(command, stderr=log, preexec_fn=die_with_parent()) as process,  # noqa: PLW1509
    ):
        yield until(lambda: re.findall(r"Running on (http://[0-9.:]+)", Path(log.name).read_text()))[0]
        process.terminate()


@pytest.fixture
def bucket(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The `s3://` URL of a bucket of this test alone, with the environment to reach it."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIA0TEST")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", S3_SECRET)
    name = f"test-{uuid4().hex}"
    httpx.put(f"{s3_endpoint}/{name}").raise_for_status()
    return f"s3://{name}/some/prefix"
