"""What the scheduler costs: everything that the computing thread does beside the engine, for 64 jobs of one image."""

import threading
import time
from collections.abc import Sequence
from statistics import median

import models.generate
from bench.report import Figure, Findings
from bench.workload import Network, Workbench
from models.sampling import Sampling
from service.catalogue import Catalogue, WorkerState
from service.engine import Engine
from service.inflight import Inflight, Share
from service.job import Part
from service.messages import Batch
from service.policy import Flight, ShortestFirst
from service.request import SampleRequest, resolve
from service.sample import Walk, lane

JOBS = 64


class TimedEngine(Engine):
    """An engine that knows how long it has computed."""

    seconds = 0.0

    def walk(
        self, flights: Sequence[Flight], seeds: Sequence[int], labels: Sequence[int | None], sampling: Sampling
    ) -> models.generate.Walk:
        started = time.perf_counter()
        walk = super().walk(flights, seeds, labels, sampling)
        self.seconds += time.perf_counter() - started
        return walk

    def evaluate(self, flight: Flight, walks: Sequence[Walk]) -> None:
        started = time.perf_counter()
        super().evaluate(flight, walks)
        self.seconds += time.perf_counter() - started


def measure(bench: Workbench) -> Findings:
    """The scheduler's part of the time, by network."""
    findings = Findings()
    for network in bench.networks:
        engine = TimedEngine(network.store, bench.device, JOBS, bench.memory)
        rounds = [_cost(engine, network) for _ in range(bench.rounds)]
        name = f"{network.name}: the scheduler's time / the engine's"
        findings.figures.append(Figure(name=name, value=100 * median(rounds), unit="%", at_most=1))
        findings.details[network.name] = rounds
    return findings


def _cost(engine: TimedEngine, network: Network) -> float:
    """Seconds beside the engine for every second in it, from the first turn to the last."""
    sampled: list[Share] = []
    done = threading.Event()

    def on_sampled(shares: list[Share]) -> None:
        sampled.extend(shares)
        if len(sampled) == JOBS:
            done.set()

    inflight = Inflight(engine, ShortestFirst(60.0), on_sampled, _fail, lambda: None, lambda *_: None)
    inflight.enter(inflight.shares_of(_batch(engine, network)))
    engine.seconds, started = 0.0, time.perf_counter()
    thread = threading.Thread(target=inflight.run)
    thread.start()
    done.wait()
    seconds = time.perf_counter() - started
    inflight.close()
    thread.join()
    return seconds / engine.seconds - 1


def _batch(engine: Engine, network: Network) -> Batch:
    """Jobs of one image each, as a worker claims them."""
    (facts,) = engine.facts
    (offered,) = Catalogue([WorkerState(name="bench", state="busy", device="cpu", models=(facts,))]).models.values()
    request = SampleRequest(dataset=network.name, D=2048, steps=network.steps)
    resolved = [resolve(request, offered, "exact", 1, 10**6) for _ in range(JOBS)]
    requests = {str(k): each.model_dump_json() for k, each in enumerate(resolved)}
    parts = tuple(Part(each, 0, 1) for each in requests)
    return Batch("bench", lane(resolved[0]), parts, requests, dict.fromkeys(requests, 0.0))


def _fail(shares: list[Share], error: Exception) -> None:
    raise error
