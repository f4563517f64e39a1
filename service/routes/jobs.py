"""Submit, follow, list, cancel and erase jobs."""

from typing import Annotated

from fastapi import Query, Request, Response

from service import results
from service.job import CURSOR, Estimate, Eta, Job, JobList, JobView, Status
from service.openapi import JOB_LINKS, LOCATION, SAMPLE_BODY, header, problem_responses
from service.problems import (
    ASKING,
    QUEUING,
    Forbidden,
    Gone,
    InvalidRequest,
    Lost,
    NotFound,
    QueueUnavailable,
    UnknownModel,
)
from service.routes import caller_of, door_of, new_strict_router
from service.routes.results import PNG, grid_of
from service.wire import (
    IDEMPOTENCY_KEY,
    PREFER_WAIT,
    idempotency_key,
    patience_of,
    preferred_wait,
    prefers_picture,
    read_json_body,
)

router = new_strict_router()

SUBMITTED = LOCATION | {"Preference-Applied": header("With `Prefer: wait=N`: that it was heeded.", "wait=30")}
"""Headers of the answer to a submission."""

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
            "headers": SUBMITTED,
        },
        202: {"description": "It is queued.", "links": JOB_LINKS, "headers": SUBMITTED},
        **problem_responses(*ASKING, UnknownModel, *QUEUING),
    },
    openapi_extra={"parameters": [PREFER_WAIT, IDEMPOTENCY_KEY], "requestBody": SAMPLE_BODY},
)
async def submit(request: Request) -> Response:
    """Queues a job and answers it at once; follow it at its `Location`.

    With `Prefer: wait=N` the answer is held until the job ends, for N seconds at most.
    """
    door, wait, key = door_of(request), preferred_wait(request), idempotency_key(request)
    body = await read_json_body(request, door.settings.max_body_bytes)
    with patience_of(request, wait or 0, "end") as patience:
        job = await door.submit(body, patience, caller_of(request), key)
    if job.is_finished and prefers_picture(request):
        response = await grid_of(door, results.with_result(job))
    else:
        response = _job_response(job, 200 if job.is_finished else 202, eta=await door.eta(job))
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    if wait is not None:
        response.headers["Preference-Applied"] = f"wait={wait}"
    return response


@router.post(
    "/v1/estimates",
    tags=["jobs"],
    summary="What a request would take",
    responses=problem_responses(*ASKING, UnknownModel),
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
    limit: Annotated[int, Query(ge=1, le=100, description="So many at most.")] = 20,
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
    return _job_response(found, waits_for=await door.lack(found), eta=await door.eta(found))


@router.post(
    "/v1/jobs/{job_id}/cancel",
    status_code=202,
    tags=["jobs"],
    summary="Cancel a job",
    response_description="It ends.",
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
    response_description="It is erased.",
    response_class=Response,
    responses=problem_responses(NotFound, Gone, Lost, QueueUnavailable),
)
async def delete(job_id: str, request: Request) -> Response:
    """Erases a job and its result; one that has not ended is canceled."""
    await door_of(request).delete(job_id, caller_of(request))
    return Response(status_code=204)


def _job_response(job: Job, status: int = 200, waits_for: str | None = None, eta: Eta | None = None) -> Response:
    """A job as JSON, by pydantic alone: FastAPI would check and copy it once more."""
    return Response(job.view(waits_for, eta).model_dump_json(), status, media_type="application/json")
