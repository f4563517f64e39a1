"""Does the service lose anything? `python -m tests.chaos` kills its processes while it works, and checks every job.

The tests do the same with fewer jobs and kills.
"""

import io
import os
import random
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any
from uuid import uuid4

import httpx
import numpy as np
import redis
import torch
import typer

from bench.running import Service, running
from bench.stores import exact_checkpoint
from bench.timing import percentiles
from models.checkpoint import load
from models.generate import Generator
from models.sampling import Sampling
from models.shapes import steady_shapes

LEASE_SECONDS = 3.0
SEEN_SECONDS = 2.0
"""Within which what a dead worker held must be given back, if the supervisor saw it die: 99 of 100 times."""

DIMENSIONS = ("2", "inf")
WORKERS = 2
BATCH = 8
STEPS = (2, 3, 5, 9)
CANCELED = 0.05
"""How many of the jobs are canceled on the way."""

MOST_WAITING = 2000
"""Network evaluations that wait at once."""

PATIENCE_SECONDS = 600.0
ENDED = {"succeeded", "failed", "canceled", "expired"}


@dataclass
class Ask:
    """A request, and what became of it."""

    body: dict[str, Any]
    is_to_cancel: bool
    job_id: str = ""
    status: str = ""
    error: str = ""


@dataclass
class Chaos:
    """One run: callers that submit, a hand that kills, and what is found out."""

    service: Service
    asks: list[Ask]
    rng: random.Random
    recoveries: dict[str, list[float]] = field(default_factory=lambda: {"seen": [], "stalled": []})
    """Seconds until what a worker held was given back: one that died, and one that was stopped for a while."""
    accepted: int = 0

    def __post_init__(self) -> None:
        self.redis = redis.Redis(
            unix_socket_path=str(self.service.folder / "data" / "redis.sock"), decode_responses=True, protocol=3
        )
        self.prefix = "pfgmpp:{main}:"
        self._counting = threading.Lock()

    def submit(self, ask: Ask) -> None:
        """Submit until it is accepted, as a client should: with a key, so that no job is made twice."""
        key = {"Idempotency-Key": uuid4().hex}
        while not ask.job_id:
            with suppress(httpx.HTTPError):
                answer = self.service.client.post("/v1/samples", json=ask.body, headers=key)
                if answer.status_code in {200, 202}:
                    ask.job_id = answer.json()["id"]
                elif answer.status_code != 503:
                    raise AssertionError(f"{answer.status_code}: {answer.text}")
            if not ask.job_id:
                time.sleep(0.1)
        with self._counting:
            self.accepted += 1
        if ask.is_to_cancel:
            self._ask("POST", f"/v1/jobs/{ask.job_id}/cancel")

    def follow(self, ask: Ask) -> None:
        """Wait until its job has ended."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while ask.status not in ENDED and time.monotonic() < deadline:
            job = self._ask("GET", f"/v1/jobs/{ask.job_id}?wait=10").json()
            ask.status, ask.error = job["status"], (job["error"] or {}).get("detail", "")

    def _ask(self, method: str, path: str) -> httpx.Response:
        """An answer that is no 503, however long Redis is away."""
        while True:
            with suppress(httpx.HTTPError):
                answer = self.service.client.request(method, path)
                if answer.status_code != 503:
                    return answer
            time.sleep(0.1)

    def kill_worker(self) -> None:
        """Kill a worker, and note how long what it held was away."""
        name, pid = self._worker()
        held = self._held(name, pid)
        self._signal(pid, signal.SIGKILL)
        self.recoveries["seen"] += self._given_back(held)

    def stall_worker(self) -> None:
        """Stop a worker for longer than its leases last, and let it come back."""
        name, pid = self._worker()
        self._signal(pid, signal.SIGSTOP)
        self.recoveries["stalled"] += self._given_back(self._held(name, pid))
        self._signal(pid, signal.SIGCONT)

    def kill_redis(self) -> None:
        self._signal(self.service.pid("redis"), signal.SIGKILL)

    def _worker(self) -> tuple[str, int]:
        name = f"worker-{self.rng.randint(1, WORKERS)}"
        return name, self.service.pid(name)

    def _signal(self, pid: int, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, number)

    def _held(self, name: str, pid: int) -> list[str]:
        """The batches that a worker has claimed; none while Redis is away."""
        with suppress(redis.RedisError):
            leases: Any = self.redis.zrange(f"{self.prefix}leases", 0, -1)
            return [
                each for each in leases if self.redis.hget(f"{self.prefix}batch:{each}", "worker") == f"{name}-{pid}"
            ]
        return []

    def _given_back(self, batches: Sequence[str]) -> list[float]:
        """Seconds until each of the batches is nobody's."""
        began, left, found = time.monotonic(), set(batches), list[float]()
        while left and time.monotonic() - began < PATIENCE_SECONDS:
            with suppress(redis.RedisError):
                for batch in list(left):
                    if self.redis.zscore(f"{self.prefix}leases", batch) is None:
                        left.remove(batch)
                        found.append(time.monotonic() - began)
            time.sleep(0.01)
        return found

    def waiting(self) -> int:
        """Network evaluations that are not done; 0 while Redis is away."""
        with suppress(redis.RedisError):
            load: Any = self.redis.hget(f"{self.prefix}load", "evaluations")
            return int(load or 0)
        return 0

    def leftovers(self) -> list[str]:
        """What is still counted, queued or leased, of which there should be nothing."""
        load: Any = self.redis.hgetall(f"{self.prefix}load")
        found = [f"load {name} = {value}" for name, value in load.items() if value != "0"]
        keys = ("leases", "deadlines", "lane-images", "virtual-time")
        found += [f"{key} is not empty" for key in keys if self.redis.exists(f"{self.prefix}{key}")]
        found += [f"{key} is there" for key in self.redis.scan_iter(f"{self.prefix}lane*:*")]
        return found


def asks(count: int, rng: random.Random) -> list[Ask]:
    """Requests of all sizes, each with seeds of its own."""
    found = []
    for k in range(count):
        body = {
            "dataset": "points",
            "D": rng.choice([2, "inf"]),
            "steps": rng.choice(STEPS),
            "count": rng.choice([1, 1, 2, 5, 20]),
            "seed": 1000 * k,
            "priority": rng.choice([0, 0, 0, 5]),
        }
        found.append(Ask(body, is_to_cancel=rng.random() < CANCELED))
    return found


def carry_out(chaos: Chaos, acts: Sequence[Callable[[], None]]) -> None:
    """Submit everything while the acts are done, spread over the submissions, and wait for the end of all jobs."""
    moments = sorted(chaos.rng.uniform(0, len(chaos.asks)) for _ in acts)

    def act() -> None:
        for moment, each in zip(moments, acts, strict=True):
            while chaos.accepted < moment:
                time.sleep(0.02)
            each()

    hand = threading.Thread(target=act)
    hand.start()
    with ThreadPoolExecutor(4) as callers:
        for ask in chaos.asks:
            callers.submit(_pace, chaos, ask)
    hand.join()
    with ThreadPoolExecutor(16) as followers:
        list(followers.map(chaos.follow, chaos.asks))


def _pace(chaos: Chaos, ask: Ask) -> None:
    """Submit, but not so far ahead that most of the work is left for when the acts are over."""
    while chaos.waiting() > MOST_WAITING:
        time.sleep(0.05)
    chaos.submit(ask)


class Quiet:
    """What the images of a request are, computed alone, without a service."""

    def __init__(self, store: Path):
        torch.set_num_threads(1)
        models = [load(path) for path in store.glob("*.safetensors")]
        self._of = {str(each.card.D): Generator(each, steady_shapes(each, BATCH)) for each in models}

    def images(self, body: dict[str, Any]) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
        """[count, 4, 4, 1] of a request."""
        generator = self._of[str(float(body["D"]))]
        seeds = range(body["seed"], body["seed"] + body["count"])
        walk = generator.walk(seeds, [None] * len(seeds), Sampling(steps=body["steps"]))
        while not walk.is_finished:
            generator.evaluate([walk])
        return walk.images()


def faults(chaos: Chaos, quiet: Quiet, seen_seconds: float) -> Iterator[str]:
    """Everything that is not as it should be."""
    for ask in chaos.asks:
        if ask.status not in ENDED:
            yield f"job {ask.job_id} is {ask.status or 'unknown'}"
        elif ask.status == "failed":
            yield f"job {ask.job_id} failed: {ask.error}"
        elif ask.status == "canceled" and not ask.is_to_cancel:
            yield f"job {ask.job_id} was canceled by nobody"
        elif ask.status == "succeeded":
            content = chaos._ask("GET", f"/v1/jobs/{ask.job_id}/images.npz").content
            with np.load(io.BytesIO(content)) as arrays:
                if not np.array_equal(arrays["images"], quiet.images(ask.body)):
                    yield f"job {ask.job_id} has other images than its seeds give"
    yield from chaos.leftovers()
    for kind, limit in (("seen", seen_seconds), ("stalled", LEASE_SECONDS + seen_seconds)):
        found = chaos.recoveries[kind]
        if found and percentiles(found)["p99"] > limit:
            yield f"what a worker held ({kind}) was given back after {percentiles(found)['p99']:.2f} s, not {limit:g}"


def run(
    jobs: int,
    kills: int,
    stalls: int,
    redis_kills: int,
    seed: int,
    say: Callable[[str], object],
    seen_seconds: float = SEEN_SECONDS,
) -> list[str]:
    """What was wrong after so many jobs and acts of violence."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="pfgmpp-chaos-") as folder:
        store = Path(folder) / "store"
        for D in DIMENSIONS:
            exact_checkpoint(store, float(D))
        settings: dict[str, Any] = {
            "lease_seconds": LEASE_SECONDS,
            "heartbeat_seconds": 0.5,
            "max_attempts": 10,
            "batch_images": BATCH,
        }
        with running(workers=WORKERS, model_store=store, compile=False, **settings) as service:
            chaos = Chaos(service, asks(jobs, rng), rng)
            acts = [chaos.kill_worker] * kills + [chaos.stall_worker] * stalls + [chaos.kill_redis] * redis_kills
            rng.shuffle(acts)
            if redis_kills:  # at last, when no worker's death mends what that leaves undone
                acts.append(acts.pop(acts.index(chaos.kill_redis)))
            carry_out(chaos, acts)
            found = list(faults(chaos, Quiet(store), seen_seconds))
    for status, count in Counter(ask.status for ask in chaos.asks).items():
        say(f"{count:,} jobs {status}")
    for kind, seconds in chaos.recoveries.items():
        if seconds:
            each = ", ".join(f"{name} {value:.2f} s" for name, value in percentiles(seconds).items())
            say(f"{len(seconds)} batches given back ({kind}): {each}")
    return found


def main(
    jobs: Annotated[int, typer.Option(min=1)] = 2000,
    kills: Annotated[int, typer.Option(help="Of workers, with SIGKILL.", min=0)] = 100,
    stalls: Annotated[int, typer.Option(help="Of workers, for longer than their leases.", min=0)] = 5,
    redis_kills: Annotated[int, typer.Option(help="Of Redis, with SIGKILL.", min=0)] = 10,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Let a service work while its processes are killed; the exit status is 1 if anything was lost, or wrong."""
    found = run(jobs, kills, stalls, redis_kills, seed, typer.echo)
    typer.echo("\n".join(found) or "nothing lost, nothing twice, every image that of its seed")
    raise typer.Exit(bool(found))


if __name__ == "__main__":
    typer.run(main)
