"""When a job will have ended: what lies before it by measured paces, corrected by how earlier predictions came true."""

import math
import time
from bisect import bisect_left
from collections import OrderedDict, deque
from collections.abc import Callable
from statistics import quantiles
from typing import NamedTuple

from service import metrics
from service.job import Eta

SHORTEST_SECONDS = 0.02
"""What every job takes, whatever its network does: claiming, writing, telling."""

FIRST_RATIOS = (0.6, 0.8, 0.9, 1.0, 1.1, 1.2, 1.5, 2.0, 3.0, 4.0)
"""Supposed to have been observed before anything was."""

APART = 0.25
"""Jobs that end together had the same luck: one teaches, and the next one this part of what was predicted later."""

KEPT_RATIOS = 200
KEPT_PROMISES = 10_000


class Promise(NamedTuple):
    """What was first said of a job in one state."""

    model: str
    seconds: float
    """By measured paces alone."""
    eta: Eta
    made: float
    """When, by the clock."""


class Forecast:
    """Predicts from the seconds that lie before a job, by paces and queue, those that it will take.

    It learns how many times as long jobs took, for every power of ten of seconds apart, from the last ones that it
    predicted itself and that did not end together: `p50` and `p90` are the quantiles of those ratios. Every prediction
    that was given for a job as it came into a state, queued or running, is compared with the truth, which
    `pfgmpp_eta_total` counts.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ratios: dict[int, deque[float]] = {}
        self._taught: dict[int, float] = {}
        """When the last of the ratios was observed."""
        self._promises = OrderedDict[str, dict[str, Promise]]()

    def eta(self, seconds: float) -> Eta:
        """The prediction for a job before whose end lies so much."""
        seconds = max(seconds, SHORTEST_SECONDS)
        tenths = quantiles(self._learned(_scale(seconds)), n=10, method="inclusive")
        return Eta(p50=round(seconds * tenths[4], 3), p90=round(seconds * tenths[8], 3))

    def promise(self, job_id: str, status: str, model: str, seconds: float) -> Eta:
        """The same, to be held against the truth if it is the first for a job in this state."""
        eta = self.eta(seconds)
        made = self._promises.setdefault(job_id, {})
        made.setdefault(status, Promise(model, max(seconds, SHORTEST_SECONDS), eta, self._clock()))
        while len(self._promises) > KEPT_PROMISES:
            self._promises.popitem(last=False)
        return eta

    def ended(self, job_id: str, status: str) -> None:
        """Hold what was predicted of a job against the truth; those that others ended teach nothing."""
        for promise in self._promises.pop(job_id, {}).values():
            if status == "succeeded":
                self._learn(promise, self._clock() - promise.made)

    def _learn(self, promise: Promise, took: float) -> None:
        now, scale = self._clock(), _scale(promise.seconds)
        if now - self._taught.get(scale, -math.inf) >= APART * promise.seconds:
            self._learned(scale).append(took / promise.seconds)
            self._taught[scale] = now
        metrics.eta.labels(promise.model, _range(promise.eta, took)).inc()

    def _learned(self, scale: int) -> deque[float]:
        """The ratios observed of predictions of that scale."""
        return self._ratios.setdefault(scale, deque(FIRST_RATIOS, KEPT_RATIOS))


def _scale(seconds: float) -> int:
    """The power of ten."""
    return math.floor(math.log10(seconds))


def _range(eta: Eta, took: float) -> str:
    """Where the truth fell."""
    return metrics.ETA_RANGES[bisect_left([eta.p50, eta.p90], took)]
