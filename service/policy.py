"""Who is evaluated next, and what is claimed next: pure functions of what is in hand. No clock, no torch, no Redis.

What is in hand are cohorts: a few images of one job that are at the same point of the same path.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

COHORTS_PER_CALL = 16
"""How many of the largest cohorts fill a network call: few enough to spare the solver's arithmetic on each."""

RESERVED_EVERY = 8
"""One of so many turns, and claims, is for the job that has waited longest, whatever its length: nothing starves."""

RESERVE = 3
"""How many capacities a worker may have in hand, the last of them for shorter work alone."""


class Flight(NamedTuple):
    """What may share a network call."""

    model: str
    precision: str
    bits: int = 0
    """Of its weights; 0 if they are not rounded."""
    quantized: str = ""
    """Which of them are rounded."""
    window: tuple[int, int, int, int] | None = None
    """Its x, y, width and height, if it is not the whole frame."""
    checkpoint: str = ""
    """The SHA-256 of the weights when the job was accepted; "" for those that are current."""


class Candidate(Protocol):
    """A cohort as the policy sees it."""

    @property
    def share(self) -> object:
        """What it belongs to, which ends with its last cohort."""

    @property
    def flight(self) -> Flight:
        """That of its next evaluation."""

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

    def spans(self, length: int, width: int) -> list[tuple[int, int]]:
        """A part of so many images as the (start, length) of its cohorts, for network calls of `width` images."""


@dataclass(frozen=True)
class ShortestFirst:
    """Shortest remaining path first, with ageing: what counts is submission + remaining evaluations x patience.

    A share is as far as the last of its cohorts, and those of it that were displaced are the first of it the next time.
    So a job is overtaken only by those that are shorter by as many evaluations as they came patiences later, and a job
    under way by none of its own length. A worker with room in a call takes as much as fills one, for crumbs would take
    long to compute; one without takes only work that is shorter than the longest it has, which then waits in hand.
    """

    patience_seconds: float

    def choose(self, cohorts: Sequence[C], width: Callable[[Flight], int], turn: int) -> list[C]:
        if _fit_together(cohorts, width):
            return list(cohorts)
        patience = 0.0 if turn % RESERVED_EVERY == 0 else self.patience_seconds
        last = dict[object, int]()
        for cohort in cohorts:
            last[cohort.share] = max(cohort.remaining, last.get(cohort.share, 0))

        def due(cohort: Candidate) -> tuple[float, int]:
            return cohort.submitted + last[cohort.share] * patience, -cohort.remaining

        return _fill(sorted(cohorts, key=due), width)

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
        return Appetite(dict.fromkeys(hands.models, reserve), below=longest) if reserve > 0 else None

    def _fill_up(self, hands: Hands, staying: Counter[str]) -> Appetite:
        """Every model may fill a call of its own, for calls are of one model; the one under way comes first."""
        rooms = {model: hands.capacity for model in hands.models if staying[model] < hands.capacity}
        is_for_oldest = hands.claims % RESERVED_EVERY == RESERVED_EVERY - 1
        if not hands.cohorts or is_for_oldest:
            return Appetite(rooms, is_for_oldest=is_for_oldest)
        first = min(hands.cohorts, key=self._due)
        under_way = max(each.remaining for each in hands.cohorts if each.flight == first.flight)
        return Appetite(rooms, favourite=first.flight.model, favour_seconds=2 * under_way * hands.call_seconds)

    def spans(self, length: int, width: int) -> list[tuple[int, int]]:
        """The last ones are smaller and smaller, so that what comes displaces no more than it takes."""
        largest, cut, start = max(1, width // COHORTS_PER_CALL), [], 0
        while left := length - start:
            cut.append((start, min(largest, max(1, left // 2))))
            start += cut[-1][1]
        return cut


@dataclass(frozen=True)
class ByKey:
    """One batch of equal jobs at a time, first come first served: the baseline of the benchmarks."""

    patience_seconds: float = 0.0

    def choose(self, cohorts: Sequence[C], width: Callable[[Flight], int], turn: int) -> list[C]:
        return [cohort for cohort in cohorts if cohort.flight == cohorts[0].flight]

    def appetite(self, hands: Hands) -> Appetite | None:
        return None if hands.cohorts else Appetite(dict.fromkeys(hands.models, hands.capacity))

    def spans(self, length: int, width: int) -> list[tuple[int, int]]:
        return [(0, length)]


def _fit_together(cohorts: Sequence[Candidate], width: Callable[[Flight], int]) -> bool:
    """Whether one call can take all cohorts, so that their order is of no account."""
    images = sum([cohort.images for cohort in cohorts])
    return not cohorts or (images <= width(cohorts[0].flight) and len({cohort.flight for cohort in cohorts}) == 1)


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
