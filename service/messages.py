"""What API and workers tell the queue, and what it answers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from pydantic import BaseModel, Field

from service.job import Event, Job, Part, Webhook


@dataclass(frozen=True)
class Batch:
    """What a worker has claimed: parts of one lane, and the requests of their jobs by id."""

    id: str
    lane: str
    parts: tuple[Part, ...]
    requests: Mapping[str, str]
    submitted: Mapping[str, float]
    """When its jobs were submitted, in seconds, by id; earlier for those of a higher priority."""
    traces: Mapping[str, str] = field(default_factory=dict)
    """The `traceparent` of its jobs by id; "" for those that are not traced."""
    is_alone: bool = False
    """Whether its job has brought a worker down before, and must not share one with others."""
    leaves_more: bool = False
    """Whether something else waited for the worker's models."""

    @property
    def images(self) -> int:
        return sum(part.length for part in self.parts)

    @property
    def model(self) -> str:
        return self.lane.split("|")[0]


class EmptyHandsNeeded(Exception):
    """The next job must run alone, and the worker has others in hand."""


class JobReport(BaseModel):
    """What a worker says of what it computed of one job."""

    began_ms_ago: float
    """When the first network call of its images began."""
    sampled_ms_ago: float
    """When the last one ended."""
    images: int
    arithmetic: str
    checkpoint: str
    labels: dict[int, str]
    is_written: bool


class Report(BaseModel):
    """What a worker says of jobs of a batch that it has computed, by id."""

    jobs: dict[str, JobReport]


@dataclass(frozen=True)
class Renewal:
    """The answer to `renew`: batches that are no longer the worker's, and jobs that are no longer open."""

    lost: tuple[str, ...]
    closed: tuple[str, ...]


@dataclass(frozen=True)
class Completion:
    """The answer to `complete`: stale, or the jobs whose results must be written first, or the jobs now ended."""

    is_stale: bool = False
    to_write: tuple[str, ...] = ()
    ended: tuple[Job, ...] = ()


class Order(NamedTuple):
    """What all workers are told: to load or unload a model, or to let go of a job."""

    act: Literal["load", "unload", "cancel"]
    subject: str
    """A model, or a job."""


@dataclass(frozen=True)
class GivenBack:
    """A job whose batch was lost, so that its images wait again or it has failed; or that was not begun in time."""

    job_id: str
    model: str
    outcome: Literal["requeued", "failed", "expired"]


@dataclass(frozen=True)
class Notice:
    """An event of a job that its webhook is to be told; None if the job is no longer kept."""

    job_id: str
    event: Event
    webhook: Webhook | None


class Limits(NamedTuple):
    """What a caller may have in the queue; 0 for no limit."""

    per_minute: int = 0
    """Submissions."""
    evaluations: int = 0
    """Accepted and not done."""
    jobs: int = 0
    """That have not ended."""


NO_LIMITS = Limits()


@dataclass(frozen=True)
class Submission:
    """A job to be queued."""

    id: str
    kind: str
    lane: str
    count: int
    """Images."""
    evaluations: int
    """Network evaluations of each image."""
    request: str
    owner: str = ""
    limits: Limits = NO_LIMITS
    priority: int = 0
    deadline_seconds: float | None = None
    """From now; a job that has not begun by then expires."""
    idempotency_key: str = ""
    evaluation_us: int = 0
    """What a network evaluation takes, as far as it is known: by it a caller's jobs are put behind each other."""
    webhook: str = ""
    """Whom to tell of it, {url, events} as JSON."""
    traceparent: str = ""
    """Of the request that submits it, if that is traced."""
    body_hash: str = ""
    """By which a repeated submission is told from another one with the same idempotency key."""


class UnfitServer(ValueError):
    """A server that would lose jobs by itself."""


class KeyReused(Exception):
    """An idempotency key came with another body."""


class LimitReached(Exception):
    """A caller has as much as it may have: `limit` says of what, `number` how much, or how long it has to wait [ms]."""

    def __init__(self, limit: Literal["per_minute", "evaluations", "jobs"], number: int):
        super().__init__(limit)
        self.limit, self.number = limit, number


class Ahead(NamedTuple):
    """What a job comes upon, or would if it was submitted now; evaluations are those of the network, not done yet."""

    accepted: int
    """Evaluations of all callers."""
    owned: int
    """Those of its caller."""
    jobs: int
    """The caller's jobs that have not ended."""
    before: Mapping[str, int]
    """Evaluations that come before its own, by model; of a job that is there before its end, its own among them."""
    there: Mapping[str, int]
    """All evaluations, by model."""

    def with_own(self, model: str, evaluations: int) -> "Ahead":
        """The same for a job that is there, once its own have come."""
        before, there = ({**known, model: known.get(model, 0) + evaluations} for known in (self.before, self.there))
        return self._replace(before=before, there=there)


@dataclass(frozen=True)
class LaneCensus:
    """What waits in one lane."""

    lane: str
    jobs: int
    images: int
    evaluations: int
    oldest_age_seconds: float

    @property
    def model(self) -> str:
        return self.lane.split("|")[0]


class ModelQueue(BaseModel):
    """What waits and runs of one model."""

    model: str
    queued_jobs: int = Field(description="With images that wait.")
    queued_images: int
    queued_evaluations: int = Field(description="Network evaluations that wait.")
    oldest_age_seconds: float = Field(description="Of those jobs; 0 if there are none.")
    running_jobs: int = Field(description="Begun and not ended.")


@dataclass(frozen=True)
class Census:
    """What waits and runs in the whole queue."""

    evaluations: int = 0
    lanes: tuple[LaneCensus, ...] = ()
    running: Mapping[str, int] = field(default_factory=dict)

    @property
    def models(self) -> list[ModelQueue]:
        """The same by model."""
        return [self._of(model, running) for model, running in self.running.items()]

    def _of(self, model: str, running: int) -> ModelQueue:
        lanes = [lane for lane in self.lanes if lane.model == model]
        return ModelQueue(
            model=model,
            queued_jobs=sum(lane.jobs for lane in lanes),
            queued_images=sum(lane.images for lane in lanes),
            queued_evaluations=sum(lane.evaluations for lane in lanes),
            oldest_age_seconds=max((lane.oldest_age_seconds for lane in lanes), default=0.0),
            running_jobs=running,
        )
