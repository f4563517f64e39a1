"""(e) Cold start, and memory: the service against a bare script that does the same, each in processes of its own."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from bench.bare import save_weights
from bench.client import Client
from bench.memory import peak_megabytes
from bench.report import Figure, Findings
from bench.running import Service, running
from bench.timing import interleaved, speed
from bench.workload import Network, Workbench

IMAGES = 64
"""In the job that shows the peak of memory: what scripts for these models take at once if they are not told."""


def measure(bench: Workbench) -> Findings:
    """Seconds from nothing to the first picture, and the largest memory of the process that samples."""
    findings = Findings()
    with TemporaryDirectory(prefix="pfgmpp-bench-") as name:
        folder = Path(name)
        for network in bench.networks:
            weights = folder / f"{network.name}.pt"
            save_weights(network.model(torch.device("cpu")), weights)
            acts: dict[str, Callable[[], object]] = {
                "service": lambda network=network: _first_picture(folder, network),  # type: ignore[misc]
                "script": lambda network=network, weights=weights: _script(weights, 1, network.steps),  # type: ignore[misc]
            }
            timings = interleaved(acts, bench.rounds, is_cold=bench.is_quick)
            slower = 1 / speed(timings["service"].wall, timings["script"].wall)
            findings.figures.append(
                Figure(name=f"{network.name}: first picture, service / bare script", value=slower, at_most=1.15)
            )
            peaks = {"script": _script(weights, IMAGES, 2), "worker": _worker_peak(network)}
            ratio = peaks["worker"] / peaks["script"]
            least = 0.65 if network.name == "cifar10" else None
            findings.figures.append(
                Figure(name=f"{network.name}: peak memory, worker / bare script", value=ratio, at_most=least)
            )
            loads = _loads(network, weights) if least else {}  # the libraries hide what a small network takes
            if least:
                added = {how: megabytes - loads["nothing"] for how, megabytes in loads.items()}
                ratio = added["mapped"] / added["plain"]
                what = f"{network.name}: memory that loading adds, mapped / built and torch.load"
                findings.figures.append(Figure(name=what, value=ratio, at_most=least))
            findings.details[network.name] = {
                "seconds": {who: timing.wall for who, timing in timings.items()},
                "peak_megabytes": peaks,
                "peak_megabytes_of_loading": loads,
            }
    return findings


def _first_picture(folder: Path, network: Network) -> None:
    """Start the service, ask for one image, fetch it. What stops it is not timed by anybody but the clock."""
    service = Service(folder / "service", model_store=network.store, compile=False)
    try:
        service.start()
        client = Client(service.url)
        request = {"dataset": network.name, "D": 2048, "count": 1, "steps": network.steps, "seed": 0, "label": 0}
        client.ask("GET", client.run(request)["links"]["grid"])
    finally:  # of a folder that is removed next nothing must be in use
        service.process.kill()
        service.process.wait()


def _script(weights: Path, count: int, steps: int) -> float:
    """Run the bare script; the peak of its memory in megabytes."""
    return _megabytes("bench.bare", weights, count, steps, weights.with_suffix(".png"))


def _loads(network: Network, weights: Path) -> dict[str, float]:
    """The peak of memory of processes that load a checkpoint our way, the plain way, and none, in megabytes."""
    (checkpoint,) = network.store.glob("*.safetensors")
    return {
        "mapped": _megabytes("bench.loading", "mapped", checkpoint),
        "plain": _megabytes("bench.loading", "plain", weights),
        "nothing": _megabytes("bench.loading", "nothing"),
    }


def _megabytes(module: str, *arguments: object) -> float:
    """What a module of the benchmarks prints, run in a process of its own."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _worker_peak(network: Network) -> float:
    """The largest memory, in megabytes, of a worker that starts and makes a few images."""
    with running(model_store=network.store, compile=False) as service:
        Client(service.url).run(
            {"dataset": network.name, "D": 2048, "count": IMAGES, "steps": 2, "seed": 0, "label": 0}
        )
        return peak_megabytes(service.pid("worker-1"))
