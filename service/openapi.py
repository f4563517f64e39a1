"""The OpenAPI document: what FastAPI finds in the routes, with the schemas it does not see, and links between them."""

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from service.problems import Problem, ProblemDocument
from service.sample import SampleRequest

SCHEMAS = "#/components/schemas/{model}"

SAMPLE_BODY = {
    "required": True,
    "content": {"application/json": {"schema": {"$ref": SCHEMAS.format(model=SampleRequest.__name__)}}},
}
"""The body that a route reads by itself."""

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


def problem_responses(*kinds: type[Problem]) -> dict[int | str, dict[str, Any]]:
    """What a route may refuse with."""
    schema = {"$ref": SCHEMAS.format(model=ProblemDocument.__name__)}
    return {
        kind.status.value: {
            "description": ", ".join(f"`{each.code}`" for each in kinds if each.status == kind.status),
            "content": {"application/problem+json": {"schema": schema}},
        }
        for kind in kinds
    }


def complete(app: FastAPI, *models: type[BaseModel]) -> None:
    """Have the app's document define the schemas that are referred to by name alone."""
    found = app.openapi

    def openapi() -> dict[str, Any]:
        is_new, document = app.openapi_schema is None, found()
        if is_new:
            _, schemas = models_json_schema([(model, "validation") for model in models], ref_template=SCHEMAS)
            document["components"]["schemas"] |= schemas["$defs"]
            _forget_validation_errors(document)
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def _forget_validation_errors(document: dict[str, Any]) -> None:
    """Leave out the refusals that FastAPI supposes where a path has parameters; here every text is one."""
    for operations in (*document["paths"].values(), *document["webhooks"].values()):
        for operation in operations.values():
            if "application/json" in operation["responses"].get("422", {}).get("content", {}):
                del operation["responses"]["422"]
    for name in ("HTTPValidationError", "ValidationError"):
        del document["components"]["schemas"][name]
