"""A service as a user runs it: the real command, in processes of its own."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx

from bench.memory import resident_megabytes
from service.embedded import die_with_parent

T = TypeVar("T")

PATIENCE_SECONDS = 60.0

READY_SECONDS = 90.0


def until(condition: Callable[[], T | None], seconds: float = PATIENCE_SECONDS, pause_seconds: float = 0.01) -> T:
    """What the condition returns as soon as that is true; errors count as not yet."""
    deadline = time.monotonic() + seconds
    while True:
        failure: Exception | None = None
        try:
            if answer := condition():
                return answer
        except Exception as error:  # noqa: BLE001
            failure = error
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {condition}") from failure
        time.sleep(pause_seconds)


class Service:
    """`pfgmpp serve` on a free port, with its log.

    `memory` is a folder that several share for what they find out about networks, so that they run them alike.
    """

    def __init__(self, folder: Path, memory: Path | None = None, **settings: object):
        self.folder = folder
        (folder / "data").mkdir(mode=0o700, parents=True, exist_ok=True)
        if memory:
            memory.mkdir(parents=True, exist_ok=True)
            (folder / "data" / "networks").symlink_to(memory)
        self.log = folder / "serve.log"
        self.wrapper: Sequence[str] = ()
        """What the command is put behind."""
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PFGMPP_")},
            "PFGMPP_DATA_DIR": str(folder / "data"),
            "PFGMPP_RESULTS_DIR": str(folder / "results"),
            "PFGMPP_LOG_FORMAT": "json",
            "PFGMPP_THREADS": "1",
            **{f"PFGMPP_{name.upper()}": str(value) for name, value in settings.items()},
        }
        self.environment.pop("REDIS_URL", None)

    def start(self) -> None:
        """Start it and wait until it is ready."""
        command = [*self.wrapper, sys.executable, "-m", "service", "serve", "--port", "0"]
        with self.log.open("w") as log:
            # If this process is killed, the service stops as well.
            self.process = subprocess.Popen(
                command,
                env=self.environment,
                stderr=log,
                cwd=self.folder,
                preexec_fn=die_with_parent(),  # noqa: PLW1509
            )
        ready = until(lambda: self.process.poll() is not None or self.events("ready"), READY_SECONDS)
        assert isinstance(ready, list), self.log.read_text()
        self.url = ready[-1]["url"]
        self.client = httpx.Client(base_url=self.url, timeout=httpx.Timeout(10, read=70))

    def events(self, name: str, **details: object) -> list[dict[str, Any]]:
        """The log's events of that name with those details."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == name and details.items() <= line.items()]

    def pid(self, child: str) -> int:
        """The process id of a child as it was last started."""
        return int(self.events("child started", child=child)[-1]["pid"])

    def memory(self, child: str) -> float:
        """Megabytes that a child has in memory."""
        return resident_megabytes(self.pid(child))

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        """Ask it to stop, as Ctrl-C does; its exit status."""
        self.process.send_signal(number)
        status = self.process.wait(30)
        self.client.close()
        return status

    def submit(self, **fields: object) -> dict[str, Any]:
        response = self.client.post("/v1/samples", json=fields)
        assert response.status_code == 202, response.text
        job: dict[str, Any] = response.json()
        return job

    def job(self, job_id: str, wait: float = 0) -> dict[str, Any]:
        job: dict[str, Any] = self.client.get(f"/v1/jobs/{job_id}", params={"wait": wait}).raise_for_status().json()
        return job

    def ended(self, job_id: str) -> dict[str, Any]:
        """The job when it has ended."""
        return until(lambda: job if (job := self.job(job_id, 10))["finished_at"] else None)


@contextmanager
def running(within: Path | None = None, memory: Path | None = None, **settings: object) -> Iterator[Service]:
    """A service that is stopped, or if need be killed, at the end; its files are in a folder for temporary ones."""
    with tempfile.TemporaryDirectory(prefix="pfgmpp-run-", dir=within) as folder:
        service = Service(Path(folder), memory, **settings)
        service.start()
        try:
            yield service
        finally:
            if service.process.poll() is None:
                service.stop()
