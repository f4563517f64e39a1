"""A real Redis server for the whole run; every test has a queue of its own in it."""

import os
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import redis

from bench.running import until
from service.embedded import die_with_parent, find_server, server_command
from service.queue import Queue
from service.settings import Settings

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
