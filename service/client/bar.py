"""A progress bar of a job, in a terminal or a notebook."""

import math
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from service.client.following import Event
from service.job import JobView


class Bar:
    """Shows how far a job is, on standard error; it is called with every event."""

    def __init__(self) -> None:
        self._bar = Progress(
            TextColumn("{task.description:<9}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total} evaluations"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=Console(stderr=True),
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._bar.stop()

    def __call__(self, event: Event) -> None:
        """Show the job as it is now."""
        self.show(event.job)

    def show(self, job: JobView) -> None:
        """Show a job."""
        if self._task is None:
            self._task = self._bar.add_task(job.status, total=job.progress.evaluations_total, left="")
        done = job.progress.evaluations_done
        self._bar.update(self._task, description=job.status, completed=done, left=_left(job))


def _left(job: JobView) -> str:
    """How long it will still take, and what it waits for, in words."""
    if job.finished_at is not None:
        return ""
    if job.waits_for:
        return f"waits for {job.waits_for}"
    place = f"{job.queue_position} ahead" if job.queue_position else ""
    soonest = f"about {math.ceil(job.eta_seconds.p50)} s left" if job.eta_seconds else ""
    return ", ".join(filter(None, (place, soonest)))
