"""The OpenAPI document: what FastAPI finds in the routes, with the schemas it does not see, and links between them."""

from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from itertools import chain
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from service.dialects import PROBLEMS, Dialect
from service.problems import SOME_JOB, Problem
from service.request import SampleRequest

SCHEMAS = "#/components/schemas/{model}"


def body_of(model: type[BaseModel], *others: str) -> dict[str, Any]:
    """The JSON body that a route reads by itself, or another whose media type says it all."""
    schema = {"$ref": SCHEMAS.format(model=model.__name__)}
    return {"required": True, "content": {"application/json": {"schema": schema}} | {name: {} for name in others}}


SAMPLE_BODY = body_of(SampleRequest)

OF_A_JOB = (
    "job",
    "events",
    "cancel",
    "delete",
    "grid",
    "image",
    "images_npz",
    "images_zip",
    "trajectory_film",
    "trajectory_picture",
)
"""Operations that a submission leads to."""

JOB_LINKS = {
    name: {
        "operationId": name,
        "parameters": {"job_id": "$response.body#/id"} | ({"k": "0"} if name == "image" else {}),
    }
    for name in OF_A_JOB
}


def header(description: str, example: str) -> dict[str, Any]:
    """A header of a response."""
    return {"description": description, "schema": {"type": "string"}, "example": example}


RETRY_AFTER = {"Retry-After": header("Seconds after which it may be tried again, as they are predicted.", "5")}
REFUSAL_HEADERS = {
    HTTPStatus.UNAUTHORIZED: {"WWW-Authenticate": header("How to say who asks.", "Bearer")},
    HTTPStatus.TOO_MANY_REQUESTS: RETRY_AFTER,
    HTTPStatus.SERVICE_UNAVAILABLE: RETRY_AFTER,
}

KNOWN_TAG = {
    "name": "If-None-Match",
    "in": "header",
    "schema": {"type": "string"},
    "example": f'"{SOME_JOB}-grid"',
    "description": "The `ETag` of what the client has.",
}
"""The header of a request for what may not have changed."""

RESULT_HEADERS = {
    "ETag": header("By which to ask whether it has changed; it never does.", f'"{SOME_JOB}-grid"'),
    "Cache-Control": header("For how long it may be kept.", "private, max-age=3600"),
    "Server-Timing": header("Where the time of the job went, in milliseconds.", "queue;dur=2.4, sampling;dur=207.0"),
}
"""Of pictures, and other results."""

EVENTS = {
    "text/event-stream": {
        "schema": {
            "type": "object",
            "properties": {name: {"type": "string"} for name in ("id", "event", "data")},
            "description": "Each event; its `data` are JSON.",
        }
    }
}
"""What is streamed."""

LOCATION = {"Location": header("Where the job is.", f"/v1/jobs/{SOME_JOB}")}

PARAMETERS = {
    "job_id": ("The `id` of a job.", SOME_JOB),
    "job": ("Their ids, again and again.", [SOME_JOB]),
    "k": ("The place of an image in its job, counted from 0.", "0"),
    "dataset": ("As listed by /v1/models.", "digits"),
    "D": ('As listed by /v1/models: a number, or "inf".', "2048"),
    "model_name": ("Its `name` in /v1/models.", "digits-d2048"),
    "version": ("The beginning of the SHA-256 of its checkpoint.", "d62966b0625f"),
    "last-event-id": (
        "The `id` of the event that was heard last: what came since is told.",
        f"{SOME_JOB[:8]}.running.35.0.0",
    ),
}
"""What those are that routes declare by name alone, with examples."""

TAGS = [
    {"name": "jobs", "description": "Ask for images, and follow what becomes of that."},
    {"name": "results", "description": "Fetch what a job has made: pictures, arrays, films."},
    {"name": "models", "description": "What can be sampled, by which workers, and how much waits."},
    {"name": "openai", "description": "OpenAI's image API, for its clients. Refusals are worded as theirs."},
    {"name": "inference", "description": "The Open Inference Protocol v2 of KServe and Triton, for their clients."},
    {"name": "health", "description": "For load balancers and Prometheus."},
    {"name": "webhooks", "description": "What this service sends."},
]

FASTAPIS_OWN = "Successful Response"
"""What FastAPI says of an answer of which nothing is said."""

KEY = "key"
"""The name of the security scheme."""


def problem_responses(*kinds: type[Problem], dialect: Dialect = PROBLEMS) -> dict[int | str, dict[str, Any]]:
    """What a route may refuse with."""
    return {
        status.value: _refusal([kind for kind in kinds if dialect.status(kind) == status], dialect)
        for status in map(dialect.status, kinds)
    }


def _refusal(kinds: Sequence[type[Problem]], dialect: Dialect) -> dict[str, Any]:
    """The refusals of one status."""
    schema = {"$ref": SCHEMAS.format(model=dialect.model.__name__)}
    examples = {kind.code: {"value": dialect.document(kind.of_example(), "").model_dump(mode="json")} for kind in kinds}
    headers = REFUSAL_HEADERS.get(kinds[0].status)
    return {
        "description": ", ".join(f"`{kind.code}`" for kind in kinds),
        "content": {dialect.media_type: {"schema": schema, "examples": examples}},
        **({"headers": headers} if headers else {}),
    }


def complete(app: FastAPI, is_guarded: bool, *models: type[BaseModel]) -> None:
    """Have the app's document define the schemas that are referred to by name alone, and show examples of all."""
    found = app.openapi

    def openapi() -> dict[str, Any]:
        is_new, document = app.openapi_schema is None, found()
        if is_new:
            _, schemas = models_json_schema([(model, "validation") for model in models], ref_template=SCHEMAS)
            document["components"]["schemas"] |= schemas["$defs"]
            _forget_validation_errors(document)
            _tell_of_keys(document, is_guarded)
            _show_examples(document)
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every operation, with its path or the name of its webhook."""
    for path, operations in chain(document["paths"].items(), document["webhooks"].items()):
        for operation in operations.values():
            yield path, operation


def _forget_validation_errors(document: dict[str, Any]) -> None:
    """Leave out the refusals that FastAPI supposes where a path has parameters; here every text is one."""
    for _, operation in _operations(document):
        if "application/json" in operation["responses"].get("422", {}).get("content", {}):
            del operation["responses"]["422"]
    for name in ("HTTPValidationError", "ValidationError"):
        del document["components"]["schemas"][name]


def _tell_of_keys(document: dict[str, Any], is_guarded: bool) -> None:
    """Say where a key is asked for: of every operation that may refuse without one, if there are keys at all."""
    scheme = {"type": "http", "scheme": "bearer", "description": "A key, as `pfgmpp keys add` makes them."}
    document["components"]["securitySchemes"] = {KEY: scheme}
    needed: list[dict[str, list[str]]] = [{KEY: []}] if is_guarded else [{KEY: []}, {}]
    for _, operation in _operations(document):
        operation["security"] = needed if "401" in operation["responses"] else []


def _show_examples(document: dict[str, Any]) -> None:
    """Show of every parameter and body what it may be, and say of every answer what it is."""
    from service.examples import bodies  # here, for it needs the routes

    shown = {
        name: body.model_dump(mode="json") if isinstance(body, BaseModel) else body for name, body in bodies().items()
    }
    shown |= {
        name: schema["examples"][0]
        for name, schema in document["components"]["schemas"].items()
        if "examples" in schema
    }
    for path, operation in _operations(document):
        for parameter in operation.get("parameters", ()):
            if parameter["name"] in PARAMETERS:
                description, example = PARAMETERS[parameter["name"]]
                parameter.setdefault("description", description)
                parameter.setdefault("example", example)
        for content in operation.get("requestBody", {}).get("content", {}).values():
            _show(content, shown, operation["operationId"], "")
        for status, response in operation["responses"].items():
            if response["description"] == FASTAPIS_OWN:
                response["description"] = f"{operation['summary']}."
            for content in response.get("content", {}).values():
                _show(content, shown, operation["operationId"], status)
                for example in content.get("examples", {}).values():
                    if "instance" in example["value"]:
                        example["value"]["instance"] = path.format(
                            **{name: each for name, (_, each) in PARAMETERS.items()}
                        )


def _show(content: dict[str, Any], shown: Mapping[str, Any], operation: str, status: str) -> None:
    """Add an example of one body, if it is known by its schema or its operation."""
    schema = content.get("schema", {})
    is_list = schema.get("type") == "array"
    name = (schema["items"] if is_list else schema).get("$ref", operation).rpartition("/")[-1]
    example = shown.get(f"{name} {status}", shown.get(name))
    if example is not None and "examples" not in content:
        content["example"] = [example] if is_list else example
