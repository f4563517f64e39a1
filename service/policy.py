"""Who is evaluated next, and what is claimed next: pure functions of what is in hand. No clock, no torch, no Redis.

What is in hand are cohorts: a few images of one job that are at the same point of the same path.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

COHORTS_PER_CALL = 8
"""How many cohorts at least fill a network call: enough to interleave jobs and to leave no large gap, and few enough
to spare the solver's arithmetic on each."""

RESERVED_EVERY = 8
"""One of so many turns, and claims, is for the job that has waited longest, whatever its length: nothing starves."""


class Flight(NamedTuple):
    """What may share a network call."""

    model: str
    precision: str


class Candidate(Protocol):
    """A cohort as the policy sees it."""

    @property
    def flight(self) -> Flight: ...
    @property
    def images(self) -> int: ...
    @property
    def remaining(self) -> int:
        """Network evaluations to its end."""

    @property
    def submitted(self) -> float:
        """When its job was submitted, in seconds."""


C = TypeVar("C", bound=Candidate)


class Appetite(NamedTuple):
    """What a worker can take: so many images, of jobs of fewer than `below` evaluations if that is not 0."""

    images: int
    below: int = 0
    is_for_oldest: bool = False
    """Whether the jobs that have waited longest come before those that are due."""


class Policy(Protocol):
    """How a worker orders its work."""

    @property
    def patience_seconds(self) -> float:
        """By how much one evaluation more postpones a job against others."""

    def choose(self, cohorts: Sequence[C], width: Callable[[Flight], int], turn: int) -> list[C]:
        """The cohorts of the next network call: of one flight, at most `width` images of it; [] for none."""

    def appetite(self, cohorts: Sequence[Candidate], capacity: int, claims: int) -> Appetite | None:
        """What to claim after so many claims, of a worker made for `capacity` images; None for nothing."""


@dataclass(frozen=True)
class ShortestFirst:
    """Shortest remaining path first, with ageing: what counts is submission + remaining evaluations x patience.

    So a job is overtaken only by those that are shorter by as many evaluations as they came patiences later, and a job
    under way by none of its own length. Beyond its capacity a worker takes work that is much shorter than the longest
    it has, which then waits in hand.
    """

    patience_seconds: float

    def choose(self, cohorts: Sequence[C], width: Callable[[Flight], int], turn: int) -> list[C]:
        is_reserved = turn % RESERVED_EVERY == 0
        in_order = sorted(cohorts, key=_submitted if is_reserved else self._due)
        return _fill(in_order, width)

    def _due(self, cohort: Candidate) -> float:
        return cohort.submitted + cohort.remaining * self.patience_seconds

    def appetite(self, cohorts: Sequence[Candidate], capacity: int, claims: int) -> Appetite | None:
        staying = sum(cohort.images for cohort in cohorts if cohort.remaining > 1)
        if staying < capacity:
            return Appetite(capacity - staying, is_for_oldest=claims % RESERVED_EVERY == RESERVED_EVERY - 1)
        longest = max(cohort.remaining for cohort in cohorts)
        reserve = 2 * capacity - sum(cohort.images for cohort in cohorts)
        return Appetite(reserve, longest // 2) if reserve > 0 and longest > 1 else None


@dataclass(frozen=True)
class ByKey:
    """One batch of equal jobs at a time, first come first served: the baseline of the benchmarks."""

    patience_seconds: float = 0.0

    def choose(self, cohorts: Sequence[C], width: Callable[[Flight], int], turn: int) -> list[C]:
        return list(cohorts)

    def appetite(self, cohorts: Sequence[Candidate], capacity: int, claims: int) -> Appetite | None:
        return None if cohorts else Appetite(capacity)


def _submitted(cohort: Candidate) -> float:
    return cohort.submitted


def _fill(in_order: Sequence[C], width: Callable[[Flight], int]) -> list[C]:
    """The first cohort and those of its flight that fit beside it, in order."""
    if not in_order:
        return []
    flight = in_order[0].flight
    room = max(width(flight), in_order[0].images)
    chosen = []
    for cohort in in_order:
        if cohort.flight == flight and cohort.images <= room:
            chosen.append(cohort)
            room -= cohort.images
    return chosen


def spans(length: int, width: int) -> list[tuple[int, int]]:
    """A part of so many images as the (start, length) of its cohorts, for network calls of `width` images."""
    size = max(1, width // COHORTS_PER_CALL)
    return [(start, min(size, length - start)) for start in range(0, length, size)]
