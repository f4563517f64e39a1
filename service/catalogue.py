"""What can be sampled: the models that live workers announce."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.messages import Ahead, ModelQueue


class ModelGone(Exception):
    """A model that was on offer can no longer be had; the message says why."""


class ModelFacts(BaseModel):
    """A model as a worker announces it; the fields of `/v1/models`."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(description="Label of the model in metrics.", examples=["digits-d2048"])
    dataset: str
    D: int | float | Literal["inf"]
    resolution: int
    channels: int
    classes: tuple[str, ...]
    default_steps: int
    max_steps: int
    sigma_min: float = Field(0.002, description="The lowest noise level at which it can be asked, and the highest.")
    sigma_max: float = 80.0
    solvers: tuple[str, ...]
    is_guidable: bool = Field(
        False, description="Whether it can guide itself: it was trained to be asked without a class too."
    )
    coordinates: int = Field(0, description="2 for models trained on patches, of which any window can be sampled.")
    window_unit: int = Field(1, description="Width and height of a window must be multiples of it.")
    checkpoint_sha256: str
    parameters: int
    license: str
    training: dict[str, Any]

    def can_guide(self, model: "ModelFacts") -> bool:
        """Whether its estimates can guide another model: the same kernel, pixels, noise levels and classes, or none."""
        same = all(getattr(self, name) == getattr(model, name) for name in ("D", "resolution", "channels"))
        reaches = self.sigma_min <= model.sigma_min and model.sigma_max <= self.sigma_max
        return self.name != model.name and same and reaches and self.classes in ((), model.classes)


class OfferedModel(ModelFacts):
    """A model with the workers that hold it."""

    loaded_on: tuple[str, ...]
    guides: dict[str, str] = Field(
        {}, description="The models that can guide it, with the SHA-256 of their checkpoints."
    )


class Pace(BaseModel):
    """How fast a worker computes images of a model."""

    model_config = ConfigDict(frozen=True)

    evaluations_per_second: float = Field(gt=0, description="Images x network evaluations in its widest calls.")
    evaluation_seconds: float = Field(description="Of a network call for one image.")
    images: int = Field(1, description="In its widest calls.")


class WorkerState(BaseModel):
    """What a worker says of itself with every heartbeat."""

    model_config = ConfigDict(frozen=True)

    name: str
    state: Literal["idle", "busy", "draining", "lost"]
    """draining: it claims nothing more, and will end; lost: it has died, and should be back soon."""
    device: str
    version: str = Field("", description="Of its program; empty if it does not say.")
    evaluations_per_second: float = Field(
        0.0, description="Images x network evaluations in its widest calls, lately; 0 if not known yet."
    )
    paces: dict[str, Pace] = Field({}, description="Lately, or as first measured, by model.")
    models: tuple[ModelFacts, ...] = Field(description="What it can serve.")
    loaded: tuple[str, ...] | None = Field(None, description="Those of them in its memory; all if it does not say.")

    def holds(self, model: ModelFacts) -> bool:
        """Whether a model is in its memory."""
        return self.state != "lost" and (self.loaded is None or model.name in self.loaded)


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


class Catalogue:
    """The models on offer at one moment, by dataset and D."""

    def __init__(self, workers: Iterable[WorkerState], remembered: Iterable[ModelFacts] = ()):
        self.workers = tuple(workers)
        self.remembered = tuple(remembered)
        self.models = self._merge()

    def _merge(self) -> dict[str, OfferedModel]:
        holders: dict[str, list[str]] = {}
        facts: dict[str, ModelFacts] = {}
        for worker in self.workers:
            for model in worker.models:
                facts.setdefault(model.name, model)
                if worker.holds(model) and model.checkpoint_sha256 == facts[model.name].checkpoint_sha256:
                    holders.setdefault(model.name, []).append(worker.name)
        in_order = sorted(facts.values(), key=lambda model: (model.dataset, float(model.D)))
        return {
            model.name: OfferedModel(
                **model.model_dump(),
                loaded_on=tuple(holders.get(model.name, ())),
                guides={each.name: each.checkpoint_sha256 for each in in_order if self._can_guide(each, model)},
            )
            for model in in_order
        }

    def _can_guide(self, guide: ModelFacts, model: ModelFacts) -> bool:
        """Whether one can guide the other wherever that may be sampled."""
        if not guide.can_guide(model):
            return False
        offers = [{each.name for each in worker.models} for worker in self.workers]
        return all(guide.name in names for names in offers if model.name in names)

    @property
    def can_serve(self) -> bool:
        """Whether some worker has a model to serve, and goes on."""
        return any(worker.models and worker.state not in {"draining", "lost"} for worker in self.workers)

    @property
    def evaluations_per_second(self) -> float:
        """What all workers together do per second when they have much to do; 0 if not known yet."""
        return sum(worker.evaluations_per_second for worker in self.workers)

    def paces(self, model: str) -> list[Pace]:
        """How fast the workers compute that have said so."""
        return [worker.paces[model] for worker in self.workers if model in worker.paces]

    def seconds_to_run(self, model: str, count: int, evaluations: float) -> float | None:
        """What `count` images of so many evaluations take on a worker with nothing else to do; None if not known."""
        times = (
            evaluations * max(pace.evaluation_seconds, count / pace.evaluations_per_second)
            for pace in self.paces(model)
        )
        return max(times, default=None)

    def seconds_until(self, model: str, evaluations: float, ahead: Ahead) -> float | None:
        """What there is until the end of a job each of whose images has so many evaluations left; None if not known.

        That is what comes before its end, or its own network calls if they take longer: first in turn as it may be,
        what else there is of the model fills them up, and full ones are slow.
        """
        paces, before = self.paces(model), self.seconds_for(ahead.before)
        if not paces or before is None:
            return None
        there = ahead.there.get(model, 0) / len(paces)
        calls = (
            max(
                evaluations * pace.evaluation_seconds,
                min(there, evaluations * pace.images) / pace.evaluations_per_second,
            )
            for pace in paces
        )
        return max(before, *calls)

    def seconds_for(self, evaluations: Mapping[str, int]) -> float | None:
        """What all workers together take for evaluations by model; None if that is not known of one of them."""
        seconds = 0.0
        for model, number in evaluations.items():
            rate = sum(pace.evaluations_per_second for pace in self.paces(model))
            if number and not rate:
                return None
            seconds += number / rate if number else 0.0
        return seconds

    def find(self, dataset: str, D: float | str) -> OfferedModel | None:
        """The model of a dataset and D, if a live worker serves it."""
        return next((m for m in self.models.values() if m.dataset == dataset and float(m.D) == float(D)), None)

    def remembers(self, dataset: str, D: float | str) -> bool:
        """Whether some worker has ever offered that model."""
        return any(m.dataset == dataset and float(m.D) == float(D) for m in self.remembered)

    def describe(self) -> str:
        """What exists, in words: `digits with D = 1, 128, 2048, inf`."""
        dimensions: dict[str, list[str]] = {}
        for model in self.models.values():
            dimensions.setdefault(model.dataset, []).append(str(model.D))
        return "; ".join(f"{dataset} with D = {', '.join(ds)}" for dataset, ds in dimensions.items()) or "no models"
