"""What a stream of events says of a job: whatever is new since the last thing that its client knows."""

import re
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from pydantic import BaseModel, Field

from service.job import Eta, Job, Progress, Status

EVENT_ID = re.compile(
    r"([0-9a-f]{8})\.(queued|running|succeeded|failed|canceled|expired)\.([0-9]{1,15})\.([0-9]{1,15})\.([0-9]{1,15})"
)
"""Of one job: the beginning of its id, then what is known of it."""

Kind = Literal["queued", "started", "progress", "preview", "finished"]
"""Of events. `progress` may go back, when a worker was lost and its images wait anew."""


class ProgressEvent(BaseModel):
    """The data of `progress`."""

    job: str
    status: Status
    queue_position: int | None
    progress: Progress
    eta_seconds: Eta | None


class PreviewEvent(BaseModel):
    """The data of `preview`."""

    job: str
    evaluation: int = Field(description="Of each image, at which it was taken for that; the least of all.")
    evaluations: int = Field(description="Of each image.")
    sigma: float = Field(description="The noise level then.")
    png: str = Field(description="The grid as PNG in base64, not enlarged; grey where nothing is known yet.")


class Seen(NamedTuple):
    """What a client knows of a job."""

    status: str = ""
    done: int = 0
    place: int = 0
    previews: int = 0

    @classmethod
    def of(cls, job: Job) -> "Seen":
        """What there is to know of a job now."""
        shown = sum(each.evaluation for each in job.previews.values())
        return cls(job.status, job.progress().evaluations_done, job.place if job.status == "queued" else 0, shown)

    @property
    def is_of_the_end(self) -> bool:
        """Whether there is no more to come."""
        return self.status not in {"", "queued", "running"}


def news(seen: Seen, job: Job) -> Iterator[tuple[Kind, Seen]]:
    """The events that tell of a job what a client does not know yet, each with what it knows then."""
    now = Seen.of(job)
    if seen.is_of_the_end and job.is_finished:
        return
    if not seen.status or seen.is_of_the_end:
        seen = Seen("queued", place=now.place)
        yield "queued", seen
    if job.started_ms is not None and job.status != "queued" and seen.status == "queued":
        seen = Seen("running")
        yield "started", seen
    if job.is_finished:
        yield "finished", now
        return
    if (now.done, now.place) != (seen.done, seen.place):
        seen = now._replace(previews=seen.previews)
        yield "progress", seen
    if now.previews and now.previews != seen.previews:
        yield "preview", now


class Known(dict[str, Seen]):
    """What a client knows of the jobs that it follows on one stream, by their ids."""

    @classmethod
    def parse(cls, job_ids: Sequence[str], event_id: str) -> "Known":
        """What the client knows that heard this event last; nothing of jobs that it does not tell of."""
        found = filter(None, map(EVENT_ID.fullmatch, event_id.split(",")))
        told = {each[1]: Seen(each[2], *map(int, each.groups()[2:])) for each in found}
        return cls({job_id: told.get(job_id[:8], Seen()) for job_id in job_ids})

    @property
    def is_of_the_end(self) -> bool:
        """Whether there is no more to come of any job."""
        return all(seen.is_of_the_end for seen in self.values())

    def __str__(self) -> str:
        return ",".join(".".join([job_id[:8], *map(str, seen)]) for job_id, seen in self.items() if seen.status)


def message(kind: Kind, data: str, known: Known) -> str:
    """One event as the wire has it; `data` is JSON on one line."""
    return f"id: {known}\nevent: {kind}\ndata: {data}\n\n"
