"""The HTTP API: where a request enters and a result is fetched. Never imports torch."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST

from service import __version__, results
from service.access import Caller, Keys
from service.catalogue import OfferedModel
from service.door import Door, Estimate
from service.job import CURSOR, Job, JobList, JobView, Message, Status
from service.logs import get_logger
from service.openapi import JOB_LINKS, SAMPLE_BODY, complete, problem_responses
from service.picture import Damaged, film, path, png
from service.problems import (
    BodyTooLarge,
    Draining,
    Forbidden,
    Gone,
    Incomplete,
    InvalidRequest,
    KeyConflict,
    Lost,
    NoResult,
    NoSuchModel,
    NotFinished,
    NotFound,
    NotJson,
    NotReady,
    NoWorker,
    OverQuota,
    ProblemDocument,
    QueueFull,
    QueueUnavailable,
    StoreUnavailable,
    TooMany,
    TooSlow,
    Unauthorized,
)
from service.redis_client import cancel as cancel_tasks
from service.sample import TRAJECTORY, SampleRequest
from service.settings import Settings
from service.store import open_store
from service.wire import (
    IDEMPOTENCY_KEY,
    PREFER_WAIT,
    idempotency_key,
    install,
    patience_of,
    preferred_wait,
    prefers_picture,
    read_json_body,
)

log = get_logger()


def _operation(route: APIRoute) -> str:
    """The name of a route for programs that are generated: that of its function."""
    return route.name


router = APIRouter(responses=problem_responses(Unauthorized), generate_unique_id_function=_operation)
health = APIRouter(generate_unique_id_function=_operation)

PNG = {"content": {"image/png": {}}, "description": "The picture."}
NPZ = {"content": {"application/octet-stream": {}}, "description": "A file for `numpy.load`."}
ZIP = {"content": {"application/zip": {}}, "description": "A ZIP of PNG files."}
GIF = {"content": {"image/gif": {}}, "description": "The film."}


def door_of(request: Request) -> Door:
    """What stands behind the routes; asked for plainly, which costs a tenth of a dependency."""
    door: Door = request.app.state.door
    return door


def caller_of(request: Request) -> Caller:
    """Who asks."""
    caller: Caller = request.state.caller
    return caller


def admit_admin(request: Request) -> None:
    """Raise Forbidden unless an administrator asks."""
    if not caller_of(request).is_admin:
        raise Forbidden("this is for keys of administrators")


REFUSALS = (BodyTooLarge, TooSlow, Incomplete, NotJson, InvalidRequest, NoWorker, QueueFull, QueueUnavailable, Draining)
"""What may be wrong with a request for images."""

NO_PICTURE = (NotFound, NotFinished, NoResult, Gone, Lost, QueueUnavailable, StoreUnavailable)
"""Why there may be no picture of a job."""

STORE_RETRY_SECONDS = 5.0

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
            "links": JOB_LINKS,
        },
        202: {"description": "It is queued.", "links": JOB_LINKS},
        **problem_responses(*REFUSALS, KeyConflict, NoResult, Gone, StoreUnavailable, TooMany, OverQuota),
    },
    openapi_extra={"parameters": [PREFER_WAIT, IDEMPOTENCY_KEY], "requestBody": SAMPLE_BODY},
)
async def submit(request: Request) -> Response:
    """Queues a job and answers it at once; follow it at its `Location`.

    With `Prefer: wait=N` the answer is held until the job ends, for N seconds at most.
    """
    door, wait, key = door_of(request), preferred_wait(request), idempotency_key(request)
    body = await read_json_body(request, door.settings.max_body_bytes)
    with patience_of(request, wait or 0, is_for_end=True) as patience:
        job = await door.submit(body, patience, caller_of(request), key)
    if job.is_finished and prefers_picture(request):
        response = await _grid(door, results.with_result(job))
    else:
        response = _job_response(job, 200 if job.is_finished else 202)
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    if wait is not None:
        response.headers["Preference-Applied"] = f"wait={wait}"
    return response


@router.post(
    "/v1/estimates",
    tags=["jobs"],
    summary="What a request would take",
    responses=problem_responses(*REFUSALS),
    openapi_extra={"requestBody": SAMPLE_BODY},
)
async def estimate(request: Request) -> Estimate:
    """What a body of `/v1/samples` would cost and when it would be done; nothing is queued."""
    door = door_of(request)
    return await door.estimate(await read_json_body(request, door.settings.max_body_bytes), caller_of(request))


@router.get(
    "/v1/jobs",
    tags=["jobs"],
    summary="List jobs",
    responses=problem_responses(Forbidden, InvalidRequest, QueueUnavailable),
)
async def jobs(
    request: Request,
    status: Annotated[Status | None, Query(description="Only those in this state.")] = None,
    dataset: Annotated[str, Query(max_length=64, description="Only those of this data set.")] = "",
    limit: Annotated[int, Query(ge=1, le=100, description="Most of them.")] = 20,
    cursor: Annotated[str, Query(pattern=CURSOR, description="`next` of the list before.")] = "",
    owner: Annotated[str | None, Query(max_length=64, description="Whose jobs, for administrators.")] = None,
) -> JobList:
    """The caller's jobs, the last submitted first, for as long as they are kept."""
    caller = caller_of(request)
    if owner not in {None, caller.owner} and not caller.is_admin:
        raise Forbidden("other callers' jobs are for keys of administrators")
    whose = caller.owner if owner is None else owner
    found, following = await door_of(request).queue.jobs(whose, status or "", dataset, limit, cursor)
    return JobList(jobs=[job.view() for job in found], next=following or None)


@router.get(
    "/v1/jobs/{job_id}",
    tags=["jobs"],
    summary="Follow a job",
    response_model=JobView,
    responses=problem_responses(NotFound, Gone, Lost, InvalidRequest, QueueUnavailable),
)
async def job(job_id: str, request: Request, wait: WaitSeconds = 0) -> Response:
    """The job; with `wait`, at its next change of status or after so many seconds."""
    door = door_of(request)
    with patience_of(request, wait) as patience:
        found = await door.job(job_id, caller_of(request), patience)
    return _job_response(found, waits_for=await door.lack(found))


@router.post(
    "/v1/jobs/{job_id}/cancel",
    status_code=202,
    tags=["jobs"],
    summary="Cancel a job",
    response_model=JobView,
    responses={
        200: {"model": JobView, "description": "It had already ended."},
        **problem_responses(NotFound, Gone, Lost, QueueUnavailable),
    },
)
async def cancel(job_id: str, request: Request) -> Response:
    """Ends a job: what is queued of it is dropped at once, what is computed of it within two evaluations.

    Its images that were finished before stay: `/images/{k}.png`, `.npz` and `.zip`.
    """
    job, is_now = await door_of(request).cancel(job_id, caller_of(request))
    return _job_response(job, 202 if is_now else 200)


@router.delete(
    "/v1/jobs/{job_id}",
    status_code=204,
    tags=["jobs"],
    summary="Erase a job",
    response_class=Response,
    responses=problem_responses(NotFound, Gone, Lost, QueueUnavailable),
)
async def delete(job_id: str, request: Request) -> Response:
    """Erases a job and its result; one that has not ended is canceled."""
    await door_of(request).delete(job_id, caller_of(request))
    return Response(status_code=204)


def _job_response(job: Job, status: int = 200, waits_for: str | None = None) -> Response:
    """A job as JSON, by pydantic alone: FastAPI would check and copy it once more."""
    return Response(job.view(waits_for).model_dump_json(), status, media_type="application/json")


@router.get(
    "/v1/jobs/{job_id}/grid.png",
    tags=["results"],
    summary="All images of a job as one picture",
    response_class=Response,
    responses={200: PNG, **problem_responses(*NO_PICTURE)},
)
async def grid(job_id: str, request: Request) -> Response:
    """The grid as PNG; its text chunks hold what it takes to make it again."""
    door = door_of(request)
    job = await door.finished(job_id, caller_of(request))
    return _known(request, job, "grid") or await _grid(door, job)


async def _grid(door: Door, job: Job) -> Response:
    """The grid of a job. Raises Gone or StoreUnavailable."""
    return await _result(job, "grid", partial(door.store.read, job.id, "grid.png"))


@router.get(
    "/v1/jobs/{job_id}/images/{k}.png",
    tags=["results"],
    summary="One image of a job",
    response_class=Response,
    responses={200: PNG, **problem_responses(*NO_PICTURE)},
)
async def image(job_id: str, k: str, request: Request) -> Response:
    """Image k, counted from 0, as PNG, enlarged as the job's `scale` says."""
    door = door_of(request)
    job = await door.with_images(job_id, caller_of(request))
    if k not in map(str, range(job.count)):
        raise NotFound(f"job {job_id} has the images 0 to {job.count - 1}")
    return _known(request, job, k) or await _result(job, k, partial(results.image, door.store, job, int(k)))


@router.get(
    "/v1/jobs/{job_id}/images.npz",
    tags=["results"],
    summary="All images of a job for numpy",
    response_class=Response,
    responses={200: NPZ, **problem_responses(*NO_PICTURE)},
)
async def images_npz(job_id: str, request: Request) -> Response:
    """Arrays `images` [n, H, W, C] of bytes, `index` [n] (their places in the job), `seeds` and, if any, `labels`."""
    door = door_of(request)
    job = await door.with_images(job_id, caller_of(request))
    content = partial(results.npz, door.store, job)
    return _known(request, job, "npz") or await _result(job, "npz", content, "application/octet-stream")


@router.get(
    "/v1/jobs/{job_id}/images.zip",
    tags=["results"],
    summary="All images of a job as files",
    response_class=Response,
    responses={200: ZIP, **problem_responses(*NO_PICTURE)},
)
async def images_zip(job_id: str, request: Request) -> Response:
    """A PNG for every image, named by its place in the job, and the job itself as `job.json`."""
    door = door_of(request)
    job = await door.with_images(job_id, caller_of(request))
    content = partial(results.archive, door.store, job)
    return _known(request, job, "zip") or await _result(job, "zip", content, "application/zip")


@router.get(
    "/v1/jobs/{job_id}/trajectory.gif",
    tags=["results"],
    summary="How the images of a job came about, as a film",
    response_class=Response,
    responses={200: GIF, **problem_responses(*NO_PICTURE)},
)
async def trajectory_film(job_id: str, request: Request) -> Response:
    """The grids of the denoised estimates of every step, then of the images; of jobs with `trajectory`."""
    return await _trajectory(request, job_id, "gif")


@router.get(
    "/v1/jobs/{job_id}/trajectory.png",
    tags=["results"],
    summary="How the images of a job came about, side by side",
    response_class=Response,
    responses={200: PNG, **problem_responses(*NO_PICTURE)},
)
async def trajectory_picture(job_id: str, request: Request) -> Response:
    """A row for every image: the denoised estimates of every step, then itself; of jobs with `trajectory`."""
    return await _trajectory(request, job_id, "png")


async def _trajectory(request: Request, job_id: str, form: Literal["gif", "png"]) -> Response:
    door = door_of(request)
    finished = await door.finished(job_id, caller_of(request))
    if not finished.request.get("trajectory"):
        raise NotFound(f'job {job_id} kept no trajectory; ask for one with "trajectory": true')

    def draw() -> bytes:
        images, estimates = (door.store.array(finished.id, name) for name in ("images.npy", TRAJECTORY))
        columns, scale = finished.request["columns"], finished.request["scale"]
        return film(images, estimates, columns, scale) if form == "gif" else png(path(images, estimates), scale)

    return _known(request, finished, form) or await _result(finished, form, draw, f"image/{form}")


def _known(request: Request, job: Job, name: str) -> Response | None:
    """304 when the client has the picture."""
    headers = _result_headers(job, name)
    tags = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
    return Response(status_code=304, headers=headers) if tags & {headers["ETag"], "*"} else None


async def _result(job: Job, name: str, content: Callable[[], bytes], media_type: str = "image/png") -> Response:
    """A picture of a job, or all of them; `content` reads or makes it in a thread. Raises Gone or StoreUnavailable."""
    try:
        picture = await asyncio.to_thread(content)
    except (FileNotFoundError, Damaged) as error:
        raise Gone(f"the result of job {job.id} is no longer in the store") from error
    except OSError as error:
        log.warning("result not read", job=job.id, reason=str(error))
        detail = f"the result of job {job.id} cannot be read at present: the store does not answer as it should"
        raise StoreUnavailable(detail, retry_after_seconds=STORE_RETRY_SECONDS) from error
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
    responses=problem_responses(Forbidden, NoSuchModel, NoWorker, QueueUnavailable),
    dependencies=[Depends(admit_admin)],
)
async def load_model(dataset: str, D: str, request: Request) -> OfferedModel:
    """Tells every worker that serves it to load it now; its `loaded_on` will show which have."""
    return await door_of(request).order(dataset, D, is_to_load=True)


@router.post(
    "/v1/models/{dataset}/{D}/unload",
    status_code=202,
    tags=["models"],
    summary="Free the memory of a model",
    responses=problem_responses(Forbidden, NoSuchModel, NoWorker, QueueUnavailable),
    dependencies=[Depends(admit_admin)],
)
async def unload_model(dataset: str, D: str, request: Request) -> OfferedModel:
    """Tells every worker to unload it unless it is at work with it; it stays on offer, and loads when asked for."""
    return await door_of(request).order(dataset, D, is_to_load=False)


@health.get("/livez", tags=["health"], summary="Whether the process answers")
async def livez() -> dict[str, str]:
    """Answers as long as the process does."""
    return {"status": "alive"}


@health.get(
    "/readyz",
    tags=["health"],
    summary="Whether a request would be served",
    responses=problem_responses(NotReady, Draining),
)
async def readyz(request: Request) -> dict[str, Any]:
    """Redis answers, a live worker holds a model, and whoever has a key is known."""
    keys: Keys | None = request.app.state.keys
    if keys and not keys.is_readable:
        raise NotReady("the file of keys cannot be read, so nobody is let in")
    catalogue = await door_of(request).check_ready()
    return {"status": "ready", "models": len(catalogue.models), "workers": len(catalogue.workers)}


@router.get(
    "/metrics",
    tags=["health"],
    summary="Prometheus metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}}, **problem_responses(Forbidden, QueueUnavailable)},
    dependencies=[Depends(admit_admin)],
)
async def metrics(request: Request) -> Response:
    """The queue as it is now, this process, and the local workers of `pfgmpp serve`."""
    return Response(await door_of(request).exposition(), media_type=CONTENT_TYPE_LATEST)


webhooks = APIRouter(generate_unique_id_function=_operation)


@webhooks.post("job", summary="An event of a job", status_code=204)
def on_event(message: Message) -> None:
    """Sent to the `webhook` of a request, signed as [Standard Webhooks](https://www.standardwebhooks.com) says.

    Any 2xx is an answer; other ones are followed by more tries with the same `webhook-id`.
    """


def _telling(door: Door) -> Iterator[Coroutine[Any, Any, None]]:
    """The act of calling webhooks, if there is a secret to sign with."""
    if secret := door.settings.webhook_secret:
        from service.webhooks import Webhooks  # here, for the client that it brings takes 40 ms

        yield Webhooks(door.queue, door.settings, secret).run()


def create_app(settings: Settings) -> FastAPI:
    """The application; its lifespan holds the connections to Redis. Raises ValueError for a store that cannot be."""
    store = open_store(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        door = app.state.door = Door(settings, store)
        tasks = [asyncio.create_task(act) for act in (door.reap(), *_telling(door))]
        yield
        await cancel_tasks(tasks, again_seconds=1)
        await door.queue.close()

    app = FastAPI(
        title="PFGM++ Serve",
        version=__version__,
        summary="Samples PFGM++ image models: one family with PFGM at D = 1 and diffusion at D = infinity.",
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        # Not by `include_router`, whose routes are matched twice and through one more layer: 35 us a request.
        routes=[*health.routes, *router.routes],
        redirect_slashes=False,
        webhooks=webhooks,
        lifespan=lifespan,
    )
    complete(app, SampleRequest, ProblemDocument)
    app.state.keys = Keys(settings.keys_file) if settings.keys_file else None
    install(app, app.state.keys)
    return app
