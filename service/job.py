"""A job: its states, what Redis holds of it, and what a client sees."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, HttpUrl, field_validator

from service.problems import ProblemDocument

Status = Literal["queued", "running", "succeeded", "failed", "canceled", "expired"]


class Part(NamedTuple):
    """The images start..start+length-1 of a job: what one batch computes of it."""

    job_id: str
    start: int
    length: int


class Progress(BaseModel):
    """How far a job is; evaluations count once per image."""

    evaluations_done: int
    evaluations_total: int
    images_done: int
    images_total: int


class Latency(BaseModel):
    """Where the time of a finished job went; the four stages add up to the total."""

    queue_seconds: float = Field(description="From submission until a worker claimed it.")
    batch_wait_seconds: float = Field(description="Claimed, until its images began to be sampled.")
    sampling_seconds: float = Field(description="From the first network call for its images to the last.")
    encoding_seconds: float = Field(description="Writing images and grid, to the end.")
    total_seconds: float = Field(description="From submission to end.")
    evaluations: int = Field(description="Network evaluations of each image.")
    batch_images: int = Field(description="Images in the largest batch that carried it.")
    images_per_second: float = Field(description="Its images, by total_seconds.")

    def stages(self) -> dict[str, float]:
        """The seconds of every stage by its name, in order, and of their `total`."""
        return {
            "queue": self.queue_seconds,
            "batch_wait": self.batch_wait_seconds,
            "sampling": self.sampling_seconds,
            "encoding": self.encoding_seconds,
            "total": self.total_seconds,
        }


class Shown(NamedTuple):
    """What is to be seen of a part of a job: at which of its evaluations it was taken, and at which noise level."""

    evaluation: int
    sigma: float


class Eta(BaseModel):
    """How many seconds it will take: half of all such predictions are kept within `p50`, nine in ten within `p90`."""

    p50: float
    p90: float


class JobError(BaseModel):
    """Why a job failed."""

    code: str
    detail: str


class ModelUsed(BaseModel):
    """The model that made the images."""

    dataset: str
    D: int | float | Literal["inf"]
    checkpoint_sha256: str
    precision: str
    arithmetic: str | None = Field(
        description="How the network computed: float32, bfloat16, ...; null until something is done."
    )


Event = Literal["started", "succeeded", "failed", "canceled", "expired"]
"""What a webhook can be told of a job."""


def fate(status: str) -> str:
    """What became of a job that has ended, as the end of a sentence."""
    return "was canceled" if status == "canceled" else status


ENDS: list[Event] = ["succeeded", "failed", "canceled", "expired"]


class Webhook(BaseModel):
    """Whom to tell of a job."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    url: HttpUrl = Field(
        description="Where the job is POSTed to; of the public internet, unless the service allows more."
    )
    events: list[Event] = Field(ENDS, min_length=1, max_length=5, description="Of which events; all ends if left out.")

    @property
    def host(self) -> str:
        """Its host; an IPv6 address without brackets."""
        return (self.url.host or "").strip("[]")

    @field_validator("url")
    @classmethod
    def _is_anonymous(cls, url: HttpUrl) -> HttpUrl:
        if url.username or url.password:
            raise ValueError("must have no user name or password")
        return url


class Call(BaseModel):
    """How it went to tell a webhook of an event."""

    outcome: Literal["delivered", "retried", "given_up"]
    tries: int
    reason: str | None = Field(None, description="Why the last try failed.")


class WebhookView(Webhook):
    """Whom a job's caller wants to be told of it, and how that went."""

    model_config = ConfigDict(extra="ignore")

    calls: dict[Event, Call] = Field(description="What was tried so far.")


class JobView(BaseModel):
    """A job as `GET /v1/jobs/{id}` shows it."""

    id: str
    kind: str
    owner: str | None = Field(description="The name of the key that it was submitted with; null without keys.")
    status: Status
    request: dict[str, Any] = Field(description="The request, with everything that was left open filled in.")
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    attempts: int
    queue_position: int | None = Field(description="Jobs ahead for the same model; null once it runs.")
    eta_seconds: Eta | None = Field(description="Until its end; null in a list, and while nothing is known.")
    waits_for: str | None = Field(description="What a queued job lacks beside its turn: a worker with its model.")
    progress: Progress
    latency: Latency | None
    model: ModelUsed
    seeds: list[int]
    labels: list[int] | None = Field(description="Class of every image; null until known, or without classes.")
    error: JobError | None
    webhook: WebhookView | None = None
    links: dict[str, str]


class Message(BaseModel):
    """What a webhook is sent."""

    type: str = Field(description="`job.` and the event, such as `job.succeeded`.")
    timestamp: datetime = Field(description="Of this call.")
    data: JobView = Field(description="The job as it is now, without its webhook.")


class Estimate(BaseModel):
    """What a request would take."""

    images: int
    evaluations: int = Field(description="Network evaluations, of all images together.")
    wait_seconds: float | None = Field(description="Until it would begin; null while nothing is known of the workers.")
    eta_seconds: Eta | None = Field(description="From submission to end; null while nothing is known of the workers.")
    run_seconds: float | None = Field(description="On one worker that has nothing else to do.")
    refusal: ProblemDocument | None = Field(description="As what it would be refused now; null if it would not.")


CURSOR = r"^([0-9]{1,20}:[0-9a-f]{32})?$"
"""Of a list of jobs: the place of its last one."""


class JobList(BaseModel):
    """Some jobs of a caller."""

    jobs: list[JobView]
    next: str | None = Field(description="The `cursor` of what follows; null at the end.")


@dataclass(frozen=True)
class Job:
    """What the queue holds of a job.

        submit --> queued --claim--> running --complete--> succeeded
                     ^                  |
                     +--give back-------+--attempts used up--> failed
                        (its images wait again; the job stays running)
        queued, running --cancel--> canceled        queued --deadline--> expired

    Terminal states never change; the record goes a retention time after the end.
    """

    id: str
    kind: str
    status: Status
    request: dict[str, Any]
    count: int
    evaluations: int
    """Network evaluations of each image."""
    done: int
    attempts: int
    submitted_ms: float
    started_ms: float | None
    finished_ms: float | None
    place: int
    fields: Mapping[str, str]
    """The hash in Redis, for what only a view needs."""

    @classmethod
    def from_redis(cls, job_id: str, fields: Mapping[str, str], place: int) -> "Job":
        return cls(
            id=job_id,
            kind=fields["kind"],
            status=fields["status"],  # type: ignore[arg-type]
            request=json.loads(fields["request"]),
            count=int(fields["count"]),
            evaluations=int(fields["evaluations"]),
            done=int(fields["done"]),
            attempts=int(fields["attempts"]),
            submitted_ms=float(fields["submitted_ms"]),
            started_ms=float(fields["started_ms"]) if "started_ms" in fields else None,
            finished_ms=float(fields["finished_ms"]) if "finished_ms" in fields else None,
            place=place,
            fields=fields,
        )

    @property
    def owner(self) -> str:
        """The name of the caller's key; "" without keys."""
        return self.fields.get("owner", "")

    @property
    def is_finished(self) -> bool:
        return self.finished_ms is not None

    @property
    def has_images(self) -> bool:
        """Whether there are images to fetch: all, or of a canceled job those that were finished."""
        return self.status == "succeeded" or (self.status == "canceled" and self.done > 0)

    @property
    def seeds(self) -> list[int]:
        """The seed of every image."""
        return self.request["seeds"]  # type: ignore[no-any-return]

    @property
    def parts_done(self) -> dict[int, list[int]]:
        """The classes of the images that were finished, none without classes, by the place of a part's first image."""
        return {int(name[7:]): json.loads(text) for name, text in self.fields.items() if name.startswith("labels:")}

    @property
    def labels(self) -> list[int] | None:
        """The class of every image, once all are known."""
        parts = self.parts_done
        labels = [label for start in sorted(parts) for label in parts[start]]
        return labels if len(labels) == self.count else None

    @property
    def checkpoint_sha256(self) -> str:
        """Of the checkpoint that made its images, or that it asked for while nothing is done."""
        return self.fields.get("checkpoint") or str(self.request["checkpoint_sha256"])

    @property
    def error(self) -> JobError | None:
        text = self.fields.get("error")
        return JobError.model_validate_json(text) if text else None

    @property
    def webhook(self) -> WebhookView | None:
        """Whom to tell of it, and how that went so far."""
        text = self.fields.get("webhook")
        if not text:
            return None
        calls = {name[8:]: json.loads(call) for name, call in self.fields.items() if name.startswith("webhook:")}
        return WebhookView.model_validate_json(json.dumps(json.loads(text) | {"calls": calls}))

    @property
    def previews(self) -> dict[int, Shown]:
        """What is to be seen of it, by the place of the first image of each part."""
        texts = {int(name[8:]): text.split(":") for name, text in self.fields.items() if name.startswith("preview:")}
        return {start: Shown(int(evaluation), float(sigma)) for start, (evaluation, sigma) in texts.items()}

    def progress(self) -> Progress:
        """Finished images, and what the batches under way have noted."""
        under_way = sum(int(value) for name, value in self.fields.items() if name.startswith("progress:"))
        total = self.count * self.evaluations
        return Progress(
            evaluations_done=min(total, self.done * self.evaluations + under_way),
            evaluations_total=total,
            images_done=self.done,
            images_total=self.count,
        )

    def latency(self) -> Latency | None:
        """The breakdown; None before the end, and for a job that never ran."""
        if self.finished_ms is None or self.started_ms is None:
            return None
        # What failed may never have been sampled.
        began, sampled = (float(self.fields.get(name, self.finished_ms)) for name in ("began_ms", "sampled_ms"))
        total = _seconds(self.submitted_ms, self.finished_ms)
        return Latency(
            queue_seconds=_seconds(self.submitted_ms, self.started_ms),
            batch_wait_seconds=_seconds(self.started_ms, began),
            sampling_seconds=_seconds(began, sampled),
            encoding_seconds=_seconds(sampled, self.finished_ms),
            total_seconds=total,
            evaluations=self.evaluations,
            batch_images=int(self.fields.get("batch_images", 0)),
            images_per_second=round(self.done / max(total, 0.001), 3),
        )

    def view(self, waits_for: str | None = None, eta: Eta | None = None) -> JobView:
        """The job as a client sees it, with what it lacks beside its turn, and when it should have ended."""
        here = f"/v1/jobs/{self.id}"
        links = {"self": here, "events": f"{here}/events", "cancel": f"{here}/cancel"}
        if self.has_images:
            links |= {"images": f"{here}/images/{{k}}.png", "npz": f"{here}/images.npz", "zip": f"{here}/images.zip"}
        if self.status == "succeeded":
            links["grid"] = f"{here}/grid.png"
            if self.request.get("trajectory"):
                links |= {"film": f"{here}/trajectory.gif", "trajectory": f"{here}/trajectory.png"}
        return JobView(
            id=self.id,
            kind=self.kind,
            owner=self.owner or None,
            status=self.status,
            request=self.request,
            created_at=moment(self.submitted_ms),
            started_at=None if self.started_ms is None else moment(self.started_ms),
            finished_at=None if self.finished_ms is None else moment(self.finished_ms),
            attempts=self.attempts,
            queue_position=self.place if self.status == "queued" else None,
            eta_seconds=eta,
            waits_for=waits_for,
            progress=self.progress(),
            latency=self.latency(),
            model=ModelUsed(
                dataset=self.request["dataset"],
                D=self.request["D"],
                checkpoint_sha256=self.checkpoint_sha256,
                precision=self.request["precision"],
                arithmetic=self.fields.get("arithmetic"),
            ),
            seeds=self.seeds,
            labels=self.labels,
            error=self.error,
            webhook=self.webhook,
            links=links,
        )


def _seconds(from_ms: float, to_ms: float) -> float:
    return round((to_ms - from_ms) / 1000, 6)


def moment(ms: float) -> datetime:
    """Milliseconds since 1970 as a time in UTC."""
    return datetime.fromtimestamp(ms / 1000, UTC)
