"""Two workers of one thread each against one: many jobs of 16 images at once, `exact`."""

from functools import partial
from typing import Any

from bench.client import Client
from bench.report import Figure, Findings
from bench.running import running
from bench.timing import interleaved, speed
from bench.workload import Workbench

JOBS = 16
IMAGES = 16


def measure(bench: Workbench) -> Findings:
    """How many times as much two workers do."""
    findings = Findings()
    for network in bench.networks:
        count = IMAGES if network.name == "digits" else 1
        options: dict[str, Any] = {"memory": bench.memory, "model_store": network.store, "compile": False, "threads": 1}
        with running(workers=1, **options) as one, running(workers=2, **options) as two:
            clients = {"one": Client(one.url), "two": Client(two.url)}
            request = {"dataset": network.name, "D": 2048, "count": count, "steps": network.steps, "label": 0}

            def run(client: Client, request: dict[str, object] = request) -> None:
                jobs = [client.submit(request) for _ in range(JOBS)]
                for job in jobs:
                    client.ended(job)

            timings = interleaved({who: partial(run, client) for who, client in clients.items()}, bench.rounds)
        gain = speed(timings["two"].wall, timings["one"].wall)
        findings.figures.append(Figure(name=f"{network.name}: two workers / one", value=gain, at_least=1.7))
        findings.details[network.name] = {"seconds": {who: timing.wall for who, timing in timings.items()}}
    return findings
