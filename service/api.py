"""The HTTP API: where a request enters and a result is fetched. Never imports torch."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal

from fastapi import APIRouter, FastAPI, Query, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from service import __version__
from service.catalogue import OfferedModel
from service.door import Door, with_result
from service.job import Job, JobView
from service.picture import film, path, png, read_array
from service.problems import (
    BodyTooLarge,
    Gone,
    Incomplete,
    InvalidRequest,
    NoResult,
    NoSuchModel,
    NotFinished,
    NotFound,
    NotJson,
    NotReady,
    NoWorker,
    QueueFull,
    QueueUnavailable,
    TooSlow,
)
from service.sample import TRAJECTORY, SampleRequest
from service.settings import Settings
from service.wire import (
    PREFER_WAIT,
    install,
    patience_of,
    preferred_wait,
    prefers_picture,
    problem_responses,
    read_json_body,
)

router = APIRouter()

PNG = {"content": {"image/png": {}}, "description": "The picture."}
GIF = {"content": {"image/gif": {}}, "description": "The film."}


def door_of(request: Request) -> Door:
    """What stands behind the routes; asked for plainly, which costs a tenth of a dependency."""
    door: Door = request.app.state.door
    return door


WaitSeconds = Annotated[float, Query(ge=0, le=60, description="Seconds to wait for the next change of status.")]


@router.post(
    "/v1/samples",
    status_code=202,
    tags=["jobs"],
    summary="Ask for images",
    response_model=JobView,
    responses={
        200: {
            "model": JobView,
            "content": PNG["content"],
            "description": "With `Prefer: wait=N`: the job has ended; with `Accept: image/png`, its grid.",
        },
        **problem_responses(
            BodyTooLarge, TooSlow, Incomplete, NotJson, InvalidRequest, NoResult, NoWorker, QueueFull, QueueUnavailable
        ),
    },
    openapi_extra={
        "parameters": [PREFER_WAIT],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": SampleRequest.model_json_schema()}},
        },
    },
)
async def submit(request: Request) -> Response:
    """Queues a job and answers it at once; follow it at its `Location`.

    With `Prefer: wait=N` the answer is held until the job ends, for N seconds at most.
    """
    door, wait = door_of(request), preferred_wait(request)
    body = await read_json_body(request, door.settings.max_body_bytes)
    with patience_of(request, wait or 0, is_for_end=True) as patience:
        job = await door.submit(body, patience)
    if job.is_finished and prefers_picture(request):
        response = await _grid(door, with_result(job))
    else:
        response = _job_response(job, 200 if job.is_finished else 202)
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    if wait is not None:
        response.headers["Preference-Applied"] = f"wait={wait}"
    return response


@router.get(
    "/v1/jobs/{job_id}",
    tags=["jobs"],
    summary="Follow a job",
    response_model=JobView,
    responses=problem_responses(NotFound, InvalidRequest, QueueUnavailable),
)
async def job(job_id: str, request: Request, wait: WaitSeconds = 0) -> Response:
    """The job; with `wait`, at its next change of status or after so many seconds."""
    door = door_of(request)
    with patience_of(request, wait) as patience:
        found = await door.job(job_id, patience)
    return _job_response(found, waits_for=await door.lack(found))


def _job_response(job: Job, status: int = 200, waits_for: str | None = None) -> Response:
    """A job as JSON, by pydantic alone: FastAPI would check and copy it once more."""
    return Response(job.view(waits_for).model_dump_json(), status, media_type="application/json")


@router.get(
    "/v1/jobs/{job_id}/grid.png",
    tags=["results"],
    summary="All images of a job as one picture",
    response_class=Response,
    responses={200: PNG, **problem_responses(NotFound, NotFinished, NoResult, Gone, QueueUnavailable)},
)
async def grid(job_id: str, request: Request) -> Response:
    """The grid as PNG; its text chunks hold what it takes to make it again."""
    door = door_of(request)
    job = await door.finished(job_id)
    return _known(request, job, "grid") or await _grid(door, job)


async def _grid(door: Door, job: Job) -> Response:
    """The grid of a job. Raises Gone."""
    return await _picture(job, "grid", door.store.path(job.id, "grid.png").read_bytes)


@router.get(
    "/v1/jobs/{job_id}/images/{k}.png",
    tags=["results"],
    summary="One image of a job",
    response_class=Response,
    responses={200: PNG, **problem_responses(NotFound, NotFinished, NoResult, Gone, QueueUnavailable)},
)
async def image(job_id: str, k: str, request: Request) -> Response:
    """Image k, counted from 0, as PNG, enlarged as the job's `scale` says."""
    door = door_of(request)
    finished = await door.finished(job_id)
    if k not in map(str, range(finished.count)):
        raise NotFound(f"job {job_id} has the images 0 to {finished.count - 1}")
    path, scale = door.store.path(job_id, "images.npy"), finished.request["scale"]
    known = _known(request, finished, k)
    return known or await _picture(finished, k, lambda: png(read_array(path, is_mapped=True)[int(k)], scale))


@router.get(
    "/v1/jobs/{job_id}/trajectory.gif",
    tags=["results"],
    summary="How the images of a job came about, as a film",
    response_class=Response,
    responses={200: GIF, **problem_responses(NotFound, NotFinished, NoResult, Gone, QueueUnavailable)},
)
async def trajectory_film(job_id: str, request: Request) -> Response:
    """The grids of the denoised estimates of every step, then of the images; of jobs with `trajectory`."""
    return await _trajectory(request, job_id, "gif")


@router.get(
    "/v1/jobs/{job_id}/trajectory.png",
    tags=["results"],
    summary="How the images of a job came about, side by side",
    response_class=Response,
    responses={200: PNG, **problem_responses(NotFound, NotFinished, NoResult, Gone, QueueUnavailable)},
)
async def trajectory_picture(job_id: str, request: Request) -> Response:
    """A row for every image: the denoised estimates of every step, then itself; of jobs with `trajectory`."""
    return await _trajectory(request, job_id, "png")


async def _trajectory(request: Request, job_id: str, form: Literal["gif", "png"]) -> Response:
    door = door_of(request)
    finished = await door.finished(job_id)
    if not finished.request.get("trajectory"):
        raise NotFound(f'job {job_id} kept no trajectory; ask for one with "trajectory": true')

    def draw() -> bytes:
        files = (door.store.path(finished.id, name) for name in ("images.npy", TRAJECTORY))
        images, estimates = (read_array(file, is_mapped=True) for file in files)
        columns, scale = finished.request["columns"], finished.request["scale"]
        return film(images, estimates, columns, scale) if form == "gif" else png(path(images, estimates), scale)

    return _known(request, finished, form) or await _picture(finished, form, draw, f"image/{form}")


def _known(request: Request, job: Job, name: str) -> Response | None:
    """304 when the client has the picture."""
    headers = _result_headers(job, name)
    tags = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
    return Response(status_code=304, headers=headers) if tags & {headers["ETag"], "*"} else None


async def _picture(job: Job, name: str, content: Callable[[], bytes], media_type: str = "image/png") -> Response:
    """A picture of a job; `content` reads or draws it in a thread. Raises Gone."""
    try:
        picture = await asyncio.to_thread(content)
    except OSError as error:
        raise Gone(f"the result of job {job.id} is no longer in the store") from error
    return Response(picture, media_type=media_type, headers=_result_headers(job, name))


def _result_headers(job: Job, name: str) -> dict[str, str]:
    """Headers of a picture: a result never changes, and tells where its time went."""
    latency = job.latency()
    stages = [] if latency is None else ["queue", "batch_wait", "sampling", "encoding", "total"]
    timing = ", ".join(f"{stage};dur={1000 * getattr(latency, f'{stage}_seconds'):.1f}" for stage in stages)
    return {"ETag": f'"{job.id}-{name}"', "Cache-Control": "private, max-age=3600", "Server-Timing": timing}


@router.get("/v1/models", tags=["models"], summary="What can be sampled", responses=problem_responses(QueueUnavailable))
async def models(request: Request) -> list[OfferedModel]:
    """Every model that a live worker holds."""
    return list((await door_of(request).catalogue(is_fresh=True)).models.values())


@router.get(
    "/v1/models/{dataset}/{D}",
    tags=["models"],
    summary="One model",
    responses=problem_responses(NoSuchModel, QueueUnavailable),
)
async def model(dataset: str, D: str, request: Request) -> OfferedModel:
    """The model of a dataset and D."""
    return await door_of(request).model(dataset, D)


@router.post(
    "/v1/models/{dataset}/{D}/load",
    status_code=202,
    tags=["models"],
    summary="Have a model loaded",
    responses=problem_responses(NoSuchModel, NoWorker, QueueUnavailable),
)
async def load_model(dataset: str, D: str, request: Request) -> OfferedModel:
    """Tells every worker that serves it to load it now; its `loaded_on` will show which have."""
    return await door_of(request).order(dataset, D, is_to_load=True)


@router.post(
    "/v1/models/{dataset}/{D}/unload",
    status_code=202,
    tags=["models"],
    summary="Free the memory of a model",
    responses=problem_responses(NoSuchModel, NoWorker, QueueUnavailable),
)
async def unload_model(dataset: str, D: str, request: Request) -> OfferedModel:
    """Tells every worker to unload it unless it is at work with it; it stays on offer, and loads when asked for."""
    return await door_of(request).order(dataset, D, is_to_load=False)


@router.get("/livez", tags=["health"], summary="Whether the process answers")
async def livez() -> dict[str, str]:
    """Answers as long as the process does."""
    return {"status": "alive"}


@router.get(
    "/readyz", tags=["health"], summary="Whether a request would be served", responses=problem_responses(NotReady)
)
async def readyz(request: Request) -> dict[str, Any]:
    """Redis answers, and a live worker holds a model."""
    catalogue = await door_of(request).check_ready()
    return {"status": "ready", "models": len(catalogue.models), "workers": len(catalogue.workers)}


@router.get(
    "/metrics",
    tags=["health"],
    summary="Prometheus metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}}, **problem_responses(QueueUnavailable)},
)
async def metrics(request: Request) -> Response:
    """The queue as it is now, this process, and the local workers of `pfgmpp serve`."""
    return Response(await door_of(request).exposition(), media_type=CONTENT_TYPE_LATEST)


def create_app(settings: Settings) -> FastAPI:
    """The application; its lifespan holds the connections to Redis."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        door = app.state.door = Door(settings)
        reaping = asyncio.create_task(door.reap())
        yield
        reaping.cancel()
        await door.queue.close()

    app = FastAPI(
        title="PFGM++ Serve",
        version=__version__,
        summary="Samples PFGM++ image models: one family with PFGM at D = 1 and diffusion at D = infinity.",
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        # Not by `include_router`, whose routes are matched twice and through one more layer: 35 us a request.
        routes=router.routes,
        lifespan=lifespan,
    )
    install(app)
    return app
