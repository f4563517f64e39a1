"""Comparisons that hold when the machine's speed drifts: rounds in which every contestant has its turn."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

import numpy as np

Act = Callable[[], object]


@dataclass
class Timing:
    """What a contestant took in every round, in seconds: by the clock, and of this thread's CPU time."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


def interleaved(acts: Mapping[str, Act], rounds: int, is_cold: bool = False) -> dict[str, Timing]:
    """Every act once to warm up, unless it may be cold, then once a round, each round beginning with another."""
    timings = {name: Timing() for name in acts}
    for act in () if is_cold else acts.values():
        act()
    order = list(acts)
    for turn in range(rounds):
        start = turn % len(order)
        for name in order[start:] + order[:start]:
            wall, cpu = time.perf_counter(), time.thread_time()
            acts[name]()
            timings[name].wall.append(time.perf_counter() - wall)
            timings[name].cpu.append(time.thread_time() - cpu)
    return timings


def speed(of: Sequence[float], against: Sequence[float]) -> float:
    """How many times as fast one was as the other: the median over rounds of the ratio of their seconds."""
    return median(other / own for own, other in zip(of, against, strict=True))


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p90 and p99."""
    return {f"p{p}": float(np.percentile(values, p)) for p in (50, 90, 99)}
