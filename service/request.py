"""A request for images: what may be asked, and what is decided of it at the door."""

import math
import secrets
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, WithJsonSchema

from models.sampling import Sampling, SamplingOptions
from service.catalogue import OfferedModel
from service.job import Webhook
from service.picture import grid_shape
from service.problems import FieldError, refused

MAX_SEED = 2**63 - 1

MOST_SCALE = 16

Precision = Literal["exact", "fast"]

DRAWN_SEED_LIMIT = 2**53
"""Seeds are drawn below it, where a JavaScript client still reads every digit."""


def _dimension(value: object) -> object:
    if value == "inf":
        return value
    try:
        if not isinstance(value, bool | str) and 0 < float(value) < math.inf:  # type: ignore[arg-type]
            return value
    except (TypeError, ValueError, OverflowError):
        pass
    raise ValueError('must be a number > 0, or "inf"')


def _label(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError("must be the index or the name of a class")
    return value


DimensionField = Annotated[
    Any,
    BeforeValidator(_dimension),
    WithJsonSchema({"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"const": "inf"}]}),
]
LabelField = Annotated[
    Any, BeforeValidator(_label), WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string"}]})
]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]


class SampleOptions(SamplingOptions):
    """What may be chosen of a job whichever images it is for, and whatever protocol it comes by."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    steps: int | None = Field(None, ge=2, description="Noise levels of the path; the model's default if left out.")
    precision: Precision | None = Field(
        None,
        description="exact: float32, the same bytes on the same kind of device. fast: as quick as the device allows, "
        "with a difference nobody can see. The service's default if left out or null.",
    )
    priority: int = Field(0, ge=0, le=9, description="Jobs of a higher one go first.")
    deadline_seconds: float | None = Field(
        None, gt=0, le=604_800, description="From submission; a job that has not begun by then expires."
    )
    webhook: Webhook | None = Field(None, description="Whom to tell of the job.")


class SampleRequest(SampleOptions):
    """The body of `POST /v1/samples`."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"dataset": "digits", "D": 2048, "count": 16, "label": 7, "scale": 8}]},
    )

    dataset: str = Field(max_length=64, description="As listed by /v1/models.")
    D: DimensionField = Field(description='Augmentation dimension, or "inf".')
    count: int = Field(1, ge=1, description="Images.")
    seed: Seed | None = Field(None, description="Image k has seed + k; drawn if left out.")
    seeds: list[Seed] | None = Field(None, description="One seed per image.")
    label: LabelField | None = Field(None, description="Class of all images; drawn from each seed if left out.")
    labels: list[LabelField] | None = Field(None, description="One class per image.")
    columns: int | None = Field(None, ge=1, description="Columns of the grid; about as many as rows if left out.")
    scale: int = Field(1, ge=1, le=MOST_SCALE, description="Enlargement of the PNGs, nearest neighbour.")
    previews: int = Field(
        0,
        ge=0,
        le=64,
        description="How often, evenly spread over its way, `events` show what the images are taken for.",
    )


class Resolved(Sampling):
    """A request with everything decided that can be decided at the door; kept with the job."""

    model_config = ConfigDict(frozen=True)

    dataset: str
    D: int | float | Literal["inf"]
    model: str
    checkpoint_sha256: str
    guide_checkpoint_sha256: str | None = None
    precision: Precision
    count: int
    seeds: list[int]
    labels: list[int | None] | None = Field(description="Classes asked for; null entries are drawn from the seed.")
    columns: int
    scale: int
    previews: int = 0
    priority: int = 0
    deadline_seconds: float | None = None
    webhook: Webhook | None = Field(None, exclude=True, description="Kept beside the request: no image depends on it.")


class _Checks:
    """Collects what is wrong with a request, so that a client learns all of it at once."""

    def __init__(self) -> None:
        self.errors: list[FieldError] = []

    def add(self, field: str, message: str) -> None:
        self.errors.append(FieldError(field=field, message=message))

    @property
    def found(self) -> set[str]:
        """The fields that are known to be wrong."""
        return {each.field for each in self.errors}

    def raise_any(self) -> None:
        if self.errors:
            raise refused(self.errors)


def resolve(
    request: SampleRequest, model: OfferedModel, precision: Precision, max_count: int, max_pixels: int
) -> Resolved:
    """The request made definite for one model; `precision` is that of requests that name none.

    Raises InvalidRequest naming every field that does not fit the model or the service's limits.
    """
    checks = _Checks()
    steps = model.default_steps if request.steps is None else request.steps
    if steps > model.max_steps:
        checks.add("steps", f"must be at most {model.max_steps} for this model")
    if request.solver not in model.solvers:
        checks.add("solver", f"must be one of: {', '.join(model.solvers)}")
    if request.count > max_count:
        checks.add("count", f"must be at most {max_count}")
    sampling = Sampling(steps=steps, **{name: getattr(request, name) for name in SamplingOptions.model_fields})
    if not checks.found & {"steps", "solver"}:
        _check_sampling(request, sampling, model, checks)
    # Lists of so many are not made before it is known to be allowed.
    countable = request.model_copy(update={"count": 1, "seeds": None, "labels": None})
    counted = countable if "count" in checks.found else request
    seeds, labels = _seeds(counted, checks), _labels(counted, model.classes, checks)
    columns = request.columns or math.isqrt(request.count - 1) + 1
    if "count" not in checks.found:
        _check_size(request, columns, steps, size_of(request, model), max_pixels, checks)
    checks.raise_any()
    ends = sampling.range(model.sigma_min, model.sigma_max)
    return Resolved(
        **sampling.model_dump() | ends._asdict(),
        dataset=model.dataset,
        D=model.D,
        model=model.name,
        checkpoint_sha256=model.checkpoint_sha256,
        guide_checkpoint_sha256=model.guides.get(request.guide or ""),
        precision=request.precision or ("exact" if request.bits else precision),
        count=request.count,
        seeds=seeds,
        labels=labels,
        columns=columns,
        scale=request.scale,
        previews=request.previews,
        priority=request.priority,
        deadline_seconds=request.deadline_seconds,
        webhook=request.webhook,
    )


def _check_sampling(request: SampleRequest, sampling: Sampling, model: OfferedModel, checks: _Checks) -> None:
    """Find what the model cannot do of how it is to be sampled."""
    faults = (
        sampling.faults(model.sigma_min, model.sigma_max),
        _guide_faults(sampling, model),
        _window_faults(sampling, model),
    )
    for field, reason in chain(*faults):
        checks.add(field, reason)
    if request.bits and request.precision == "fast":
        checks.add("precision", "must be exact for weights of few bits, so that nothing else differs")


def _check_size(
    request: SampleRequest, columns: int, steps: int, size: tuple[int, int], max_pixels: int, checks: _Checks
) -> None:
    """Find pictures that would be too large, of images of that height and width."""
    if columns > request.count:
        checks.add("columns", f"must be at most count, {request.count}")
    height, width = grid_shape(request.count, min(columns, request.count), size)
    if height * width * request.scale**2 > max_pixels:
        checks.add("scale", f"the grid would have more than {max_pixels:,} pixels; use a smaller scale or count")
    if request.trajectory:
        height, width = grid_shape(request.count * (steps + 1), steps + 1, size)
        if height * width * request.scale**2 > max_pixels:
            checks.add("trajectory", f"would have more than {max_pixels:,} pixels; use fewer steps or a smaller scale")


def size_of(request: SamplingOptions, model: OfferedModel) -> tuple[int, int]:
    """Height and width of the images, before they are enlarged."""
    window = request.window
    return (window.height, window.width) if window else (model.resolution, model.resolution)


def _guide_faults(sampling: Sampling, model: OfferedModel) -> Iterator[tuple[str, str]]:
    """Why a model cannot be guided so."""
    if not sampling.is_guided:
        return
    if sampling.guide:
        if sampling.guide not in model.guides:
            fitting = f"one of: {', '.join(model.guides)}" if model.guides else "one of those it has, and it has none"
            yield "guide", f"must be {fitting} (served beside it, of the same D, pixels, noise levels and classes)"
    elif not model.is_guidable:
        why = "was not trained to be asked without a class" if model.classes else "has no classes"
        yield "guidance", f"needs a guide, for this model {why}"


def _window_faults(sampling: Sampling, model: OfferedModel) -> Iterator[tuple[str, str]]:
    """Why a model has no such window."""
    if sampling.window is None:
        return
    if not model.coordinates:
        yield "window", "is for models that were trained on patches, and this one was not"
        return
    yield from sampling.window.faults(model.resolution, model.window_unit)
    if sampling.guide:
        yield "window", "cannot be combined with a guide"


def _seeds(request: SampleRequest, checks: _Checks) -> list[int]:
    if request.seeds is not None:
        if request.seed is not None:
            checks.add("seeds", "give seed or seeds, not both")
        if len(request.seeds) != request.count:
            checks.add("seeds", f"has {len(request.seeds)} entries, but count is {request.count}")
        return request.seeds
    first = secrets.randbelow(DRAWN_SEED_LIMIT - request.count) if request.seed is None else request.seed
    if first + request.count - 1 > MAX_SEED:
        checks.add("seed", f"seed + count - 1 must be at most {MAX_SEED}")
    return list(range(first, first + request.count))


def _labels(request: SampleRequest, classes: Sequence[str], checks: _Checks) -> list[int | None] | None:
    if request.labels is not None and request.label is not None:
        checks.add("labels", "give label or labels, not both")
    if request.labels is not None and len(request.labels) != request.count:
        checks.add("labels", f"has {len(request.labels)} entries, but count is {request.count}")
    if not classes:
        if request.label is not None or request.labels is not None:
            checks.add("label" if request.labels is None else "labels", "this model has no classes")
        return None
    if request.labels is not None:
        return [_class_index(label, classes, f"labels.{k}", checks) for k, label in enumerate(request.labels)]
    chosen = None if request.label is None else _class_index(request.label, classes, "label", checks)
    return [chosen] * request.count


def _class_index(label: int | str, classes: Sequence[str], field: str, checks: _Checks) -> int:
    if isinstance(label, str) and label in classes:
        return classes.index(label)
    if isinstance(label, int) and 0 <= label < len(classes):
        return label
    shown = ", ".join(classes[:20]) + (", ..." if len(classes) > 20 else "")
    checks.add(field, f"must be a class index from 0 to {len(classes) - 1} or one of: {shown}")
    return 0
