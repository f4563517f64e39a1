"""(b) The service end to end, one worker on one thread, against the reference in this process, turn and turn about."""

from collections.abc import Callable
from functools import partial
from statistics import median

import torch

from bench.client import Client
from bench.reference import Reference
from bench.report import Figure, Findings
from bench.running import Service, running
from bench.timing import interleaved, speed
from bench.workload import Network, Workbench
from service.picture import Pixels

TOGETHER = 16


def measure(bench: Workbench) -> Findings:
    """Speeds of jobs of 64 and of 4 images against the reference, and of one-image jobs at once against one by one."""
    findings = Findings()
    torch.set_num_threads(1)
    for network in bench.networks:
        with running(memory=bench.memory, model_store=network.store, compile=False, threads=1) as service:
            findings.figures += _against_reference(bench, network, service, findings.details)
            findings.figures.append(_at_once(bench, network, service, findings.details))
    return findings


def _against_reference(
    bench: Workbench, network: Network, service: Service, details: dict[str, object]
) -> list[Figure]:
    client, figures = Client(service.url), []
    reference = Reference.of(network.model(torch.device("cpu")))
    for count, least in ((64, 0.98), (4, 0.95)):
        ask = partial(client.run, _request(network, count))
        plainly = partial(reference.images, range(count), [0] * count, network.steps)
        timings = interleaved({"service": ask, "reference": plainly}, bench.rounds)
        name = f"{network.name}, jobs of {count} images: service (exact) / reference"
        figures.append(
            Figure(name=name, value=speed(timings["service"].wall, timings["reference"].wall), at_least=least)
        )
        first, again = client.images(ask()), client.images(client.run(_request(network, count)))
        details[f"{network.name}, {count} images"] = {
            "seconds": {who: timing.wall for who, timing in timings.items()},
            "equal_bytes": {"service, asked twice": _equal(first, again), "reference": _equal(first, plainly())},
        }
    return figures


def _at_once(bench: Workbench, network: Network, service: Service, details: dict[str, object]) -> Figure:
    """One-image jobs in fast mode: all at once against one after the other."""
    client = Client(service.url)
    requests = [_request(network, 1) | {"seed": seed, "precision": "fast"} for seed in range(TOGETHER)]
    acts: dict[str, Callable[[], object]] = {
        "at once": lambda: [client.ended(job) for job in [client.submit(request) for request in requests]],
        "one by one": lambda: [client.run(request) for request in requests],
    }
    timings = interleaved(acts, bench.rounds)
    details[f"{network.name}, {TOGETHER} jobs of 1 image"] = {who: median(each.wall) for who, each in timings.items()}
    gain = speed(timings["at once"].wall, timings["one by one"].wall)
    return Figure(
        name=f"{network.name}, {TOGETHER} one-image jobs (fast): at once / one by one", value=gain, at_least=1.3
    )


def _request(network: Network, count: int) -> dict[str, object]:
    return {"dataset": network.name, "D": 2048, "count": count, "steps": network.steps, "seed": 0, "label": 0}


def _equal(one: Pixels, other: Pixels) -> float:
    """The share of equal bytes."""
    return float((one == other).mean())
