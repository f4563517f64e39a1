"""(c) Open-loop load: short and long jobs come at random, whatever the service does; in-flight against by-key batching.

Both services get the same arrivals, one after the other. The load is told in parts of what the by-key service does when
all of a mixture waits for it at once.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from bench.client import Client
from bench.report import Figure, Findings
from bench.running import Service, running
from bench.timing import percentiles
from bench.workload import Network, Workbench
from service.metrics import ETA_RANGES

Class = Literal["short", "long"]
Mode = Literal["in-flight", "by-key"]

Jobs = Mapping[Class, Mapping[str, int]]

JOBS: Jobs = {"short": {"count": 1, "steps": 5}, "long": {"count": 64, "steps": 40}}
QUICK_JOBS: Jobs = {"short": {"count": 1, "steps": 2}, "long": {"count": 16, "steps": 10}}
SHORTS_PER_LONG = 12
LOADS = (0.4, 0.6, 0.8)
JUDGED_LOAD = 0.8
SECONDS = 30.0
BURST_LONGS = 10


@dataclass(frozen=True)
class Arrival:
    """A job that comes so many seconds after the start."""

    seconds: float
    kind: Class


def arrivals(rate: float, seconds: float, seed: int) -> list[Arrival]:
    """Poisson arrivals of the mixture, `rate` jobs a second for so long; the first two are one of each class."""
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.exponential(1 / rate, int(2 * rate * seconds) + 10))
    are_long = rng.random(len(times)) < 1 / (SHORTS_PER_LONG + 1)
    are_long[:2] = True, False
    return [
        Arrival(float(at), "long" if is_long else "short")
        for at, is_long in zip(times, are_long, strict=True)
        if at < seconds
    ]


def burst(longs: int) -> list[Arrival]:
    """The mixture, all at once."""
    return [Arrival(0.0, "long"), *[Arrival(0.0, "short")] * SHORTS_PER_LONG] * longs


def measure(bench: Workbench) -> Findings:
    """Latencies by class at every load, and the throughput of both when work never ends."""
    network = bench.network("digits")
    jobs, seconds, rounds, longs = (
        (QUICK_JOBS, 1.5, 1, 2) if bench.is_quick else (JOBS, SECONDS, bench.rounds, BURST_LONGS)
    )
    findings = Findings()
    with ExitStack() as stack:
        options: dict[str, Any] = {"memory": bench.memory, "model_store": network.store, "compile": False, "threads": 1}
        services: dict[Mode, Service] = {
            "in-flight": stack.enter_context(running(batching="inflight", **options)),
            "by-key": stack.enter_context(running(batching="by-key", **options)),
        }
        trial = Trial(network, jobs, {mode: Client(service.url) for mode, service in services.items()})
        trial.run(burst(2))
        bursts = [trial.run(burst(longs)) for _ in range(rounds)]
        capacity = median(each["by-key"]["jobs_per_second"] for each in bursts)
        at_once = predictions(trial.clients["in-flight"])
        sweep = {
            load: [
                trial.run(arrivals(load * capacity, seconds, seed))
                for seed in range(rounds if load == JUDGED_LOAD else 1)
            ]
            for load in LOADS
        }
        in_all = predictions(trial.clients["in-flight"])
        kept = {"at once": at_once, "at random": {each: in_all[each] - at_once[each] for each in ETA_RANGES}}
    findings.details = {
        "jobs": jobs,
        "capacity_jobs_per_second": capacity,
        "bursts": bursts,
        "loads": sweep,
        "predictions": kept,
    }
    findings.figures = [*_figures(bursts, sweep[JUDGED_LOAD]), *_kept(kept)]
    return findings


class Trial:
    """One stream of arrivals after the other, each offered to every service in turn."""

    def __init__(self, network: Network, jobs: Jobs, clients: dict[Mode, Client]):
        self.network = network
        self.jobs = jobs
        self.clients = clients
        self._runs = 0

    def run(self, stream: Sequence[Arrival]) -> dict[Mode, dict[str, Any]]:
        """What each service made of it; another one begins each time."""
        modes = list(self.clients)
        self._runs += 1
        return {
            mode: self._offer(self.clients[mode], stream) for mode in (modes if self._runs % 2 else reversed(modes))
        }

    def _offer(self, client: Client, stream: Sequence[Arrival]) -> dict[str, Any]:
        before, started, late, submitted = calls(client), time.monotonic(), 0.0, []
        for arrival in stream:
            time.sleep(max(0.0, started + arrival.seconds - time.monotonic()))
            late = max(late, time.monotonic() - started - arrival.seconds)
            submitted.append(client.submit({"dataset": self.network.name, "D": 2048, **self.jobs[arrival.kind]}))
        ended = [client.ended(job) for job in submitted]
        seconds = time.monotonic() - started
        latency = {
            kind: [
                job["latency"]["total_seconds"]
                for job, arrival in zip(ended, stream, strict=True)
                if arrival.kind == kind
            ]
            for kind in self.jobs
        }
        evaluations = sum(job["progress"]["evaluations_total"] for job in ended)
        made = calls(client)
        images = made["images"] - before["images"]
        return {
            "jobs": {kind: len(values) for kind, values in latency.items()},
            "jobs_per_second": len(ended) / seconds,
            "evaluations_per_second": evaluations / seconds,
            "images_per_call": images / (made["calls"] - before["calls"]),
            "fill": images / (images + made["padding"] - before["padding"]),
            "largest_lateness_seconds": late,
            "latency_seconds": {kind: percentiles(values) for kind, values in latency.items()},
        }


def calls(client: Client) -> dict[str, float]:
    """Network calls so far, the images in them, and those that only filled them up."""
    text = client.ask("GET", "/metrics").decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]

    def total(name: str, **labels: str) -> float:
        found = (each.value for each in samples if each.name == name and labels.items() <= each.labels.items())
        return sum(found)

    every, padding = (
        total("pfgmpp_network_evaluations_total"),
        total("pfgmpp_network_evaluations_total", kind="padding"),
    )
    return {
        "calls": total("pfgmpp_network_evaluation_seconds_count"),
        "images": every - padding,
        "padding": padding,
    }


def predictions(client: Client) -> dict[str, float]:
    """How many predictions of a job's end there were, by where the truth fell."""
    families = text_string_to_metric_families(client.ask("GET", "/metrics").decode())
    found = [sample for family in families for sample in family.samples if sample.name == "pfgmpp_eta_total"]
    return {each: sum(s.value for s in found if s.labels["range"] == each) for each in ETA_RANGES}


def _kept(found: Mapping[str, Mapping[str, float]]) -> list[Figure]:
    figures = []
    for how, counts in found.items():
        below, between, above = (counts[each] for each in ETA_RANGES)
        percent = 100 / (below + between + above)
        told = f"jobs that came {how} and ended within the"
        figures += [
            Figure(name=f"{told} p50 predicted at their submission", value=percent * below, unit="%"),
            Figure(name=f"{told} p90", value=percent * (below + between), unit="%", at_least=85),
        ]
    return figures


def _figures(bursts: Sequence[dict[Mode, Any]], judged: Sequence[dict[Mode, Any]]) -> list[Figure]:
    def p99(kind: Class) -> float:
        both = [{mode: each[mode]["latency_seconds"][kind]["p99"] for mode in each} for each in judged]
        return float(median(each["in-flight"] / each["by-key"] for each in both))

    throughput = median(each["in-flight"]["jobs_per_second"] / each["by-key"]["jobs_per_second"] for each in bursts)
    load = f"{JUDGED_LOAD:.0%} load"
    return [
        Figure(name=f"{load}: p99 of short jobs, in-flight / by-key", value=p99("short"), at_most=0.10),
        Figure(name=f"{load}: p99 of long jobs, in-flight / by-key", value=p99("long"), at_most=1.15),
        Figure(name="throughput when all is there at once, in-flight / by-key", value=throughput, at_least=1.0),
    ]
