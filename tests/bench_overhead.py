"""`make bench`: what the service adds to sampling, measured with a nearly instant model on the real processes.

The model is the exact denoiser of two 4x4 images, asked for 2 steps (3 evaluations). Prints JSON.
"""

import http.client
import json
import os
import tempfile
import time
from pathlib import Path
from statistics import quantiles

from tests.running import Service
from tests.stores import exact_checkpoint

WARM_UP = 50
ROUNDS = 500
REQUEST = json.dumps({"dataset": "points", "D": 128, "steps": 2})


class LeanClient:
    """One connection of the standard library: what is measured is the service, not its client."""

    def __init__(self, service: Service):
        self.connection = http.client.HTTPConnection("127.0.0.1", int(service.url.rsplit(":", 1)[1]))

    def ask(self, method: str, path: str, body: str | None = None, **headers: str) -> bytes:
        self.connection.request(method, path, body, {"Content-Type": "application/json", **headers} if body else {})
        response = self.connection.getresponse()
        content = response.read()
        assert response.status < http.client.BAD_REQUEST, content
        return content


def round_trip(client: LeanClient) -> tuple[float, float, dict[str, float]]:
    """Seconds from submission to the finished job, to its grid, and the service's own account of them."""
    started = time.perf_counter()
    job = json.loads(client.ask("POST", "/v1/samples", REQUEST, Prefer="wait=10"))
    ended = time.perf_counter()
    client.ask("GET", job["links"]["grid"])
    return ended - started, time.perf_counter() - started, job["latency"]


def route_seconds(client: LeanClient) -> float:
    """Seconds of a request that does nothing: the yardstick of the machine."""
    started = time.perf_counter()
    client.ask("GET", "/livez")
    return time.perf_counter() - started


def percentiles_ms(seconds: list[float]) -> dict[str, float]:
    """p50, p90 and p99 in milliseconds."""
    cuts = quantiles(seconds, n=100)
    return {f"p{p}": round(1000 * cuts[p - 1], 2) for p in (50, 90, 99)}


def memory_mb(pid: int) -> float:
    """Resident memory of a process."""
    return round(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)


def started(service: Service) -> float:
    """Seconds from the command until it is ready."""
    began = time.perf_counter()
    service.start()
    return round(time.perf_counter() - began, 2)


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="pfgmpp-bench-") as folder:
        shipped = Service(Path(folder) / "shipped")
        starts = []
        for _ in range(2):
            starts.append(started(shipped))
            shipped.stop()
        exact_checkpoint(Path(folder) / "store", 128.0, examples=2)
        service = Service(Path(folder) / "instant", model_store=Path(folder) / "store")
        service.start()
        client = LeanClient(service)
        for _ in range(WARM_UP):
            round_trip(client)
        idle = [route_seconds(client) for _ in range(ROUNDS)]
        rounds = [round_trip(client) for _ in range(ROUNDS)]
        stages = ("queue", "batch_wait", "sampling", "encoding", "total")
        results = {
            "cores": os.cpu_count(),
            "ready_seconds": {"first_start": starts[0], "second_start": starts[1]},
            "route_that_does_nothing_ms": percentiles_ms(idle),
            "submit_to_finished_ms": percentiles_ms([finished for finished, _, _ in rounds]),
            "of_that_not_sampling_ms": percentiles_ms(
                [finished - latency["sampling_seconds"] for finished, _, latency in rounds]
            ),
            "submit_to_grid_ms": percentiles_ms([grid for _, grid, _ in rounds]),
            "stages_ms": {
                stage: percentiles_ms([latency[f"{stage}_seconds"] for *_, latency in rounds]) for stage in stages
            },
            "memory_mb": {"api": memory_mb(service.pid("api")), "worker": memory_mb(service.pid("worker-1"))},
        }
        service.stop()
    print(json.dumps(results, indent=2))  # noqa: T201


if __name__ == "__main__":
    main()
