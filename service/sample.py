"""The kind of job called `sample`: images from a model, from the request's check to the grid's last pixel."""

import errno
import fnmatch
import json
import math
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, Any, Literal, NamedTuple, Protocol, get_args

import numpy as np
from pydantic import BeforeValidator, ConfigDict, Field, WithJsonSchema

from models.sampling import Sampling, SamplingOptions
from service import __version__
from service.catalogue import OfferedModel
from service.job import Part, Webhook
from service.picture import Pixels, array_bytes, grid, grid_shape, png
from service.policy import Flight
from service.problems import FieldError, refused
from service.store import ResultStore

MAX_SEED = 2**63 - 1

MOST_SCALE = 16

TRAJECTORY = "trajectory.npy"
"""The file of a job that holds its estimates [n, steps, H, W, C], if they were kept."""

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
    columns: int | None = Field(None, ge=1, description="Of the grid; about as many as rows if left out.")
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
    columns = request.columns or math.ceil(math.sqrt(request.count))
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


class Preview(Protocol):
    """What images were taken for at a noise level."""

    @property
    def sigma(self) -> float: ...

    def images(self) -> Pixels:
        """Them [n, H, W, C], for any thread."""


class Walk(Protocol):
    """Images on their way from the prior to their end, an evaluation at a time."""

    labels: list[int]
    """Their classes; empty for a model without."""

    @property
    def is_finished(self) -> bool: ...

    def images(self) -> Pixels:
        """The finished images [n, H, W, C]. Raises FloatingPointError when one is not finite."""

    def trajectory(self) -> Pixels | None:
        """The denoised estimates of every step [n, steps, H, W, C]; None if they were not asked for."""

    def preview(self) -> "Preview | None":
        """The denoised estimate that came last; None before the first."""


class Sampler(Protocol):
    """What the kind needs of the engine."""

    def walk(
        self, flights: Sequence[Flight], seeds: Sequence[int], labels: Sequence[int | None], sampling: Sampling
    ) -> Walk:
        """The walk of one image per seed, of a model and its guide; labels of None are drawn from the seed."""


@dataclass(frozen=True)
class Images:
    """What became of a part: images [n, H, W, C], and their classes (empty for a model without)."""

    images: Pixels
    labels: list[int]
    trajectory: Pixels | None = None
    """The denoised estimates of every step [n, steps, H, W, C], if they were asked for."""


class SampleKind:
    """How the queue and the worker deal with sample jobs: cost, lane, walk, result."""

    name = "sample"

    def evaluations(self, request: Resolved) -> int:
        """The cost of each image."""
        return request.evaluations

    def lane(self, request: Resolved) -> str:
        """Jobs of equal cost: model (dataset and D), steps, solver, guided or not, precision, size of the window."""
        solver = f"{request.solver}+guidance" if request.is_guided else request.solver
        size = f"|{request.window.width}x{request.window.height}" if request.window else ""
        return f"{request.model}|{self.name}|{request.steps}|{solver}|{request.precision}{size}"

    def parse(self, text: str) -> Resolved:
        """The request as it was kept with the job."""
        return Resolved.model_validate_json(text)

    def flights(self, request: Resolved) -> tuple[Flight, ...]:
        """What may share a network call: the checkpoint, its weights as they are or rounded, precision, the window."""
        bits, quantized = (request.bits, request.quantized) if request.bits else (0, "")
        window = request.window.numbers if request.window else None
        own = Flight(request.model, request.precision, bits, quantized, window, request.checkpoint_sha256)
        if not request.guide:
            return (own,)
        return (own, Flight(request.guide, request.precision, checkpoint=request.guide_checkpoint_sha256 or ""))

    def walk(self, engine: Sampler, request: Resolved, start: int, length: int) -> Walk:
        """The way of images start..start+length-1 of a request."""
        span = slice(start, start + length)
        labels = (request.labels or [None] * request.count)[span]
        return engine.walk(self.flights(request), request.seeds[span], labels, request)

    def output(self, walks: Sequence[Walk]) -> Images:
        """The images of finished walks, one after the other."""
        trajectories = [trajectory for walk in walks if (trajectory := walk.trajectory()) is not None]
        return Images(
            np.concatenate([walk.images() for walk in walks]),
            [label for walk in walks for label in walk.labels],
            np.concatenate(trajectories) if trajectories else None,
        )

    def labels(self, output: Images) -> list[int]:
        """The classes of the images of a part."""
        return output.labels

    def previews(self, request: Resolved) -> int:
        """How often it is to be shown how far the images are."""
        return request.previews

    def show(self, store: ResultStore, part: Part, estimates: Sequence[Preview]) -> None:
        """Let it be seen what the images of a part are taken for, in place of what was seen of them before."""
        images = np.concatenate([estimate.images() for estimate in estimates])
        store.write(part.job_id, _part_name(part.start, "preview"), array_bytes(images))

    def shown(self, store: ResultStore, job_id: str, start: int) -> Pixels:
        """What is to be seen of the part that begins there. Raises OSError."""
        return store.array(job_id, _part_name(start, "preview"))

    def keep(self, store: ResultStore, part: Part, output: Images) -> None:
        """Put aside the images of a part until the other parts of its job are done."""
        if output.trajectory is not None:
            store.write(part.job_id, _part_name(part.start, "trajectory"), array_bytes(output.trajectory))
        store.write(part.job_id, _part_name(part.start, "labels"), array_bytes(np.array(output.labels)))
        # Last, for a part is there when its images are.
        store.write(part.job_id, _part_name(part.start, "images"), array_bytes(output.images))

    def kept(self, store: ResultStore, job_id: str) -> dict[Part, Images]:
        """What was put aside of a job, by any worker."""
        outputs, names = {}, store.names(job_id)
        for name in fnmatch.filter(names, _part_name("*", "images")):
            start = int(name.split("-")[1])
            images, labels = store.array(job_id, name), store.array(job_id, _part_name(start, "labels"))
            trajectory = _part_name(start, "trajectory")
            outputs[Part(job_id, start, len(images))] = Images(
                images, labels.tolist(), store.array(job_id, trajectory) if trajectory in names else None
            )
        return outputs

    def write(
        self, store: ResultStore, job_id: str, request: Resolved, outputs: Mapping[Part, Images], checkpoint_sha256: str
    ) -> None:
        """Write the result of a whole job: its images and its grid.

        Parts that were computed twice hold the same images, so where they overlap either will do.
        Raises OSError when parts of it are no longer there.
        """
        covered = {k for part in outputs for k in range(part.start, part.start + part.length)}
        if len(covered) < request.count:
            raise OSError(errno.ENOENT, f"{request.count - len(covered)} of its images are no longer in the store")
        images = _whole({part.start: output.images for part, output in outputs.items()}, request.count)
        labels = [0] * (0 if request.labels is None else request.count)
        if labels:
            for part, output in outputs.items():
                labels[part.start : part.start + part.length] = output.labels
        if request.trajectory:
            parts = {part.start: output.trajectory for part, output in outputs.items() if output.trajectory is not None}
            store.write(job_id, TRAJECTORY, array_bytes(_whole(parts, request.count)))
        text = provenance(request, labels, checkpoint_sha256)
        store.write(job_id, "images.npy", array_bytes(images))
        store.write(job_id, "grid.png", png(grid(images, request.columns), request.scale, text))


def _whole(parts: Mapping[int, Pixels], count: int) -> Pixels:
    """Arrays of images by the place of their first, put together."""
    whole = np.zeros((count, *next(iter(parts.values())).shape[1:]), dtype=np.uint8)
    for start, part in parts.items():
        whole[start : start + len(part)] = part
    return whole


def _part_name(start: int | str, what: str) -> str:
    return f"part-{start}-{what}.npy"


Picture = Literal["grid", "image", "trajectory"]
"""What a PNG shows: all images of a job, one of them, or how all came about."""


def provenance(
    request: Resolved, labels: Sequence[int], checkpoint_sha256: str, picture: Picture = "grid"
) -> dict[str, str]:
    """The text chunks of a PNG: all that it takes to make the picture again, which `remake` reads."""
    without_effect = {"trajectory", *(name for name, _ in request.idle())}
    choices = request.model_dump(include=Sampling.model_fields.keys() - without_effect, exclude_none=True)
    return {
        "Software": f"PFGM++ Serve {__version__}",
        "picture": picture,
        "dataset": request.dataset,
        "D": str(request.D),
        **{name: value if isinstance(value, str) else json.dumps(value) for name, value in choices.items()},
        "precision": request.precision,
        "seeds": json.dumps(request.seeds),
        "labels": json.dumps(labels),
        **({"columns": str(request.columns)} if picture == "grid" else {}),
        "scale": str(request.scale),
        "checkpoint_sha256": checkpoint_sha256,
        **({"guide_checkpoint_sha256": request.guide_checkpoint_sha256} if request.guide_checkpoint_sha256 else {}),
    }


def of_one(text: Mapping[str, str], seed: int, label: int | None) -> dict[str, str]:
    """The text chunks of one image, from those of its job: its own seed and class."""
    own = {"picture": "image", "seeds": f"[{seed}]", "labels": "[]" if label is None else f"[{label}]"}
    return {name: value for name, value in {**text, **own}.items() if name != "columns"}


class Remake(NamedTuple):
    """What makes a picture again."""

    fields: dict[str, Any]
    """The body of `POST /v1/samples`."""
    picture: Picture
    checkpoints: dict[str, str]
    """The SHA-256 of the model's checkpoint, and of the guide's, by the names of their chunks."""


def remake(text: Mapping[str, str]) -> Remake:
    """What makes a picture again, from its text chunks. Raises ValueError saying what is wrong with them."""
    if missing := [name for name in ("dataset", "D", "seeds", "checkpoint_sha256") if name not in text]:
        raise ValueError(f"its text chunks lack {', '.join(missing)}")
    fields = {name: _value(name, text[name]) for name in SampleRequest.model_fields if name in text}
    if not isinstance(fields["seeds"], list):
        raise ValueError(f"its text chunk seeds is no list: {text['seeds'][:100]!r}")
    if not fields.get("labels"):  # of a model without classes
        fields.pop("labels", None)
    shown = text.get("picture", "grid")
    picture: Picture | None = next((each for each in get_args(Picture) if each == shown), None)
    if picture is None:
        raise ValueError(f"its text chunk picture is none of {', '.join(get_args(Picture))}: {shown[:100]!r}")
    fields |= {"count": len(fields["seeds"]), "trajectory": picture == "trajectory"}
    return Remake(fields, picture, {name: text[name] for name in text if name.endswith("checkpoint_sha256")})


def _value(name: str, text: str) -> Any:
    """The value of a field, from the text chunk that `provenance` wrote: JSON, but for what is text itself."""
    if name in {"dataset", "guide"}:
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
