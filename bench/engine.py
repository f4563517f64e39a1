"""(a) The engine alone against the reference, in this process on one thread: the same images, turn and turn about."""

from collections.abc import Callable
from concurrent.futures import wait
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from bench.reference import Reference
from bench.report import Figure, Findings
from bench.timing import Timing, interleaved, speed
from bench.workload import Network, Workbench
from models.generate import UInt8Array
from models.sampling import Sampling
from models.shapes import timed
from service.engine import Engine
from service.policy import Flight
from service.request import Precision

BATCH = 8
LARGEST_BATCH = 64

Sampler = Callable[[], UInt8Array]


def measure(bench: Workbench) -> Findings:
    """Speeds against the reference, A/A control beside them, and how much the images differ."""
    findings = Findings(figures=[_ceiling(bench)])
    for network in bench.networks:
        contestants, arithmetic = _contestants(bench, network)
        timings = interleaved(contestants, bench.rounds)
        findings.figures += _figures(network, timings)
        findings.details[network.name] = {
            "images": BATCH,
            "steps": network.steps,
            "arithmetic": arithmetic,
            "wall_seconds": {name: timing.wall for name, timing in timings.items()},
            "cpu_seconds": {name: timing.cpu for name, timing in timings.items()},
            "against_exact": _fidelity(contestants),
        }
    return findings


@torch.inference_mode()
def _ceiling(bench: Workbench) -> Figure:
    """What half precision can gain on this machine at the most: convolutions are nearly all that a network does."""
    half = torch.float16 if bench.device.type == "cuda" else torch.bfloat16
    conv = nn.Conv2d(256, 256, 3, padding=1, device=bench.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.zeros(BATCH, 256, 16, 16, device=bench.device).to(memory_format=torch.channels_last)
    seconds = timed(conv, [x])[1], timed(conv.to(half), [x.to(half)])[1]
    name = f"this machine's convolutions: {str(half).removeprefix('torch.')} / float32"
    return Figure(name=name, value=seconds[0] / seconds[1])


def _contestants(bench: Workbench, network: Network) -> tuple[dict[str, Sampler], dict[str, str]]:
    """What is compared, by name, and how each of the engine's computes."""
    reference = Reference.of(network.model(bench.device))
    seeds, labels = range(BATCH), [None] * BATCH
    plainly = partial(reference.images, seeds, labels, network.steps)
    contestants: dict[str, Sampler] = {"reference": plainly, "reference again": plainly}
    arithmetic = {}
    ways: dict[str, tuple[Precision, bool]] = {
        "exact": ("exact", False),
        "fast": ("fast", False),
        "compiled": ("fast", True),
    }
    if bench.is_quick:  # it takes half a minute a size
        del ways["compiled"]
    for name, (precision, compiles) in ways.items():
        engine = Engine(network.store, bench.device, LARGEST_BATCH, bench.memory, compiles)
        (model,) = engine.models
        flight = Flight(model, precision)
        engine.prepare(precision)
        wait(engine.compiling)
        engine.prepare(precision)  # takes what has been compiled
        contestants[name] = partial(_sampled, engine, flight, network.steps)
        arithmetic[name] = engine.arithmetic(flight)
    return contestants, arithmetic


def _sampled(engine: Engine, flight: Flight, steps: int) -> UInt8Array:
    walk = engine.walk([flight], range(BATCH), [None] * BATCH, Sampling(steps=steps))
    while not walk.is_finished:
        engine.evaluate(flight, [walk])
    return walk.images()


def _figures(network: Network, timings: dict[str, Timing]) -> list[Figure]:
    wall = {name: timing.wall for name, timing in timings.items()}
    must = {"reference again": None, "exact": None, "fast": 4.0, "compiled": 5.0}
    return [
        Figure(
            name=f"{network.name}, {BATCH} images: {name} / reference",
            value=speed(wall[name], wall["reference"]),
            at_least=least,
        )
        for name, least in must.items()
        if name in wall
    ]


def _fidelity(contestants: dict[str, Sampler]) -> dict[str, Any]:
    """How the images of each differ from those of `exact`."""
    exact = contestants["exact"]().astype(np.float64)
    found = {}
    for name in contestants.keys() - {"exact", "reference again"}:
        squared = np.square(contestants[name]() - exact)
        each = squared.mean((1, 2, 3))
        found[name] = {
            "equal_bytes": float((squared == 0).mean()),
            "mean_psnr_db": float(np.minimum(100, 10 * np.log10(255**2 / np.maximum(each, 1e-9))).mean()),
        }
    return found
