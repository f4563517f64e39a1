"""The OpenAPI document is whole: every operation is described, and every example is what its schema says."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from service.api import create_app
from service.door import REFUSALS
from service.openapi import TAGS
from service.problems import Problem
from service.settings import Settings

BINARY = {"image/png", "image/gif", "application/zip", "application/octet-stream"}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    document: dict[str, Any] = create_app(Settings(redis_url="redis://unused")).openapi()
    return document


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every operation, with its name."""
    for operations in (*document["paths"].values(), *document["webhooks"].values()):
        for operation in operations.values():
            yield operation["operationId"], operation


def contents(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Every body, of requests and answers, with where it is and its media type."""
    for name, operation in operations(document):
        for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
            yield f"{name} body", media_type, content
        for status, response in operation["responses"].items():
            for media_type, content in response.get("content", {}).items():
                yield f"{name} {status}", media_type, content


def test_every_operation_is_described(document: dict[str, Any]) -> None:
    names = [name for name, _ in operations(document)]
    assert len(names) == len(set(names)) > 30
    for name, operation in operations(document):
        assert operation["summary"], name
        assert operation["description"], name
        assert {tag["name"] for tag in TAGS} >= set(operation["tags"]) != set(), name
        for response in operation["responses"].values():
            assert response["description"] not in {"", "Successful Response"}, name
        for parameter in operation.get("parameters", ()):
            assert parameter["description"], f"{name}: {parameter['name']}"
    assert {tag for _, operation in operations(document) for tag in operation["tags"]} == {tag["name"] for tag in TAGS}


def test_every_body_has_an_example_that_is_what_its_schema_says(document: dict[str, Any]) -> None:
    count = 0
    for where, media_type, content in contents(document):
        shown = [content["example"]] if "example" in content else []
        shown += [example["value"] for example in content.get("examples", {}).values()]
        assert bool(shown) == (media_type not in BINARY), f"{where}: {media_type}"
        if media_type == "text/event-stream":
            shown = [dict(line.split(": ", 1) for line in event.splitlines()) for event in shown[0].split("\n\n")[:-1]]
            assert all(json.loads(event["data"]) for event in shown), where
        validator = Draft202012Validator({**content.get("schema", {}), "components": document["components"]})
        for example in shown:
            assert not [error.message for error in validator.iter_errors(example)], where
            count += 1
    assert count > 150


def test_examples_of_parameters_and_headers_fit_too(document: dict[str, Any]) -> None:
    for name, operation in operations(document):
        headers = [
            header for response in operation["responses"].values() for header in response.get("headers", {}).values()
        ]
        for each in (*operation.get("parameters", ()), *headers):
            if "example" in each:
                Draft202012Validator(each["schema"]).validate(each["example"])
            else:
                assert each["in"] != "path", f"{name}: {each['name']}"


def test_refusals_show_where_they_come_from(document: dict[str, Any]) -> None:
    for path, methods in document["paths"].items():
        for operation in methods.values():
            for status, response in operation["responses"].items():
                for media_type, content in response.get("content", {}).items():
                    if media_type == "application/problem+json":
                        (instance,) = {each["value"]["instance"] for each in content["examples"].values()}
                        assert re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", path), instance)
                        assert {each["value"]["status"] for each in content["examples"].values()} == {int(status)}
            assert ("Retry-After" in operation["responses"].get("503", {}).get("headers", {})) == (
                "503" in operation["responses"]
            )


def test_submissions_and_estimates_show_why_they_may_be_refused(document: dict[str, Any]) -> None:
    submitted, estimated = (
        {
            code
            for response in document["paths"][path]["post"]["responses"].values()
            for content in response["content"].values()
            for code in content.get("examples", ())
        }
        for path in ("/v1/samples", "/v1/estimates")
    )
    assert {problem.code for problem in REFUSALS} <= submitted
    assert {"unknown-model", "no-worker", "draining"} <= estimated < submitted
    assert "queue-full" not in estimated, "it is an answer's `refusal`"


def test_every_problem_has_an_example() -> None:
    kinds = Problem.__subclasses__()
    assert len({kind.code + str(kind.status.value) for kind in kinds}) == len(kinds)
    for kind in kinds:
        assert kind.of_example().document("/").detail


@pytest.mark.parametrize("is_guarded", [True, False])
def test_it_says_where_a_key_is_needed(tmp_path: Any, is_guarded: bool) -> None:
    settings = Settings(redis_url="redis://unused", keys_file=tmp_path / "keys.json" if is_guarded else None)
    document = create_app(settings).openapi()
    (scheme,) = document["components"]["securitySchemes"].items()
    assert (scheme[0], scheme[1]["scheme"]) == ("key", "bearer")
    for name, operation in operations(document):
        is_open = name in {"livez", "readyz", "v2_live", "v2_ready", "on_event"}
        assert operation["security"] == ([] if is_open else [{"key": []}] if is_guarded else [{"key": []}, {}]), name


def test_it_is_json(document: dict[str, Any]) -> None:
    assert json.loads(json.dumps(document)) == document
    assert document["openapi"].startswith("3.1")
    assert document["servers"][0]["url"] == "/"
