"""The events of a job, as they happen."""

import asyncio
import base64
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated

from fastapi import Header, Request, Response
from fastapi.responses import StreamingResponse

from service import results
from service.door import Door
from service.events import Patience
from service.job import Job
from service.logs import get_logger
from service.openapi import problem_responses
from service.problems import Gone, Lost, NotFound, QueueUnavailable
from service.routes import caller_of, door_of, new_router
from service.stream import Kind, PreviewEvent, ProgressEvent, Seen, message, news

HEARTBEAT_SECONDS = 15.0
"""After so long without an event a line says that there is still someone: proxies end what is silent."""

RECONNECT = "retry: 1000\n\n"
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}

log = get_logger()

router = new_router()


class EventStream(StreamingResponse):
    """Server-sent events."""

    media_type = "text/event-stream"


@router.get(
    "/v1/jobs/{job_id}/events",
    tags=["jobs"],
    summary="The events of a job as they happen",
    response_class=EventStream,
    responses={
        200: {"description": "Server-sent events."},
        204: {"description": "The last event was `finished`: there is no more to come."},
        **problem_responses(NotFound, Gone, Lost, QueueUnavailable),
    },
)
async def events(job_id: str, request: Request, last_event_id: Annotated[str, Header(max_length=128)] = "") -> Response:
    """`queued`, `started`, `progress`, `preview` and `finished`, as [server-sent
    events](https://html.spec.whatwg.org/multipage/server-sent-events.html); it ends after the last.

    The data of `queued`, `started` and `finished` are the job, those of `progress` how far it is and when it should
    end, those of `preview`, for a job with `previews`, the grid of what its images are taken for. Whoever connects
    again with `Last-Event-ID` is told what it missed: changes of state, and of progress and previews the latest.
    """
    door, known = door_of(request), Seen.parse(last_event_id)
    await door.job(job_id, caller_of(request))
    if known.is_of_the_end:
        return Response(status_code=204)
    is_head = request.scope.get("is_head", False)
    return EventStream(_stream(door, job_id, known, 0 if is_head else float("inf")), headers=HEADERS)


async def _stream(door: Door, job_id: str, known: Seen, seconds: float) -> AsyncGenerator[str]:
    """The events that are new to a client, as they come, until the job has ended or this process is about to."""
    patience, loop = Patience(seconds, "news"), asyncio.get_running_loop()
    yield RECONNECT
    spoke = loop.time()
    async with aclosing(door.events.watch(job_id, patience)) as jobs:
        async for job in jobs:
            for kind, known in news(known, job):  # noqa: B020, PLR1704
                if data := await _data(door, kind, job):
                    yield message(kind, data, known)
                    spoke = loop.time()
            if job.is_finished:
                return
            if loop.time() - spoke > HEARTBEAT_SECONDS:
                yield ": heartbeat\n\n"
                spoke = loop.time()


async def _data(door: Door, kind: Kind, job: Job) -> str | None:
    """What an event says; None for a preview that cannot be had."""
    if kind == "preview":
        return await _preview(door, job)
    eta = await door.eta(job)
    if kind != "progress":
        return job.view(await door.lack(job), eta).model_dump_json()
    place = job.place if job.status == "queued" else None
    event = ProgressEvent(status=job.status, queue_position=place, progress=job.progress(), eta_seconds=eta)
    return event.model_dump_json()


async def _preview(door: Door, job: Job) -> str | None:
    try:
        png = await asyncio.to_thread(results.preview, door.store, job)
    except OSError as error:
        log.warning("preview not read", job=job.id, reason=str(error))
        return None
    least = min(job.previews.values())
    return PreviewEvent(
        evaluation=least.evaluation,
        evaluations=job.evaluations,
        sigma=least.sigma,
        png=base64.b64encode(png).decode(),
    ).model_dump_json()
