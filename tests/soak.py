"""Does anything grow with the jobs that were done? `python -m tests.soak` has many done, and looks at memory and Redis.

The tests do the same with fewer jobs.
"""

import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import redis
import typer

from bench.client import Client
from bench.running import Service, running, until
from bench.stores import exact_checkpoint

CHILDREN = ("api", "worker-1")
CALLERS = 4
RETENTION_SECONDS = 2.0
TENTHS = 10

GROWTH = 0.05
"""Of memory after the first tenth, at most."""


def lasting_keys(service: Service, store: redis.Redis) -> set[bytes]:
    """The keys of Redis that do not go by themselves, once the record of one more job, and of all before, is gone.

    What was a batch does so after five minutes, and what tells an expired job from one that never was after an hour.
    """
    job = service.ended(service.submit(dataset="points", D=2, steps=2)["id"])
    until(lambda: service.client.get(job["links"]["self"]).status_code == 410)
    return {key for key in store.scan_iter(count=1000) if store.ttl(key) == -1}


def carry_out(service: Service, first: int, jobs: int) -> None:
    """Have so many jobs done by callers who take turns: of all sizes, each fetched, some canceled or erased."""

    def call(caller: int) -> None:
        with closing(Client(service.url)) as client:
            for k in range(first + caller, first + jobs, CALLERS):
                _do(client, k)

    with ThreadPoolExecutor(CALLERS) as callers:
        list(callers.map(call, range(CALLERS)))


def _do(client: Client, k: int) -> None:
    """The k-th job."""
    job = client.submit({"dataset": "points", "D": 2, "steps": 2 + k % 5, "count": 1 + k % 7, "seed": k})
    here = f"/v1/jobs/{job['id']}"
    if k % 50 == 1:
        client.ask("POST", f"{here}/cancel")
    elif k % 50 == 2:
        client.ask("DELETE", here)
    else:
        client.ended(job)
        client.ask("GET", f"{here}/grid.png" if k % 2 else f"{here}/images.npz")


def run(jobs: int, growth: float, say: Callable[[str], object]) -> list[str]:
    """What has grown after so many jobs."""
    with tempfile.TemporaryDirectory(prefix="pfgmpp-soak-") as folder:
        exact_checkpoint(Path(folder), 2.0)
        options: dict[str, Any] = {"model_store": folder, "compile": False, "retention_seconds": RETENTION_SECONDS}
        socket = "data/redis.sock"
        with (
            running(**options) as service,
            closing(redis.Redis(unix_socket_path=str(service.folder / socket), protocol=3)) as store,
        ):
            before, memory, began = lasting_keys(service, store), list[dict[str, float]](), time.monotonic()
            for tenth in range(TENTHS):
                carry_out(service, tenth * jobs // TENTHS, jobs // TENTHS)
                memory.append({child: service.memory(child) for child in CHILDREN})
                said = ", ".join(f"{child} {megabytes:.1f} MB" for child, megabytes in memory[-1].items())
                say(f"{(tenth + 1) * jobs // TENTHS:,} jobs, {time.monotonic() - began:.0f} s: {said}")
            after = lasting_keys(service, store)
    say(f"keys of Redis that last: {len(before)} before, {len(after)} after")
    grown = {child: memory[-1][child] / memory[0][child] - 1 for child in CHILDREN}
    say("grown after the first tenth: " + ", ".join(f"{child} {share:+.1%}" for child, share in grown.items()))
    return [
        *(f"{child} has grown by {share:.1%}" for child, share in grown.items() if share > growth),
        *(f"Redis holds {key.decode()} more" for key in after - before),
    ]


def main(jobs: Annotated[int, typer.Option(min=TENTHS * CALLERS)] = 20_000) -> None:
    """Have so many jobs done; the exit status is 1 if something has grown."""
    found = run(jobs, GROWTH, typer.echo)
    typer.echo("\n".join(found) or "nothing has grown")
    raise typer.Exit(bool(found))


if __name__ == "__main__":
    typer.run(main)
