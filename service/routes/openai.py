"""OpenAI's image API, for its clients: a prompt names classes, and the images come back in the answer."""

import re
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, Literal

from fastapi import Request, Response
from pydantic import BaseModel, ConfigDict, Field
from redis.exceptions import RedisError

from service import results, sample
from service.catalogue import OfferedModel
from service.dialects import OPENAI
from service.door import Door
from service.events import Patience
from service.job import Job
from service.openapi import EVENTS, body_of, problem_responses
from service.picture import png
from service.problems import NoSuchModel, NoWorker, Problem, QueueUnavailable, TooManyStreams, parsed, wrong
from service.request import MOST_SCALE, SampleOptions, Seed, size_of
from service.routes import door_of, new_router
from service.routes.events import HEADERS, HEARTBEAT, HEARTBEAT_SECONDS, EventStream, check_room
from service.routes.results import fetched
from service.routes.whole import REFUSALS, finished_job, submitted_job, succeeded, watched
from service.wire import IDEMPOTENCY_KEY, queue_unavailable, read_json_body

router = new_router(dialect=OPENAI)

ANY = {"", "any"}
"""Prompts for classes that are drawn."""

ARTICLE = re.compile(r"^(an?|the)\s+")

MOST_IMAGES = 10_000
"""Of one request, whatever the service allows: more are not even counted out."""

SHOWN_CLASSES = 100

NAMES = {"dataset": "model", "D": "model", "count": "n", "scale": "size", "label": "prompt", "labels": "prompt"}
"""What the client calls fields of `/v1/samples`, if not the same."""


def now() -> int:
    """Seconds since 1970."""
    return int(time.time())


class ImagesRequest(SampleOptions):
    """The body of `POST /v1/images/generations`: OpenAI's fields, and how to sample as in the body of `/v1/samples`."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": "digits-d2048", "prompt": "7", "n": 2, "size": "64x64", "seed": 1}]}
    )

    model: str = Field(max_length=128, description="Its `name` in /v1/models.")
    prompt: str = Field(
        max_length=32_000,
        description='A class of the model, by name or index ("7", "a 7"), or one for each image with commas between; '
        'empty or "any" to have them drawn.',
    )
    n: int | None = Field(1, ge=1, le=MOST_IMAGES, description="Images; the service may allow fewer.")
    size: str | None = Field(
        "auto",
        max_length=32,
        description=f"`WIDTHxHEIGHT`: the model's own size (auto), or 2 to {MOST_SCALE} times it.",
    )
    response_format: Literal["b64_json", "url"] | None = Field(
        "b64_json", description="The images in the answer, or where they can be fetched, with the same key."
    )
    seed: Seed | None = Field(None, description="Image k has seed + k; drawn if left out.")
    seeds: list[Seed] | None = Field(None, description="One seed per image.")
    output_format: Literal["png"] | None = "png"
    quality: Literal["auto", "standard"] | None = Field("auto", description="There is one; see `steps` and `solver`.")
    background: Literal["auto", "opaque"] | None = "auto"
    moderation: Literal["auto"] | None = "auto"
    stream: bool | None = Field(False, description="Answer with server-sent events; for n = 1.")
    partial_images: int | None = Field(
        None, ge=0, le=3, description="With `stream`: how often to show what the image is taken for on its way."
    )
    user: str | None = Field(None, max_length=512, description="Taken, and not kept.")
    safety_identifier: str | None = Field(None, max_length=512, description="Taken, and not kept.")


class GeneratedImage(BaseModel):
    """One image."""

    b64_json: str | None = Field(None, description="A PNG in base64.")
    url: str | None = Field(None, description="Of a PNG, for as long as the job is kept.")
    revised_prompt: str | None = Field(None, description="The image's class, be it asked for or drawn.")


class ImagesResponse(BaseModel):
    """Images, with what is true of all."""

    created: int = Field(default_factory=now, description="When, in seconds since 1970.")
    data: list[GeneratedImage]
    background: Literal["opaque"] = "opaque"
    output_format: Literal["png"] = "png"
    size: str
    job: str = Field(description="By whose id `/v1/jobs/{id}` knows more.")


class Usage(BaseModel):
    """Of tokens, of which there are none here; clients expect their number."""

    input_tokens: int = 0
    input_tokens_details: dict[str, int] = {"image_tokens": 0, "text_tokens": 0}
    output_tokens: int = 0
    total_tokens: int = 0


class PartialImage(BaseModel):
    """The data of `image_generation.partial_image`: what the image is taken for so far."""

    type: Literal["image_generation.partial_image"] = "image_generation.partial_image"
    b64_json: str
    created_at: int = Field(default_factory=now)
    partial_image_index: int
    size: str
    quality: Literal["auto"] = "auto"
    background: Literal["opaque"] = "opaque"
    output_format: Literal["png"] = "png"


class CompletedImage(BaseModel):
    """The data of `image_generation.completed`: the image."""

    type: Literal["image_generation.completed"] = "image_generation.completed"
    b64_json: str
    created_at: int = Field(default_factory=now)
    size: str
    quality: Literal["auto"] = "auto"
    background: Literal["opaque"] = "opaque"
    output_format: Literal["png"] = "png"
    usage: Usage = Usage()


class ListedModel(BaseModel):
    """A model, as OpenAI lists those of its own."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(0, description="Not known.")
    owned_by: str = "pfgmpp"


class ListedModels(BaseModel):
    """Every model that a live worker serves."""

    object: Literal["list"] = "list"
    data: list[ListedModel]


GENERATIONS: dict[str, Any] = {
    "tags": ["openai"],
    "response_model": ImagesResponse,
    "responses": {
        200: {"description": "The images, or with `stream` server-sent events.", "content": EVENTS},
        **problem_responses(*REFUSALS, TooManyStreams, dialect=OPENAI),
    },
    "openapi_extra": {"requestBody": body_of(ImagesRequest), "parameters": [IDEMPOTENCY_KEY]},
}
"""What both paths to images have in common."""


@router.post(
    "/openai/v1/images/generations",
    name="openai_images",
    summary="Images for a prompt, beside the models",
    **GENERATIONS,
)
@router.post("/v1/images/generations", name="images_generations", summary="Images for a prompt", **GENERATIONS)
async def generate(request: Request) -> Response:
    """Waits for the images, and answers them as OpenAI's API does; with `stream`, one with what it came from.

    Fields of `/v1/samples` that say how to sample go beside OpenAI's own: in its Python client as `extra_body`.
    """
    door = door_of(request)
    asked = parsed(ImagesRequest, await read_json_body(request, door.settings.max_body_bytes))
    model = await door.named(asked.model)
    body = _body(asked, model)
    size = _shown_size(asked, model, body["scale"])
    if asked.stream:
        check_room(door)
        job = await submitted_job(request, body, _name_of, Patience())
        return EventStream(_stream(request, job, size, asked.partial_images or 0), headers=HEADERS)
    job = await finished_job(request, body, _name_of)
    images = _linked(request, job) if asked.response_format == "url" else await fetched(job, partial(_read, door, job))
    for image, label in zip(images, job.labels or (), strict=bool(job.labels)):
        image.revised_prompt = model.classes[label]
    answer = ImagesResponse(data=images, size=size, job=job.id)
    return Response(answer.model_dump_json(exclude_none=True), media_type="application/json")


async def _stream(request: Request, job: Job, size: str, most: int) -> AsyncIterator[str]:
    """Events of an image: at most so many of it on its way, then itself, or why there is none."""
    door, shown, evaluation, spoke = door_of(request), 0, 0, time.monotonic()
    try:
        async with aclosing(watched(request, job)) as jobs:
            async for job in jobs:  # noqa: PLR1704
                latest = job.previews[0].evaluation if 0 in job.previews else 0
                if latest > evaluation and shown < most:
                    picture = await fetched(job, partial(_preview, door, job))
                    yield event(PartialImage(b64_json=picture, partial_image_index=shown, size=size))
                    evaluation, shown, spoke = latest, shown + 1, time.monotonic()
                elif time.monotonic() - spoke > HEARTBEAT_SECONDS:
                    yield HEARTBEAT
                    spoke = time.monotonic()
        (image,) = await fetched(succeeded(request, job), partial(_read, door, job))
        yield event(CompletedImage(b64_json=image.b64_json or "", size=size))
    except (Problem, RedisError) as error:
        problem = error if isinstance(error, Problem) else queue_unavailable()
        yield f"event: error\ndata: {OPENAI.document(problem, request.url.path).model_dump_json()}\n\n"


def event(data: PartialImage | CompletedImage) -> str:
    """One event of a stream."""
    return f"event: {data.type}\ndata: {data.model_dump_json()}\n\n"


@router.get(
    "/openai/v1/models",
    tags=["openai"],
    summary="The models, as OpenAI lists its own",
    responses=problem_responses(QueueUnavailable, dialect=OPENAI),
)
async def openai_models(request: Request) -> ListedModels:
    """For clients whose `base_url` ends in `/openai/v1`; `/v1/models` says more of them."""
    models = (await door_of(request).catalogue(is_fresh=True)).models
    return ListedModels(data=[ListedModel(id=name) for name in models])


@router.get(
    "/openai/v1/models/{model_name}",
    tags=["openai"],
    summary="One model, as OpenAI shows it",
    responses=problem_responses(NoSuchModel, NoWorker, QueueUnavailable, dialect=OPENAI),
)
async def openai_model(model_name: str, request: Request) -> ListedModel:
    """That it is there."""
    return ListedModel(id=(await door_of(request).named(model_name)).name)


def _body(asked: ImagesRequest, model: OfferedModel) -> dict[str, Any]:
    """What is asked, as a body of `/v1/samples`. Raises InvalidRequest."""
    count = asked.n or 1
    labels, scale, previews = _labels(asked.prompt, model.classes, count), _scale(asked, model), _previews(asked)
    chosen = asked.model_dump(mode="json", include={*SampleOptions.model_fields, "seed", "seeds"}, exclude_unset=True)
    own = {"dataset": model.dataset, "D": model.D, "count": count, "labels": labels}
    return own | {"scale": scale, "previews": previews} | chosen


def _previews(asked: ImagesRequest) -> int:
    """How often to show the image on its way. Raises InvalidRequest for a stream of what OpenAI streams not."""
    if not asked.stream:
        if asked.partial_images:
            raise wrong("partial_images", "are for answers that are streamed: set stream")
        return 0
    if (asked.n or 1) > 1:
        raise wrong("n", "must be 1 with stream; for more images without it, or one request for each")
    if asked.response_format == "url":
        raise wrong("response_format", "must be b64_json with stream")
    return asked.partial_images or 0


def _name_of(field: str) -> str:
    """What the client calls a field of `/v1/samples`."""
    return NAMES.get(field.partition(".")[0], field)


def _labels(prompt: str, classes: Sequence[str], count: int) -> list[int] | None:
    """The classes that a prompt names, for each image; None if they are to be drawn. Raises InvalidRequest."""
    if prompt.strip().lower() in ANY:
        return None
    if not classes:
        raise wrong("prompt", 'must be empty or "any": this model has no classes')
    indexes = {str(index): index for index in range(len(classes))}
    names = indexes | {name.lower(): index for index, name in reversed(list(enumerate(classes)))}
    whole = _class_index(prompt, names)
    found = [_class_index(words, names) for words in prompt.split(",")] if whole is None else [whole]
    labels = [label for label in found if label is not None]
    if len(labels) < len(found):
        shown = ", ".join(classes[:SHOWN_CLASSES]) + (", ..." if len(classes) > SHOWN_CLASSES else "")
        raise wrong(
            "prompt",
            f'must name classes, or be "any" to have them drawn; it understands no other words. There are: {shown}',
        )
    if len(labels) not in {1, count}:
        raise wrong("prompt", f"names {len(labels)} classes for n = {count} images; name one, or one for each")
    return labels * (count // len(labels))


def _class_index(words: str, names: Mapping[str, int]) -> int | None:
    """The class that is meant by its name or index, with an article or without; None if none is."""
    text = words.strip().lower()
    return names.get(text, names.get(ARTICLE.sub("", text)))


def _scale(asked: ImagesRequest, model: OfferedModel) -> int:
    """How much larger than its own a size is. Raises InvalidRequest for one that is no whole multiple."""
    sizes = list(_sizes(asked, model))
    if asked.size in {None, "auto"}:
        return 1
    if asked.size not in sizes:
        raise wrong("size", f"must be auto, or one of: {', '.join(sizes)}")
    return sizes.index(asked.size) + 1


def _sizes(asked: ImagesRequest, model: OfferedModel) -> Iterator[str]:
    """The sizes there are: its own, and whole multiples."""
    height, width = size_of(asked, model)
    return (f"{width * scale}x{height * scale}" for scale in range(1, MOST_SCALE + 1))


def _shown_size(asked: ImagesRequest, model: OfferedModel, scale: int) -> str:
    """The size of the images, enlarged."""
    height, width = size_of(asked, model)
    return f"{width * scale}x{height * scale}"


def _read(door: Door, job: Job) -> list[GeneratedImage]:
    """The images themselves. Raises OSError."""
    return [GeneratedImage(b64_json=b64encode(each).decode()) for each in results.images(door.store, job)]


def _preview(door: Door, job: Job) -> str:
    """What the one image of a job is taken for. Raises OSError."""
    (image,) = sample.shown(door.store, job.id, 0)
    return b64encode(png(image, job.request["scale"])).decode()


def _linked(request: Request, job: Job) -> list[GeneratedImage]:
    """Where the images are."""
    start = f"{str(request.base_url).rstrip('/')}/v1/jobs/{job.id}/images"
    return [GeneratedImage(url=f"{start}/{k}.png") for k in range(job.count)]
