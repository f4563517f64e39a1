"""What a worker has in hand, and the thread that takes it to its end, one network call at a time."""

import itertools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from service import metrics, sample
from service.catalogue import Pace
from service.engine import Engine
from service.job import Part, Shown
from service.messages import Batch
from service.policy import Appetite, Flight, Hands, Policy
from service.request import Resolved
from service.sample import Preview, Walk
from service.tracing import Calls, NetworkCall, calls_of


@dataclass(eq=False)
class Share:
    """What a batch holds of one job: how far it is, and where its time went. Times are of time.monotonic."""

    batch: Batch
    job_id: str
    request: Resolved
    cohorts: "list[Cohort]" = field(default_factory=list)
    started: float = 0.0
    sampled: float = 0.0
    evaluations: int = 0
    """Network evaluations of each image."""
    evaluations_done: int = 0
    """Network evaluations, one per image."""
    widest: int = 0
    """Images in the largest network call that carried it."""
    arithmetic: str = ""
    """How the network computed in the last call that carried it."""
    checkpoint: str = ""
    """The SHA-256 of its weights."""
    is_dropped: bool = False
    previews: int = 0
    """How often its images are to be shown on their way."""
    previews_made: int = 0
    is_being_shown: bool = False
    calls: Calls | None = None
    """The network calls that carried it, if it is traced."""
    shown: dict[int, Shown] = field(default_factory=dict)
    """What is to be seen of its parts, by the place of their first image."""

    @property
    def images(self) -> int:
        return sum(cohort.images for cohort in self.cohorts)

    @property
    def parts(self) -> list[Part]:
        return [part for part in self.batch.parts if part.job_id == self.job_id]

    def walks(self, part: Part) -> list[Walk]:
        """The walks of a part that have been begun, in order."""
        return [cohort.walk for cohort in self.cohorts if cohort.part == part and cohort.walk]


@dataclass(eq=False)
class Cohort:
    """A few images of a share that walk together; a Candidate of the policy."""

    share: Share
    part: Part
    """The part of the batch to which they belong."""
    start: int
    images: int
    flights: tuple[Flight, ...]
    """Those of its evaluations, in turn."""
    remaining: int
    submitted: float
    walk: Walk | None = None

    def __post_init__(self) -> None:
        self.flight = self.flights[0]

    def land(self) -> None:
        """An evaluation is over."""
        self.remaining -= 1
        if len(self.flights) > 1:
            self.flight = self.flights[-self.remaining % len(self.flights)]


Previews = Mapping[Part, Sequence[Preview]]
"""What the images of parts are taken for, a cohort's after the other's."""


class Inflight:
    """Cohorts under way on one device. `run` is the life of the thread that computes; all else is for any thread.

    Every turn is one network call of the cohorts that the policy chooses: those at their end leave, and those that
    came in the meantime enter.
    """

    def __init__(
        self,
        engine: Engine,
        policy: Policy,
        on_sampled: Callable[[list[Share]], None],
        on_failure: Callable[[list[Share], Exception], None],
        on_turn: Callable[[], None],
        on_preview: Callable[[Share, int, Previews], None],
    ):
        self.engine = engine
        self.policy = policy
        self.images_per_second = 0.0
        """Images x evaluations per second of the widest network calls, lately."""
        self.paces: dict[str, Pace] = {}
        """The same by model, and what a network call for one image takes."""
        self._on_sampled, self._on_failure, self._on_turn = on_sampled, on_failure, on_turn
        self._on_preview = on_preview
        self._cohorts: list[Cohort] = []
        self._errands: list[Callable[[], None]] = []
        self._changed = threading.Condition()
        self._called = 0.0
        """When the network call under way began; 0 when there is none."""
        self._call_seconds = 0.0
        self._is_watched = False
        self._is_stirred = False
        self._is_closed = False

    def shares_of(self, batch: Batch) -> list[Share]:
        """A claimed batch, cut into cohorts. Raises ValueError when a request in it cannot be read."""
        shares = {
            job_id: _share(batch, job_id, Resolved.model_validate_json(text)) for job_id, text in batch.requests.items()
        }
        for part in batch.parts:
            share = shares[part.job_id]
            flights, submitted = sample.flights(share.request), batch.submitted[part.job_id]
            share.cohorts += [
                Cohort(share, part, part.start + start, length, flights, share.evaluations, submitted)
                for start, length in self.policy.spans(part.length, self.engine.width(flights[0]))
            ]
        return list(shares.values())

    @property
    def seconds_in_call(self) -> float:
        """For how long the network call under way has been so; 0 when there is none."""
        called = self._called
        return time.monotonic() - called if called else 0.0

    def enter(self, shares: Sequence[Share]) -> None:
        """Take shares in hand; they are evaluated from the next turn on."""
        with self._changed:
            self._cohorts += [cohort for share in shares for cohort in share.cohorts]
            self._changed.notify()

    def drop(self, shares: Sequence[Share]) -> None:
        """Let go of shares: they leave at the next evaluation, and nothing more is heard of them."""
        with self._changed:
            for share in shares:
                share.is_dropped = True
            self._cohorts = [cohort for cohort in self._cohorts if not cohort.share.is_dropped]
        for share in shares:
            _count(share, "wasted")

    def close(self) -> None:
        """Let go of everything, and let `run` return."""
        with self._changed:
            self._cohorts = []
            self._is_closed = True
            self._changed.notify()

    def appetite(self, models: Sequence[str], claims: int) -> Appetite | None:
        """What to claim of these models next, after so many claims."""
        with self._changed:
            hands = Hands(self._cohorts, models, self.engine.capacity, claims, self._call_seconds)
            return self.policy.appetite(hands)

    def watch(self) -> None:
        """Ask for one `on_turn`: after the next turn, if something has come or is about to leave; at once when idle."""
        self._is_watched = True
        if self.is_idle:
            self._tell()

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to compute."""
        return not self._cohorts

    def errand(self, act: Callable[[], None]) -> None:
        """Have something done in the thread that computes, before the next turn."""
        with self._changed:
            self._errands.append(act)
            self._changed.notify()

    def stir(self) -> None:
        """Something has come that might be claimed."""
        self._is_stirred = True

    def run(self) -> None:
        """Evaluate what is in hand, turn after turn, until closed."""
        for turn in itertools.count():
            if not self._turn(turn):
                break

    def _turn(self, turn: int) -> bool:
        """One network call, waiting for something to evaluate; False once closed."""
        chosen = self._next(turn)
        shares = list(dict.fromkeys(cohort.share for cohort in chosen))
        if not chosen:
            return False
        self._called = time.monotonic()
        try:
            self._evaluate(chosen, shares)
        except Exception as error:  # noqa: BLE001
            failed = [share for share in shares if not share.is_dropped]
            self.drop(failed)
            self._on_failure(failed, error)
            return True
        finally:
            self._called = 0.0
        self._land(chosen)
        for share in shares:
            if share.previews and not share.is_being_shown and not share.is_dropped:
                self._show(share)
        self._is_stirred = self._is_stirred or any(cohort.remaining <= 1 for cohort in chosen)
        if self._is_watched and self._is_stirred:
            self._tell()
        return True

    def _tell(self) -> None:
        self._is_watched = self._is_stirred = False
        self._on_turn()

    def _next(self, turn: int) -> list[Cohort]:
        """The cohorts of the next network call, waiting for some; [] once closed."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._cohorts or self._errands or self._is_closed)
                errands, self._errands = self._errands, []
                if not errands:
                    return self.policy.choose(self._cohorts, self.engine.width, turn)
            for act in errands:
                act()

    def _evaluate(self, chosen: Sequence[Cohort], shares: Sequence[Share]) -> None:
        """One network call."""
        flight, images = chosen[0].flight, sum([cohort.images for cohort in chosen])
        self.engine.prepare_flight(flight)
        started = time.monotonic()
        for share in shares:
            share.started = share.started or started
            share.widest = max(share.widest, images)
        self.engine.evaluate(flight, [cohort.walk or _begun(cohort, self.engine) for cohort in chosen])
        ended = time.monotonic()
        seconds = ended - started
        for share in shares:
            if share.calls:
                share.calls.note(NetworkCall(started, ended, images))
        for cohort in chosen:
            cohort.land()
            cohort.share.evaluations_done += cohort.images
        self._call_seconds = _lately(self._call_seconds, seconds)
        self._keep_pace(flight.model, self.engine.pace(flight, images, max(seconds, 1e-6)))
        metrics.observe_evaluation(flight.model, seconds, self.engine.evaluated(flight, images) - images)

    def _keep_pace(self, model: str, measured: Pace) -> None:
        known = self.paces.get(model, measured)
        self.paces[model] = Pace(
            evaluations_per_second=_lately(known.evaluations_per_second, measured.evaluations_per_second),
            evaluation_seconds=_lately(known.evaluation_seconds, measured.evaluation_seconds),
            images=measured.images,
        )
        self.images_per_second = _lately(self.images_per_second, measured.evaluations_per_second)

    def _show(self, share: Share) -> None:
        """Pass on how far the images of a share are, evenly often on the way of those that are last."""
        done = share.evaluations - max(cohort.remaining for cohort in share.cohorts)
        due = done * (share.previews + 1) // share.evaluations
        if due == share.previews_made or done == share.evaluations:
            return
        estimates = {part: [e for walk in share.walks(part) if (e := walk.preview())] for part in share.parts}
        if sum(map(len, estimates.values())) == len(share.cohorts):  # guided, it has none before its second evaluation
            share.previews_made, share.is_being_shown = due, True
            self._on_preview(share, done, estimates)

    def _land(self, chosen: Sequence[Cohort]) -> None:
        """Take the cohorts at their end out of hand, and pass on the shares that are whole."""
        landed = [cohort for cohort in chosen if not cohort.remaining]
        if not landed:
            return
        with self._changed:
            self._cohorts = [cohort for cohort in self._cohorts if cohort.remaining]
        now, whole = time.monotonic(), []
        for share in dict.fromkeys(cohort.share for cohort in landed):
            if not share.is_dropped and not any(cohort.remaining for cohort in share.cohorts):
                share.sampled = now
                own = share.cohorts[0].flights[0]
                share.arithmetic = self.engine.arithmetic(own)
                share.checkpoint = self.engine.checkpoint(own)
                _count(share, "useful")
                whole.append(share)
        if whole:
            self._on_sampled(whole)


def _lately(known: float, measured: float) -> float:
    """A running mean over some twenty measurements."""
    return known + 0.05 * (measured - known) if known else measured


def _share(batch: Batch, job_id: str, request: Resolved) -> Share:
    """A share without its cohorts."""
    calls = calls_of(batch.traces.get(job_id, ""))
    return Share(batch, job_id, request, evaluations=request.evaluations, previews=request.previews, calls=calls)


def _begun(cohort: Cohort, engine: Engine) -> Walk:
    """The walk of a cohort, which begins."""
    share = cohort.share
    cohort.walk = sample.walk(engine, share.request, cohort.start, cohort.images)
    return cohort.walk


def _count(share: Share, kind: str) -> None:
    metrics.network_evaluations.labels(share.batch.model, kind).inc(share.evaluations_done)
