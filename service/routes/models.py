"""What can be sampled, and what is held in memory."""

from fastapi import Depends, Request

from service.catalogue import OfferedModel
from service.openapi import problem_responses
from service.problems import (
    Forbidden,
    NoSuchModel,
    NoWorker,
    QueueUnavailable,
)
from service.routes import admit_admin, door_of, new_strict_router

router = new_strict_router()


@router.get("/v1/models", tags=["models"], summary="What can be sampled", responses=problem_responses(QueueUnavailable))
async def models(request: Request) -> list[OfferedModel]:
    """Every model that a live worker serves."""
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
