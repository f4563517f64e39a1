"""What workers and queue are at."""

from fastapi import Request

from service.catalogue import ServiceStatus, WorkerView
from service.openapi import problem_responses
from service.problems import QueueUnavailable
from service.routes import door_of, new_strict_router

router = new_strict_router()


@router.get("/v1/status", tags=["models"], summary="Workers and queue", responses=problem_responses(QueueUnavailable))
async def status(request: Request) -> ServiceStatus:
    """The workers that live, and what waits and runs of every model."""
    door = door_of(request)
    catalogue, census = await door.census()
    workers = [WorkerView.of(worker) for worker in catalogue.workers]
    return ServiceStatus(workers=workers, models=census.models, evaluations=census.evaluations)
