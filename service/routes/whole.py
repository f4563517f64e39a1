"""What the routes share that answer with the images themselves, as the protocols of others have it."""

import json
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Any

from anyio import CancelScope
from fastapi import Request

from service import results
from service.events import Patience
from service.job import Job
from service.problems import (
    ASKING,
    QUEUING,
    FieldError,
    InvalidRequest,
    NoSuchModel,
    NotInTime,
    refused,
)
from service.routes import caller_of, door_of
from service.wire import idempotency_key, patience_of

MOST_SECONDS = 600
"""For which an answer waits; who wants more submits a job and follows it."""

REFUSALS = (*ASKING, NoSuchModel, *QUEUING, NotInTime)
"""Why there may be no images."""


async def finished_job(request: Request, body: Mapping[str, Any], name_of: Callable[[str], str]) -> Job:
    """The job that a body of `POST /v1/samples` makes, when it has succeeded; `name_of` a field of it is the client's.

    Without an Idempotency-Key, by which it could be asked for again, a job that is not waited for to its end is
    canceled. Raises as `submitted_job` and `succeeded`.
    """
    with patience_of(request, MOST_SECONDS, "end") as patience:
        job = await submitted_job(request, body, name_of, patience)
    if not job.is_finished:
        await abandon(request, job)
    return succeeded(request, job)


async def watched(request: Request, job: Job) -> AsyncGenerator[Job]:
    """A job whenever there may be news of it, to its end; canceled as `finished_job` has it when nobody looks on."""
    patience = Patience(MOST_SECONDS, "news")
    try:
        async with aclosing(door_of(request).events.watch([job.id], patience)) as news:
            async for jobs in news:
                for job in jobs:  # noqa: PLR1704
                    yield job
    finally:
        if not job.is_finished:
            with CancelScope(shield=True):
                await abandon(request, job)


async def submitted_job(
    request: Request, body: Mapping[str, Any], name_of: Callable[[str], str], patience: Patience
) -> Job:
    """The job of a body, when the patience is answered or over. Raises as `Door.submit`, in the client's names."""
    key = idempotency_key(request)
    try:
        return await door_of(request).submit(json.dumps(body).encode(), patience, caller_of(request), key)
    except InvalidRequest as problem:
        fields = [FieldError(field=name_of(each.field), message=each.message) for each in problem.errors]
        raise refused(fields) from problem


async def abandon(request: Request, job: Job) -> None:
    """End a job that nobody could ask for again."""
    if not idempotency_key(request):
        await door_of(request).cancel(job.id, caller_of(request))


def succeeded(request: Request, job: Job) -> Job:
    """The job, which has all its images. Raises NoResult if it ended otherwise, else NotInTime or Draining."""
    if not job.is_finished:
        door_of(request).check_open()
        raise NotInTime(f"the images were not finished within {MOST_SECONDS} s; /v1/samples answers before they are")
    return results.with_result(job)
