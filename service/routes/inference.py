"""The Open Inference Protocol v2, as KServe and Triton speak it: seeds go in, and images come out."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from fastapi import Request, Response
from pydantic import BaseModel, Field

from service import __version__
from service.catalogue import OfferedModel
from service.dialects import INFERENCE
from service.door import Door
from service.job import Job
from service.openapi import body_of, header, problem_responses
from service.problems import (
    Draining,
    NoSuchModel,
    NotJson,
    NotReady,
    NoWorker,
    QueueUnavailable,
    UnknownEncoding,
    wrong,
)
from service.request import SampleOptions, size_of
from service.routes import check_ready, door_of, new_router
from service.routes.results import fetched
from service.routes.whole import REFUSALS, finished_job
from service.tensors import MOST_JSON_VALUES, Array, InferRequest, InferResponse, inflated, packed, unpacked
from service.wire import IDEMPOTENCY_KEY, content_type, read_body

open_router = new_router(is_open=True, dialect=INFERENCE)
router = new_router(dialect=INFERENCE)

VERSION_DIGITS = 12
"""Of the SHA-256 of a checkpoint, which are the version of its model."""

HEADER_LENGTH = "Inference-Header-Content-Length"

BODY_OF = {"count": "seed", "seeds": "seed", "labels": "label"}
"""Which input a field of `/v1/samples` came from; the others are parameters."""

NO_MODEL = (NoSuchModel, NoWorker, QueueUnavailable)


class Server(BaseModel):
    """What answers."""

    name: str = "pfgmpp-serve"
    version: str = __version__
    extensions: list[str] = ["binary_tensor_data"]


class TensorFacts(BaseModel):
    """What goes in, or comes out; -1 stands for the number of images."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    """A model, what it takes and what it gives."""

    name: str
    versions: list[str] = Field(description="The one there is: the beginning of its checkpoint's SHA-256.")
    platform: str = "pfgmpp"
    inputs: list[TensorFacts] = Field(description="`label` may be left out: classes are drawn from the seeds then.")
    outputs: list[TensorFacts]


class Live(BaseModel):
    live: bool = True


class Ready(BaseModel):
    ready: bool = True


class ModelReady(Ready):
    name: str


class IndexEntry(BaseModel):
    """A model of the repository."""

    name: str
    version: str
    state: str = "READY"
    reason: str = ""


def version_of(model: OfferedModel) -> str:
    """The version of a model, which changes with its checkpoint."""
    return model.checkpoint_sha256[:VERSION_DIGITS]


@open_router.get("/v2/health/live", tags=["inference"], summary="Whether the server lives")
async def v2_live() -> Live:
    """Answers as long as the process does."""
    return Live()


@open_router.get(
    "/v2/health/ready",
    tags=["inference"],
    summary="Whether the server is ready",
    responses=problem_responses(NotReady, Draining, dialect=INFERENCE),
)
async def v2_ready(request: Request) -> Ready:
    """Whether inference would be served, as `/readyz` has it."""
    await check_ready(request)
    return Ready()


@router.get("/v2", tags=["inference"], summary="What the server is")
async def v2_server() -> Server:
    """Its name, its version, and what of the protocol it knows beside the rest."""
    return Server()


@router.post(
    "/v2/repository/index",
    tags=["inference"],
    summary="Which models there are",
    responses=problem_responses(QueueUnavailable, dialect=INFERENCE),
)
async def v2_index(request: Request) -> list[IndexEntry]:
    """The models that live workers serve, all of which are ready; the body is of no account."""
    models = (await door_of(request).catalogue(is_fresh=True)).models.values()
    return [IndexEntry(name=model.name, version=version_of(model)) for model in models]


@router.get(
    "/v2/models/{model_name}",
    tags=["inference"],
    summary="What a model takes and gives",
    responses=problem_responses(*NO_MODEL, dialect=INFERENCE),
)
async def v2_model(model_name: str, request: Request) -> ModelMetadata:
    """The tensors of a model."""
    return metadata_of(await _model(door_of(request), model_name))


@router.get(
    "/v2/models/{model_name}/versions/{version}",
    tags=["inference"],
    summary="What a version of a model takes and gives",
    responses=problem_responses(*NO_MODEL, dialect=INFERENCE),
)
async def v2_version(model_name: str, version: str, request: Request) -> ModelMetadata:
    """The tensors of a model, if that version of it is served."""
    return metadata_of(await _model(door_of(request), model_name, version))


@router.get(
    "/v2/models/{model_name}/ready",
    tags=["inference"],
    summary="Whether a model is ready",
    responses=problem_responses(*NO_MODEL, dialect=INFERENCE),
)
async def v2_model_ready(model_name: str, request: Request) -> ModelReady:
    """Whether a live worker serves the model."""
    return ModelReady(name=(await _model(door_of(request), model_name)).name)


@router.get(
    "/v2/models/{model_name}/versions/{version}/ready",
    tags=["inference"],
    summary="Whether a version of a model is ready",
    responses=problem_responses(*NO_MODEL, dialect=INFERENCE),
)
async def v2_version_ready(model_name: str, version: str, request: Request) -> ModelReady:
    """Whether a live worker serves that version of the model."""
    return ModelReady(name=(await _model(door_of(request), model_name, version)).name)


INFER: dict[str, Any] = {
    "tags": ["inference"],
    "response_model": InferResponse,
    "responses": {
        200: {
            "description": f"The outputs. With bytes behind the JSON, `{HEADER_LENGTH}` says where they begin.",
            "content": {"application/octet-stream": {}},
            "headers": {HEADER_LENGTH: header("How many bytes of the answer are JSON, if there are others.", "412")},
        },
        **problem_responses(*REFUSALS, UnknownEncoding, dialect=INFERENCE),
    },
    "openapi_extra": {
        "requestBody": body_of(InferRequest, "application/octet-stream"),
        "parameters": [
            IDEMPOTENCY_KEY,
            {
                "name": HEADER_LENGTH,
                "in": "header",
                "schema": {"type": "integer", "minimum": 0},
                "description": "How many bytes of the body are JSON, if inputs come as bytes behind it.",
            },
        ],
    },
}
"""What both routes to inference have in common."""


@router.post("/v2/models/{model_name}/infer", summary="Images for seeds", **INFER)
async def v2_infer(model_name: str, request: Request) -> Response:
    """Waits for the images of the seeds in `seed`, of the classes in `label` if that is given.

    `parameters` are the fields of `/v1/samples` that say how to sample.
    """
    return await _infer(request, model_name)


@router.post("/v2/models/{model_name}/versions/{version}/infer", summary="Images of a version for seeds", **INFER)
async def v2_version_infer(model_name: str, version: str, request: Request) -> Response:
    """As without a version, if that version of the model is served."""
    return await _infer(request, model_name, version)


async def _model(door: Door, name: str, version: str = "") -> OfferedModel:
    """A model, of that version if one is named. Raises NoSuchModel or NoWorker."""
    model = await door.named(name)
    if version and version != version_of(model):
        raise NoSuchModel(f"there is no version {version[:64]!r} of {name}; there is: {version_of(model)}")
    return model


def metadata_of(model: OfferedModel) -> ModelMetadata:
    """The tensors of a model."""
    seed, label = (TensorFacts(name=name, datatype="INT64", shape=[-1]) for name in ("seed", "label"))
    facts = [seed, label] if model.classes else [seed]
    shape = [-1, model.resolution, model.resolution, model.channels]
    image = TensorFacts(name="image", datatype="UINT8", shape=shape)
    return ModelMetadata(name=model.name, versions=[version_of(model)], inputs=facts, outputs=[image, *facts])


async def _infer(request: Request, name: str, version: str = "") -> Response:
    door = door_of(request)
    asked, inputs = await _asked(request, door.settings.max_body_bytes)
    model = await _model(door, name, version)
    count = len(inputs["seed"])
    if count > door.settings.max_count:  # before anything looks at each of them
        raise wrong("seed", f"must be at most {door.settings.max_count}")
    wanted = _wanted(asked, model, count)
    job = await finished_job(request, _body(asked, inputs, model), _name_of)
    response = InferResponse(
        model_name=model.name, model_version=version_of(model), id=asked.id, parameters={"job": job.id}, outputs=[]
    )
    content, json_bytes = await fetched(job, lambda: packed(response, _tensors(door, job, wanted), asked))
    if json_bytes is None:
        return Response(content, media_type="application/json")
    return Response(content, media_type="application/octet-stream", headers={HEADER_LENGTH: str(json_bytes)})


async def _asked(request: Request, most: int) -> tuple[InferRequest, Mapping[str, Sequence[int | str]]]:
    """A request and its inputs. Triton's clients name no media type; of browsers that is not taken."""
    kind = content_type(request)
    if kind not in {"application/json", "application/octet-stream"} and (kind or "origin" in request.headers):
        raise NotJson("the body must have the Content-Type application/json or application/octet-stream")
    body = await read_body(request, most)
    encoding = request.headers.get("content-encoding", "").strip().lower()
    return unpacked(inflated(body, encoding, most), request.headers.get(HEADER_LENGTH))


def _wanted(asked: InferRequest, model: OfferedModel, count: int) -> list[str]:
    """The names of the outputs to answer. Raises InvalidRequest for what the model lacks, or is too long as JSON."""
    wanted: list[str] = [output.name for output in asked.outputs or ()] or [
        "image",
        "seed",
        *(["label"] if model.classes else []),
    ]
    if "label" in wanted and not model.classes:
        raise wrong("outputs", "this model has no classes")
    height, width = size_of(asked.parameters, model)
    if (
        "image" in wanted
        and not asked.is_binary("image")
        and count * height * width * model.channels > MOST_JSON_VALUES
    ):
        message = f"image would be more than {MOST_JSON_VALUES:,} numbers as JSON; ask for it with binary_data"
        raise wrong("outputs", message)
    return wanted


def _body(asked: InferRequest, inputs: Mapping[str, Sequence[int | str]], model: OfferedModel) -> dict[str, Any]:
    """What is asked, as a body of `/v1/samples`."""
    chosen = asked.parameters.model_dump(mode="json", include=set(SampleOptions.model_fields), exclude_unset=True)
    labels = {"labels": inputs["label"]} if "label" in inputs else {}
    seeds = inputs["seed"]
    return {"dataset": model.dataset, "D": model.D, "count": len(seeds), "seeds": seeds} | labels | chosen


def _name_of(field: str) -> str:
    """What the client calls a field of `/v1/samples`."""
    first, _, rest = field.partition(".")
    name = BODY_OF.get(first, f"parameters.{first}")
    return f"{name}.{rest}" if rest else name


def _tensors(door: Door, job: Job, wanted: Sequence[str]) -> dict[str, Array]:
    """The outputs of a job. Raises OSError."""
    numbers = {"seed": job.seeds, "label": job.labels}
    return {
        name: np.array(numbers[name], np.int64) if name in numbers else door.store.array(job.id, "images.npy")
        for name in wanted
    }
