"""The order of work: pure functions of what is in hand, and a day of mixed jobs under a clock of its own."""

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest

from service.policy import RESERVED_EVERY, Appetite, ByKey, Flight, Hands, Policy, ShortestFirst

A, B = Flight("digits-d128", "exact"), Flight("digits-d128", "fast")
OTHER = Flight("digits-d1", "exact")
MODELS = [A.model, OTHER.model]
SHORT, LONG = 9, 199


@dataclass(eq=False)
class Waiting:
    """A cohort as the policy sees it."""

    remaining: int
    submitted: float = 0.0
    images: int = 1
    flight: Flight = A
    share: object = field(default_factory=object)
    ended: float = field(default=-1.0)


def eight(flight: Flight) -> int:
    return 8


def chosen(policy: Policy, *cohorts: Waiting, width: Callable[[Flight], int] = eight, turn: int = 1) -> list[int]:
    """The places of the cohorts of the next call."""
    return [cohorts.index(cohort) for cohort in policy.choose(cohorts, width, turn)]


def test_nothing_in_hand_means_no_call() -> None:
    assert ShortestFirst(1.0).choose([], eight, 1) == ByKey().choose([], eight, 1) == []


def test_the_shortest_remaining_path_goes_first_and_the_others_fill_the_call() -> None:
    cohorts = [Waiting(50), Waiting(3, images=4), Waiting(20, images=3), Waiting(60)]
    assert chosen(ShortestFirst(1.0), *cohorts) == [1, 2, 0]


def test_a_call_is_of_one_flight_and_no_wider_than_it_pays() -> None:
    cohorts = [Waiting(5, images=4), Waiting(6, flight=B), Waiting(7, images=5), Waiting(8, images=4), Waiting(9)]
    assert chosen(ShortestFirst(1.0), *cohorts) == [0, 3]
    assert chosen(ShortestFirst(1.0), *cohorts, width=lambda flight: 2) == [0], "a cohort is never cut"


def test_waiting_counts_as_much_as_the_patience_says() -> None:
    """After 95 seconds at one second per evaluation, 100 evaluations go before 10 just come."""
    old, new = Waiting(100, submitted=0.0, images=8), Waiting(10, submitted=95.0, images=8)
    assert chosen(ShortestFirst(1.0), new, old) == [1]
    assert chosen(ShortestFirst(1.1), new, old) == [0]


def test_a_job_under_way_is_not_overtaken_by_its_like() -> None:
    under_way, new = Waiting(30, submitted=0.0, images=8), Waiting(35, submitted=0.001, images=8)
    assert chosen(ShortestFirst(1.0), new, under_way) == [1]


def test_one_turn_in_eight_is_for_who_has_waited_longest() -> None:
    old, new = Waiting(400, submitted=0.0, images=8), Waiting(5, submitted=9.0, images=8)
    turns = [chosen(ShortestFirst(1.0), old, new, turn=turn) for turn in range(2 * RESERVED_EVERY)]
    assert [turn for turn, places in enumerate(turns) if places == [0]] == [0, RESERVED_EVERY]


def test_by_key_takes_all_there_is_and_asks_only_with_empty_hands() -> None:
    cohorts = [Waiting(5, images=8), Waiting(5, images=8)]
    assert chosen(ByKey(), *cohorts) == [0, 1]
    assert ByKey().appetite(Hands(cohorts, MODELS, 64)) is None
    assert ByKey().appetite(Hands([], MODELS, 64)) == Appetite({A.model: 64, OTHER.model: 64})


def appetite(*cohorts: Waiting, claims: int = 0) -> Appetite:
    """Of a worker for two models, whose calls take 16 images and half a second."""
    found = ShortestFirst(1.0).appetite(Hands(cohorts, MODELS, 16, claims, call_seconds=0.5))
    assert found is not None
    return found


def test_empty_hands_take_what_fills_a_call() -> None:
    assert appetite() == Appetite({A.model: 16, OTHER.model: 16})


def test_what_fills_the_calls_under_way_comes_first_and_other_models_fill_calls_of_their_own() -> None:
    """By the time of two batches like the one under way: here 2 x 35 calls of half a second."""
    rooms = {A.model: 16, OTHER.model: 16}
    found = appetite(Waiting(35, images=8), Waiting(20, images=2, flight=B))
    assert found == Appetite(rooms, favourite=A.model, favour_seconds=20.0)
    found = appetite(Waiting(35, images=8), Waiting(20, images=2, flight=OTHER))
    assert found == Appetite(rooms, favourite=OTHER.model, favour_seconds=20.0)


def test_images_about_to_leave_make_room() -> None:
    assert appetite(Waiting(35, images=8), Waiting(2, images=8)).below > 0
    assert appetite(Waiting(35, images=8), Waiting(1, images=8)) == appetite(Waiting(35, images=8))


def test_with_a_full_call_only_shorter_work_is_taken() -> None:
    full = [Waiting(35, images=8), Waiting(99, images=8)]
    assert appetite(*full) == Appetite({A.model: 32, OTHER.model: 32}, below=99)
    assert appetite(*full, Waiting(9, images=24)) == Appetite({A.model: 8, OTHER.model: 8}, below=99)
    assert ShortestFirst(1.0).appetite(Hands([Waiting(99, images=48)], MODELS, 16)) is None


def test_one_claim_in_eight_is_for_who_has_waited_longest() -> None:
    oldest = [appetite(Waiting(9), claims=claims).is_for_oldest for claims in range(RESERVED_EVERY)]
    assert oldest == [False] * (RESERVED_EVERY - 1) + [True]


@pytest.mark.parametrize(
    ("length", "width", "lengths"),
    [
        (64, 64, [4] * 15 + [2, 1, 1]),
        (20, 64, [4, 4, 4, 4, 2, 1, 1]),
        (3, 8, [1, 1, 1]),
        (2, 1, [1, 1]),
        (1, 64, [1]),
    ],
)
def test_parts_are_cut_into_small_parts_of_a_call_and_ever_smaller_ones(
    length: int, width: int, lengths: list[int]
) -> None:
    cut = ShortestFirst(1.0).spans(length, width)
    assert [each for _, each in cut] == lengths
    assert [start for start, _ in cut] == [sum(lengths[:k]) for k in range(len(lengths))]
    assert ByKey().spans(length, width) == [(0, length)]


def test_a_short_job_displaces_no_more_than_it_takes() -> None:
    """A call of 64 is full with the long job alone, and with one image less of it beside the short one."""
    policy, share = ShortestFirst(1.0), object()
    long = [Waiting(LONG, images=images, share=share) for _, images in policy.spans(64, 64)]
    taken = policy.choose([*long, Waiting(SHORT)], lambda flight: 64, 1)
    assert sum(cohort.images for cohort in taken) == 64
    assert len(taken) == len(long)


def test_what_was_displaced_of_a_job_goes_first_the_next_time() -> None:
    """Twenty short jobs one after the other: no cohort of the long one falls behind by more than one call."""
    policy, share = ShortestFirst(1.0), object()
    long = [Waiting(LONG, share=share) for _ in range(8)]
    for turn in range(1, 20 * SHORT):
        short = Waiting(SHORT - turn % SHORT, submitted=float(turn))
        for cohort in policy.choose([*long, short], eight, turn):
            cohort.remaining -= 1
        left = [cohort.remaining for cohort in long]
        assert max(left) - min(left) <= 1


Job = list[Waiting]
"""The cohorts of a job."""


def jobs_of_a_day(load: float, rng: random.Random) -> list[Job]:
    """Poisson arrivals, nine short jobs of 1 image to one long of 16, for a device that makes a call of 8 a second."""
    jobs, now = list[Job](), 0.0
    work = (0.9 * SHORT * 1 + 0.1 * LONG * 16) / 8
    while len(jobs) < 2000:
        now += rng.expovariate(load / work)
        is_long = rng.random() < 0.1
        share = object()
        jobs.append([Waiting(LONG, now, share=share) for _ in range(16)] if is_long else [Waiting(SHORT, now)])
    return jobs


def worked_off(policy: Policy, jobs: list[Job]) -> float:
    """Let the device do the jobs; when the last is done."""
    waiting = deque(sorted((cohort for job in jobs for cohort in job), key=lambda cohort: cohort.submitted))
    in_hand, now, turn = list[Waiting](), 0.0, 0
    while waiting or in_hand:
        if not in_hand:
            now = max(now, waiting[0].submitted)
        while waiting and waiting[0].submitted <= now:
            in_hand.append(waiting.popleft())
        now, turn = now + 1.0, turn + 1
        for cohort in policy.choose(in_hand, eight, turn):
            cohort.remaining -= 1
            cohort.ended = now
        in_hand = [cohort for cohort in in_hand if cohort.remaining]
    return now


def p99(jobs: Sequence[Job]) -> float:
    return sorted(max(each.ended for each in job) - job[0].submitted for job in jobs)[int(0.99 * len(jobs))]


@dataclass(frozen=True)
class FirstCome(ShortestFirst):
    """Whole jobs in the order of their submission."""

    patience_seconds: float = 0.0


def test_short_jobs_wait_a_tenth_and_long_ones_hardly_longer() -> None:
    """At 80 % load, against first come first served on the same arrivals."""
    ends, shorts, longs = [], [], []
    for policy in (ShortestFirst(100.0), FirstCome()):
        jobs = jobs_of_a_day(0.8, random.Random(1))
        ends.append(worked_off(policy, jobs))
        shorts.append(p99([job for job in jobs if len(job) == 1]))
        longs.append(p99([job for job in jobs if len(job) > 1]))
    assert shorts[0] <= 0.1 * shorts[1]
    assert longs[0] <= 1.15 * longs[1]
    assert ends[0] <= 1.01 * ends[1]


def test_nothing_starves_under_an_endless_stream_of_shorter_jobs() -> None:
    """Short jobs alone take all there is; the long one still ends, by the reserved turns."""
    long = Waiting(LONG, 0.0, 8)
    worked_off(ShortestFirst(1e9), [[long], *([Waiting(SHORT, k * SHORT, 8)] for k in range(LONG))])
    assert long.ended <= RESERVED_EVERY * LONG + RESERVED_EVERY
