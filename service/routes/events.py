"""The events of jobs, as they happen."""

import asyncio
import base64
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from redis.exceptions import RedisError

from service import results
from service.connection import most_connections
from service.door import Door
from service.events import Patience
from service.job import Job
from service.logs import get_logger
from service.openapi import EVENTS, problem_responses
from service.problems import Gone, InvalidRequest, Lost, NotFound, QueueUnavailable, TooManyStreams
from service.routes import caller_of, door_of, is_known, new_strict_router
from service.stream import Kind, Known, PreviewEvent, ProgressEvent, message, news

HEARTBEAT_SECONDS = 15.0
"""After so long without an event a line says that there is still someone: proxies end what is silent."""

MOST_JOBS = 32
"""On one stream."""

HEARTBEAT = ": heartbeat\n\n"
STREAMS_RETRY_SECONDS = 5.0

RECONNECT = "retry: 1000\n\n"
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}

log = get_logger()

router = new_strict_router()


class EventStream(StreamingResponse):
    """Server-sent events."""

    media_type = "text/event-stream"


STREAMS: dict[int | str, dict[str, Any]] = {
    200: {"description": "Server-sent events.", "content": EVENTS},
    204: {"description": "The last event was the end: there is no more to come."},
}

LastEventId = Annotated[str, Header(max_length=4096, description="The id of the last event that was heard.")]


@router.get(
    "/v1/jobs/{job_id}/events",
    tags=["jobs"],
    summary="The events of a job as they happen",
    response_class=EventStream,
    responses={**STREAMS, **problem_responses(NotFound, Gone, Lost, InvalidRequest, TooManyStreams, QueueUnavailable)},
)
async def events(job_id: str, request: Request, last_event_id: LastEventId = "") -> Response:
    """`queued`, `started`, `progress`, `preview` and `finished`, as [server-sent
    events](https://html.spec.whatwg.org/multipage/server-sent-events.html); it ends after the last.

    The data of `queued`, `started` and `finished` are the job, those of `progress` how far it is and when it should
    end, those of `preview`, for a job with `previews`, the grid of what its images are taken for. Whoever connects
    again with `Last-Event-ID` is told what it missed: changes of state, and of progress and previews the latest.
    """
    return await _answer(request, [job_id], last_event_id)


@router.get(
    "/v1/events",
    tags=["jobs"],
    summary="The events of several jobs",
    response_class=EventStream,
    responses={**STREAMS, **problem_responses(NotFound, Gone, Lost, InvalidRequest, TooManyStreams, QueueUnavailable)},
)
async def events_of_several(
    request: Request,
    job: Annotated[list[str], Query(min_length=1, max_length=MOST_JOBS, description="Their ids, again and again.")],
    last_event_id: LastEventId = "",
) -> Response:
    """The same of up to 32 jobs on one connection, of which browsers have few; it ends with the last of them."""
    return await _answer(request, list(dict.fromkeys(job)), last_event_id)


async def _answer(request: Request, job_ids: list[str], last_event_id: str) -> Response:
    door, known = door_of(request), Known.parse(job_ids, last_event_id)
    jobs = [await door.job(job_id, caller_of(request)) for job_id in job_ids]
    if known.is_of_the_end and all(job.is_finished for job in jobs):
        return Response(status_code=204)
    check_room(door)
    # Of a server that will end, or of a head, only what there is to say now.
    is_brief = door.is_draining or request.scope.get("is_head", False)
    return EventStream(_stream(request, known, 0 if is_brief else float("inf")), headers=HEADERS)


def check_room(door: Door) -> None:
    """Raise TooManyStreams when streams have half of the connections that this process can hold."""
    if door.events.watchers >= (most := most_connections() // 2):
        detail = f"{most:,} clients follow events here already; ask for the job with wait instead"
        raise TooManyStreams(detail, retry_after_seconds=STREAMS_RETRY_SECONDS)


async def _stream(request: Request, known: Known, seconds: float) -> AsyncGenerator[str]:
    """The events that are new to a client, as they come.

    Until its jobs have ended, its key is none any longer, Redis is lost, or this process is about to end.
    """
    door, patience, loop = door_of(request), Patience(seconds, "news"), asyncio.get_running_loop()
    yield RECONNECT
    spoke = loop.time()
    try:
        async with aclosing(door.events.watch(list(known), patience)) as news_of:
            async for jobs in news_of:
                if not is_known(request):
                    return
                async for text in _told(door, jobs, known):
                    yield text
                    spoke = loop.time()
                if loop.time() - spoke > HEARTBEAT_SECONDS:
                    yield HEARTBEAT
                    spoke = loop.time()
    except RedisError as error:  # who connects again is told the rest
        log.warning("queue unreachable", reason=str(error))


async def _told(door: Door, jobs: list[Job], known: Known) -> AsyncGenerator[str]:
    """The events that tell of jobs what a client does not know, which it does then."""
    for job in jobs:
        for kind, seen in news(known[job.id], job):
            known[job.id] = seen
            if data := await _data(door, kind, job):
                yield message(kind, data, known)


async def _data(door: Door, kind: Kind, job: Job) -> str | None:
    """What an event says; None for a preview that cannot be had."""
    if kind == "preview":
        return await _preview(door, job)
    eta = await door.eta(job)
    if kind != "progress":
        return job.view(await door.lack(job), eta).model_dump_json()
    place = job.place if job.status == "queued" else None
    event = ProgressEvent(job=job.id, status=job.status, queue_position=place, progress=job.progress(), eta_seconds=eta)
    return event.model_dump_json()


async def _preview(door: Door, job: Job) -> str | None:
    try:
        png = await asyncio.to_thread(results.preview, door.store, job)
    except OSError as error:
        log.warning("preview not read", job=job.id, reason=str(error))
        return None
    least = min(job.previews.values())
    return PreviewEvent(
        job=job.id,
        evaluation=least.evaluation,
        evaluations=job.evaluations,
        sigma=least.sigma,
        png=base64.b64encode(png).decode(),
    ).model_dump_json()
