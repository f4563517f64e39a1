"""What workers and queue are at."""

from fastapi import Request
from pydantic import BaseModel, Field

from service.catalogue import WorkerState
from service.messages import ModelQueue
from service.openapi import problem_responses
from service.problems import QueueUnavailable
from service.routes import door_of, new_router

router = new_router()


class WorkerView(BaseModel):
    """A worker as its last heartbeat shows it."""

    name: str
    state: str = Field(description="idle, busy, draining (it will end), or lost (it died, and should be back).")
    device: str
    evaluations_per_second: float = Field(description="Images x network evaluations, lately; 0 if not known yet.")
    models: list[str] = Field(description="What it can serve.")
    loaded: list[str] = Field(description="Those of them in its memory.")

    @classmethod
    def of(cls, worker: WorkerState) -> "WorkerView":
        """The view of a worker's own word."""
        return cls(
            name=worker.name,
            state=worker.state,
            device=worker.device,
            evaluations_per_second=round(worker.evaluations_per_second, 1),
            models=[model.name for model in worker.models],
            loaded=[model.name for model in worker.models if worker.holds(model)],
        )


class ServiceStatus(BaseModel):
    """Workers and queue at one moment."""

    workers: list[WorkerView]
    models: list[ModelQueue]
    evaluations: int = Field(description="Network evaluations accepted and not done.")


@router.get("/v1/status", tags=["models"], summary="Workers and queue", responses=problem_responses(QueueUnavailable))
async def status(request: Request) -> ServiceStatus:
    """The workers that live, and what waits and runs of every model."""
    door = door_of(request)
    catalogue, census = await door.census()
    workers = [WorkerView.of(worker) for worker in catalogue.workers]
    return ServiceStatus(workers=workers, models=census.models, evaluations=census.evaluations)
