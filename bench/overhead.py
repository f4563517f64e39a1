"""(d) What the service adds to sampling: one client after the other, and many at once, with a nearly instant model.

The model is the exact denoiser of two 4x4 images, asked for 2 steps (3 evaluations).
"""

import asyncio
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from bench.client import Client
from bench.report import Figure, Findings
from bench.running import running, until
from bench.stores import exact_checkpoint
from bench.timing import percentiles, speed
from bench.workload import Workbench
from service.embedded import die_with_parent
from service.job import Latency

MEMORY = Path("/dev/shm")
"""Where the service's files are, if it is there: disks take from 10 to 700 us to make a file, and a job makes three."""

WARM_UP = 50
REQUEST = {"dataset": "points", "D": 128, "steps": 2}
CONNECTIONS = 64

app = FastAPI()
"""The yardstick: one route that does nothing."""


@app.get("/")
async def nothing() -> dict[str, str]:
    return {}


def measure(bench: Workbench) -> Findings:
    """Milliseconds from submission to finished job, and jobs per second against a route that does nothing."""
    jobs = 100 if bench.is_quick else 1000
    exact_checkpoint(bench.folder / "stores" / "instant", 128.0, examples=2)
    within = MEMORY if MEMORY.is_dir() else None
    with running(within, model_store=bench.folder / "stores" / "instant") as service, _yardstick() as yardstick:
        client = Client(service.url)
        for _ in range(WARM_UP):
            _round_trip(client)
        rounds = [_round_trip(client) for _ in range(jobs)]
        rates = [(_rate(yardstick, _get(), jobs), _rate(service.url, _post(), jobs)) for _ in range(bench.rounds)]
        memory = {child: service.memory(child) for child in ("api", "worker-1")}
    finished = percentiles([1000 * seconds for seconds, _, _ in rounds])
    added = percentiles([1000 * (seconds - job["latency"]["sampling_seconds"]) for seconds, _, job in rounds])
    stages = [Latency.model_validate(job["latency"]).stages() for *_, job in rounds]
    throughput = 1 / speed([1 / own for own, _ in rates], [1 / own for _, own in rates])
    return Findings(
        figures=[
            Figure(name="submission to finished job, less sampling, p50", value=added["p50"], unit="ms", at_most=2),
            Figure(name="submission to finished job, less sampling, p99", value=added["p99"], unit="ms", at_most=10),
            Figure(name="instant jobs / requests to a route that does nothing", value=throughput, at_least=0.4),
        ],
        details={
            "submit_to_finished_ms": finished,
            "less_sampling_ms": added,
            "submit_to_grid_ms": percentiles([1000 * seconds for _, seconds, _ in rounds]),
            "stages_ms": {stage: percentiles([1000 * each[stage] for each in stages]) for stage in stages[0]},
            "connections": CONNECTIONS,
            "route_that_does_nothing_per_second": [own for own, _ in rates],
            "instant_jobs_per_second": [own for _, own in rates],
            "memory_megabytes": memory,
        },
    )


def _round_trip(client: Client) -> tuple[float, float, dict[str, Any]]:
    """Seconds from submission to the finished job, and to its grid; the job."""
    started = time.perf_counter()
    job = client.run(REQUEST)
    ended = time.perf_counter()
    client.ask("GET", job["links"]["grid"])
    return ended - started, time.perf_counter() - started, job


def _get() -> bytes:
    return b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


def _post() -> bytes:
    body = json.dumps(REQUEST)
    lines = ["POST /v1/samples HTTP/1.1", "Host: localhost", "Content-Type: application/json", "Prefer: wait=30"]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", body]).encode()


def _rate(url: str, request: bytes, requests: int) -> float:
    """Answers per second when so many requests come over CONNECTIONS connections, each waiting for its answers."""
    host, port = url.removeprefix("http://").split(":")

    async def ask(count: int) -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        for _ in range(count):
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(head.decode())
            length = head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]
            await reader.readexactly(int(length))
        writer.close()

    async def all_of_them() -> None:
        await asyncio.gather(*(ask(requests // CONNECTIONS) for _ in range(CONNECTIONS)))

    started = time.perf_counter()
    asyncio.run(all_of_them())
    return requests // CONNECTIONS * CONNECTIONS / (time.perf_counter() - started)


@contextmanager
def _yardstick() -> Iterator[str]:
    """The URL of a FastAPI application that does nothing, on the server that the API runs on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        command = [sys.executable, "-m", __name__, str(listener.fileno())]
        with subprocess.Popen(
            command,
            pass_fds=[listener.fileno()],
            preexec_fn=die_with_parent(),  # noqa: PLW1509
        ) as process:
            try:
                until(lambda: Client(url).ask("GET", "/"))
                yield url
            finally:
                process.terminate()


if __name__ == "__main__":
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False))
    server.run([socket.socket(fileno=int(sys.argv[1]))])
