"""What is fetched of a job that has ended."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypeVar

from fastapi import Request, Response

from service import metrics, results
from service.door import Door
from service.job import Job
from service.logs import get_logger
from service.openapi import KNOWN_TAG, RESULT_HEADERS, problem_responses
from service.picture import Damaged
from service.problems import (
    Gone,
    Lost,
    NoResult,
    NotFinished,
    NotFound,
    QueueUnavailable,
    StoreUnavailable,
)
from service.routes import caller_of, door_of, new_strict_router
from service.wire import has_current

log = get_logger()

T = TypeVar("T")
Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])

router = new_strict_router()


def _file(media_type: str, description: str) -> dict[str, Any]:
    """The answer of a route to a result."""
    return {"content": {media_type: {}}, "description": description, "headers": RESULT_HEADERS}


PNG = _file("image/png", "The picture.")
NPZ = _file("application/octet-stream", "A file for `numpy.load`.")
ZIP = _file("application/zip", "A ZIP of PNG files.")
GIF = _file("image/gif", "The film.")

NO_PICTURE = (NotFound, NotFinished, NoResult, Gone, Lost, QueueUnavailable, StoreUnavailable)
"""Why there may be no picture of a job."""

SAME = {304: {"description": "The client has it: `If-None-Match` named its `ETag`."}, **problem_responses(*NO_PICTURE)}
"""What routes to results answer without one."""

IF_NONE_MATCH = {"parameters": [KNOWN_TAG]}

STORE_RETRY_SECONDS = 5.0


def result_route(path: str, summary: str, answer: dict[str, Any]) -> Callable[[Endpoint], Endpoint]:
    """The decorator of a route by which something is fetched of a job; `answer` describes it for the document."""
    return router.get(
        path,
        tags=["results"],
        summary=summary,
        response_class=Response,
        responses={200: answer, **SAME},
        openapi_extra=IF_NONE_MATCH,
    )


@result_route("/v1/jobs/{job_id}/grid.png", "All images of a job as one picture", PNG)
async def grid(job_id: str, request: Request) -> Response:
    """The grid as PNG; its text chunks hold what it takes to make it again."""
    door = door_of(request)
    job = await door.with_result(job_id, caller_of(request))
    return _known(request, job, "grid") or await grid_of(door, job)


async def grid_of(door: Door, job: Job) -> Response:
    """The grid of a job. Raises Gone or StoreUnavailable."""
    return await _result(job, "grid", partial(door.store.read, job.id, "grid.png"))


@result_route("/v1/jobs/{job_id}/images/{k}.png", "One image of a job", PNG)
async def image(job_id: str, k: str, request: Request) -> Response:
    """Image k, counted from 0, as PNG, enlarged as the job's `scale` says; its text chunks tell its seed and class."""
    door = door_of(request)
    job = await door.with_images(job_id, caller_of(request))
    if k not in map(str, range(job.count)):
        raise NotFound(f"job {job_id} has the images 0 to {job.count - 1}")
    return _known(request, job, k) or await _result(job, k, partial(results.image, door.store, job, int(k)))


@result_route("/v1/jobs/{job_id}/images.npz", "All images of a job for numpy", NPZ)
async def images_npz(job_id: str, request: Request) -> Response:
    """Arrays `images` [n, H, W, C] of bytes, `index` [n] (their places in the job), `seeds` and, if any, `labels`."""
    door = door_of(request)
    job = await door.with_images(job_id, caller_of(request))
    content = partial(results.npz, door.store, job)
    return _known(request, job, "npz") or await _result(job, "npz", content, "application/octet-stream")


@result_route("/v1/jobs/{job_id}/images.zip", "All images of a job as files", ZIP)
async def images_zip(job_id: str, request: Request) -> Response:
    """A PNG for every image, named by its place in the job, and the job itself as `job.json`."""
    door = door_of(request)
    job = await door.with_images(job_id, caller_of(request))
    content = partial(results.archive, door.store, job)
    return _known(request, job, "zip") or await _result(job, "zip", content, "application/zip")


@result_route("/v1/jobs/{job_id}/trajectory.gif", "How the images of a job came about, as a film", GIF)
async def trajectory_film(job_id: str, request: Request) -> Response:
    """The grids of the denoised estimates of every step, then of the images; of jobs with `trajectory`."""
    return await _trajectory(request, job_id, "gif")


@result_route("/v1/jobs/{job_id}/trajectory.png", "How the images of a job came about, side by side", PNG)
async def trajectory_picture(job_id: str, request: Request) -> Response:
    """A row for every image: the denoised estimates of every step, then itself; of jobs with `trajectory`."""
    return await _trajectory(request, job_id, "png")


async def _trajectory(request: Request, job_id: str, form: Literal["gif", "png"]) -> Response:
    door = door_of(request)
    finished = await door.with_result(job_id, caller_of(request))
    if not finished.request.get("trajectory"):
        raise NotFound(f'job {job_id} kept no trajectory; ask for one with "trajectory": true')

    draw = results.trajectory_gif if form == "gif" else results.trajectory_png
    content = partial(draw, door.store, finished)
    return _known(request, finished, form) or await _result(finished, form, content, f"image/{form}")


def _known(request: Request, job: Job, name: str) -> Response | None:
    """304 when the client has the picture."""
    headers = _result_headers(job, name)
    return Response(status_code=304, headers=headers) if has_current(request, headers["ETag"]) else None


async def _result(job: Job, name: str, content: Callable[[], bytes], media_type: str = "image/png") -> Response:
    """A picture of a job, or all of them; `content` reads or makes it in a thread. Raises Gone or StoreUnavailable."""
    return Response(await fetched(job, content), media_type=media_type, headers=_result_headers(job, name))


async def fetched(job: Job, content: Callable[[], T]) -> T:
    """What `content`, in a thread, makes of the result of a job. Raises Gone or StoreUnavailable."""
    try:
        return await asyncio.to_thread(content)
    except (FileNotFoundError, Damaged) as error:
        raise Gone(f"the result of job {job.id} is no longer in the store") from error
    except OSError as error:
        metrics.store_errors.labels("read").inc()
        log.warning("result not read", job=job.id, reason=str(error))
        detail = f"the result of job {job.id} cannot be read at present: the store does not answer as it should"
        raise StoreUnavailable(detail, retry_after_seconds=STORE_RETRY_SECONDS) from error


def _result_headers(job: Job, name: str) -> dict[str, str]:
    """Headers of a picture: a result never changes, and tells where its time went."""
    latency = job.latency()
    stages = latency.stages() if latency else {}
    timing = ", ".join(f"{stage};dur={1000 * seconds:.1f}" for stage, seconds in stages.items())
    return {"ETag": f'"{job.id}-{name}"', "Cache-Control": "private, max-age=3600", "Server-Timing": timing}
