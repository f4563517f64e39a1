"""Who is evaluated next, and what is claimed next: pure functions of what is in hand. No clock, no torch, no Redis.

What is in hand are cohorts: a few images of one job that are at the same point of the same path.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

COHORTS_PER_CALL = 8
"""How many cohorts at least fill a network call: enough to interleave jobs and to leave no large gap, and few enough
to spare the solver's arithmetic on each."""

RESERVED_EVERY = 8
"""One of so many turns, and claims, is for the job that has waited longest, whatever its length: nothing starves."""

RESERVE = 3
"""How many capacities a worker may have in hand, the last of them for much shorter work alone."""


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


@dataclass(frozen=True)
class Appetite:
    """What a worker can take."""

    rooms: Mapping[str, int]
    """The most images, by model."""
    below: int = 0
    """Only jobs of fewer evaluations, if it is not 0."""
    is_for_oldest: bool = False
    """Whether the jobs that have waited longest come before those that are due."""
    favourite: str = ""
    """The model under way: its jobs fill calls that are made anyway, so they are taken early."""
    favour_seconds: float = 0.0
    """How much earlier."""


@dataclass(frozen=True)
class Hands:
    """What a worker has and can, when it asks for more."""

    cohorts: Sequence[Candidate]
    models: Sequence[str]
    capacity: int
    """Images of the widest network call."""
    claims: int = 0
    """How often it has claimed."""
    call_seconds: float = 0.0
    """What a network call takes, lately."""


class Policy(Protocol):
    """How a worker orders its work."""

    @property
    def patience_seconds(self) -> float:
        """By how much one evaluation more postpones a job against others."""

    def choose(self, cohorts: Sequence[C], width: Callable[[Flight], int], turn: int) -> list[C]:
        """The cohorts of the next network call: of one flight, at most `width` images of it; [] for none."""

    def appetite(self, hands: Hands) -> Appetite | None:
        """What to claim; None for nothing."""


@dataclass(frozen=True)
class ShortestFirst:
    """Shortest remaining path first, with ageing: what counts is submission + remaining evaluations x patience.

    So a job is overtaken only by those that are shorter by as many evaluations as they came patiences later, and a job
    under way by none of its own length. A worker that has filled a call takes only work that is much shorter than the
    longest it has, which then waits in hand.
    """

    patience_seconds: float

    def choose(self, cohorts: Sequence[C], width: Callable[[Flight], int], turn: int) -> list[C]:
        is_reserved = turn % RESERVED_EVERY == 0
        in_order = sorted(cohorts, key=_submitted if is_reserved else self._due)
        return _fill(in_order, width)

    def _due(self, cohort: Candidate) -> float:
        return cohort.submitted + cohort.remaining * self.patience_seconds

    def appetite(self, hands: Hands) -> Appetite | None:
        staying = Counter[str]()
        for cohort in hands.cohorts:
            staying[cohort.flight.model] += cohort.images if cohort.remaining > 1 else 0
        if staying.total() < hands.capacity:
            return self._fill_up(hands, staying)
        longest = max(cohort.remaining for cohort in hands.cohorts)
        reserve = RESERVE * hands.capacity - sum(cohort.images for cohort in hands.cohorts)
        return Appetite(dict.fromkeys(hands.models, reserve), below=longest // 2) if reserve > 0 else None

    def _fill_up(self, hands: Hands, staying: Counter[str]) -> Appetite:
        """Every model may fill a call of its own, for calls are of one model; the one under way comes first."""
        rooms = {model: room for model in hands.models if (room := hands.capacity - staying[model]) > 0}
        is_for_oldest = hands.claims % RESERVED_EVERY == RESERVED_EVERY - 1
        if not hands.cohorts or is_for_oldest:
            return Appetite(rooms, is_for_oldest=is_for_oldest)
        first = min(hands.cohorts, key=self._due)
        under_way = max(each.remaining for each in hands.cohorts if each.flight == first.flight)
        return Appetite(rooms, favourite=first.flight.model, favour_seconds=2 * under_way * hands.call_seconds)


@dataclass(frozen=True)
class ByKey:
    """One batch of equal jobs at a time, first come first served: the baseline of the benchmarks."""

    patience_seconds: float = 0.0

    def choose(self, cohorts: Sequence[C], width: Callable[[Flight], int], turn: int) -> list[C]:
        return list(cohorts)

    def appetite(self, hands: Hands) -> Appetite | None:
        return None if hands.cohorts else Appetite(dict.fromkeys(hands.models, hands.capacity))


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
            if not room:
                break
    return chosen


def spans(length: int, width: int) -> list[tuple[int, int]]:
    """A part of so many images as the (start, length) of its cohorts, for network calls of `width` images."""
    size = max(1, width // COHORTS_PER_CALL)
    return [(start, min(size, length - start)) for start in range(0, length, size)]
