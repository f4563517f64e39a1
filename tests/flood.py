"""Does a flood drown the service? `python -m tests.flood` sends it ten times what it can do, for minutes.

Meanwhile a thousand clients wait for jobs, half of them by the events of one, some take nothing of the pictures they
asked for, and one with a key of its own goes on asking for little. The tests do the same for seconds.
"""

import selectors
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, cast

import httpx
import typer

from bench.running import PATIENCE_SECONDS, Service, running
from bench.stores import exact_checkpoint
from bench.timing import percentiles
from service.access import Caller, Keys
from service.connection import allow_many

FLOOD = {"dataset": "points", "D": 2, "steps": 40, "count": 64}
"""What comes in a flood, and its evaluations."""

WATCHED = FLOOD | {"steps": 256, "previews": 64}
"""A job that lasts: shorter ones go first."""

EVALUATIONS = 64 * 79
LITTLE = {"dataset": "points", "D": 2, "steps": 2, "count": 1}
TIMES = 10
"""What the service can do comes so many times."""

WAITING_SECONDS = 10
"""Of work are accepted at most."""

LEAST_EVALUATIONS = 4 * EVALUATIONS + 64 * 511
"""That must be accepted, however slow the machine is: those of the crowd's jobs."""

FLOODERS = 8
SLOW_READERS = 50
PROBES_PER_SECOND = 4
GROWTH = 0.1
"""Of the API's memory, at most."""

SERVED_SECONDS = 1.0
"""Within which 99 of 100 requests that need no network are answered, in the middle of it all."""


@dataclass
class Phase:
    """Figures before, during or after."""

    name: str
    seconds: dict[str, list[float]] = field(default_factory=lambda: {"status": [], "submit": [], "job": []})
    """Until a status was answered, a submission of little was, and its job had ended."""
    memory: list[float] = field(default_factory=list)
    """Of the API, in megabytes."""
    answers: Counter[int] = field(default_factory=Counter)
    """To the flood, by status."""

    def __str__(self) -> str:
        times = ", ".join(
            f"{what} p50 {1000 * percentiles(each)['p50']:.0f} ms p99 {1000 * percentiles(each)['p99']:.0f} ms"
            for what, each in self.seconds.items()
        )
        flood = ", ".join(f"{count:,} times {status}" for status, count in sorted(self.answers.items()))
        return f"{self.name}: {times}; API {max(self.memory):.1f} MB" + (f"; flood: {flood}" if flood else "")


@dataclass
class Flood:
    """A service, and the keys of who floods it and of who asks for little."""

    service: Service
    flooder: str
    other: str
    rate: float = 0.0
    """Jobs like those of the flood that the service does in a second."""

    def probe(self, name: str, seconds: float, waits_for: Sequence[threading.Thread] = ()) -> Phase:
        """What one who asks for little sees, for so long and until some threads have ended."""
        phase, until = Phase(name), time.monotonic() + seconds
        with httpx.Client(base_url=self.service.url, headers=bearer(self.other), timeout=60) as client:
            while time.monotonic() < until or any(thread.is_alive() for thread in waits_for):
                began = time.monotonic()
                job = client.post("/v1/samples", json=LITTLE).raise_for_status().json()
                submitted = time.monotonic()
                client.get(job["links"]["self"]).raise_for_status()
                asked = time.monotonic()
                client.get(job["links"]["self"], params={"wait": 60}).raise_for_status()
                phase.seconds["submit"].append(submitted - began)
                phase.seconds["status"].append(asked - submitted)
                phase.seconds["job"].append(time.monotonic() - began)
                phase.memory.append(self.service.memory("api"))
                time.sleep(max(0.0, began + 1 / PROBES_PER_SECOND - time.monotonic()))
        return phase

    def measure_rate(self, jobs: int = 5) -> None:
        """How much the service can do, from some jobs that wait for each other."""
        with httpx.Client(base_url=self.service.url, headers=bearer(self.flooder), timeout=90) as client:
            began = time.monotonic()
            made = [client.post("/v1/samples", json=FLOOD).raise_for_status().json() for _ in range(jobs)]
            for job in made:
                while (
                    not client.get(job["links"]["self"], params={"wait": 60}).raise_for_status().json()["finished_at"]
                ):
                    pass
        self.rate = jobs / (time.monotonic() - began)

    def pour(self, seconds: float, answers: Counter[int]) -> None:
        """Submit TIMES what it can do, evenly, for so long, whatever it answers; and until it has refused something."""
        until, counting = time.monotonic() + seconds, threading.Lock()

        def submit(_: int) -> None:
            with httpx.Client(base_url=self.service.url, headers=bearer(self.flooder), timeout=60) as client:
                due = time.monotonic()
                while due < until or not (answers[503] or time.monotonic() > until + PATIENCE_SECONDS):
                    time.sleep(max(0.0, due - time.monotonic()))
                    status = client.post("/v1/samples", json=FLOOD).status_code
                    with counting:
                        answers[status] += 1
                    due += FLOODERS / (TIMES * self.rate)

        with ThreadPoolExecutor(FLOODERS) as flooders:
            list(flooders.map(submit, range(FLOODERS)))

    def gather(self, stack: ExitStack, pollers: int) -> None:
        """So many clients wait for a job, and some take nothing of the pictures that they asked for."""
        with httpx.Client(base_url=self.service.url, headers=bearer(self.flooder), timeout=60) as client:
            job = client.post("/v1/samples", json=FLOOD | {"scale": 16}).json()
            while not job["finished_at"]:
                job = client.get(job["links"]["self"], params={"wait": 60}).json()
            last = [client.post("/v1/samples", json=FLOOD).raise_for_status().json() for _ in range(3)][-1]
            watched = client.post("/v1/samples", json=WATCHED).raise_for_status().json()
        watching = stack.enter_context(selectors.DefaultSelector())
        for _ in range(pollers // 2):
            self._send(stack, f"{last['links']['self']}?wait=60", 1)
            watching.register(self._send(stack, watched["links"]["events"], 1), selectors.EVENT_READ)
        threading.Thread(target=_take_all, args=(watching,), daemon=True).start()
        for _ in range(SLOW_READERS):
            self._send(stack, job["links"]["grid"], 200)

    def _send(self, stack: ExitStack, path: str, times: int) -> socket.socket:
        """Ask so many times on one connection, and read nothing."""
        url = httpx.URL(self.service.url)
        connection = stack.enter_context(socket.create_connection((url.host, url.port or 80), 10))
        head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {self.flooder}\r\n\r\n"
        connection.sendall(times * head.encode())
        return connection


def _take_all(watching: selectors.BaseSelector) -> None:
    """Read whatever comes on some connections, until they are closed."""
    with suppress(OSError, ValueError, RuntimeError):
        while watching.get_map():
            for key, _ in watching.select(1):
                if not cast("socket.socket", key.fileobj).recv(65536):
                    watching.unregister(key.fileobj)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def run(
    seconds: float, pollers: int, say: Callable[[str], object], growth: float = GROWTH, served: float = SERVED_SECONDS
) -> list[str]:
    """What is wrong with a service that was flooded for so long, beside its crowd of pollers."""
    allow_many()
    with tempfile.TemporaryDirectory(prefix="pfgmpp-flood-") as name, ExitStack() as stack:
        folder = Path(name)
        exact_checkpoint(folder / "store", 2.0)
        keys = Keys(folder / "keys.json")
        flooder, other = (keys.add(Caller(name=each)) for each in ("flooder", "other"))
        options: dict[str, Any] = {"model_store": folder / "store", "keys_file": keys.path, "compile": False}
        with running(**options) as service:
            flood = Flood(service, flooder, other)
            flood.measure_rate()
        most = max(int(WAITING_SECONDS * flood.rate * EVALUATIONS), LEAST_EVALUATIONS)
        service = stack.enter_context(running(max_queued_evaluations=most, **options))
        flood.service = service
        flood.probe("warming up", 2)
        alone = flood.probe("alone", seconds / 4)
        with ExitStack() as clients:
            flood.gather(clients, pollers)
            before = flood.probe("before, in a crowd", seconds / 4)
            answers = Counter[int]()
            pouring = threading.Thread(target=flood.pour, args=(seconds, answers))
            pouring.start()
            during = flood.probe("during", seconds, [pouring])
        during.answers = answers
        after = flood.probe("after", seconds / 4)
        say(f"{flood.rate:.1f} jobs of the flood a second are what it can do; {TIMES} times as many come")
        for phase in (alone, before, during, after):
            say(str(phase))
        return list(_faults(before, during, after, growth, served))


def _faults(before: Phase, during: Phase, after: Phase, growth: float, served: float) -> Iterator[str]:
    for status, count in during.answers.items():
        if status not in {202, 503}:
            yield f"{status} was answered {count} times"
    if not during.answers[503]:
        yield "nothing was refused: this was no flood"
    for phase in (during, after):
        if (times := max(phase.memory) / max(before.memory)) > 1 + growth:
            yield f"{phase.name}: the API's memory was {times:.2f} times that before"
    for what in ("status", "submit"):
        if (p99 := percentiles(during.seconds[what])["p99"]) > served:
            yield f"{what}: p99 was {p99:.2f} s in the flood"


def main(
    seconds: Annotated[float, typer.Option(help="Of the flood.", min=1)] = 180,
    pollers: Annotated[int, typer.Option(help="Clients that wait.", min=0)] = 1000,
) -> None:
    """Flood a service, and print what that did; the exit status is 1 if it was harmed."""
    found = run(seconds, pollers, typer.echo)
    typer.echo("\n".join(found) or "not harmed")
    raise typer.Exit(bool(found))


if __name__ == "__main__":
    typer.run(main)
