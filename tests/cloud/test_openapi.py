"""The generated description of the API: complete, with examples, and true."""

from __future__ import annotations

import pytest
from pydantic import BaseModel

from edgefleet_cloud import compose

DESCRIPTION = compose.api_description()
OPERATIONS = [
    (method, path, operation)
    for path, methods in DESCRIPTION["paths"].items()
    for method, operation in methods.items()
]


def test_it_is_served(cloud):
    """Anyone may read it, and it is what the command prints."""
    assert cloud.anyone.get("/v1/openapi.json").json() == DESCRIPTION


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("post", "/v1/uploads"),
        ("patch", "/v1/uploads/{upload_id}"),
        ("head", "/v1/blobs/{digest}"),
        ("get", "/v1/trust/bundle"),
        ("post", "/v1/models/{name}/versions"),
        ("post", "/v1/enrollments"),
        ("get", "/v1/events"),
        ("post", "/v1/rollouts"),
        ("get", "/v1/telemetry"),
    ],
)
def test_the_routes_are_there(method, path):
    """Each room's routes are described."""
    assert method in DESCRIPTION["paths"][path]


def test_every_operation_says_what_it_does():
    """Each operation has a summary and a sentence."""
    bare = [
        (method, path)
        for method, path, operation in OPERATIONS
        if not operation.get("summary") or not operation.get("description")
    ]
    assert bare == []


def test_operation_ids_are_unique():
    """Generated clients have one function an operation."""
    ids = [operation["operationId"] for _, _, operation in OPERATIONS]
    assert len(ids) == len(set(ids))


def test_every_operation_may_answer_a_problem():
    """Each operation declares the shape of its errors."""
    for method, path, operation in OPERATIONS:
        assert "default" in operation["responses"], (method, path)


def _bodies():
    """Yield the name of every model that is the body of a request or an answer."""
    for _, _, operation in OPERATIONS:
        parts = [operation.get("requestBody", {}), *operation["responses"].values()]
        for part in parts:
            for content in part.get("content", {}).values():
                reference = content.get("schema", {}).get("$ref", "")
                if reference:
                    yield reference.rpartition("/")[2]


def _described(name):
    schema = DESCRIPTION["components"]["schemas"][name]
    if name.startswith("PageOf"):
        items = schema["properties"]["items"]["items"]["$ref"].rpartition("/")[2]
        return _described(items)
    return "examples" in schema


def test_every_body_has_an_example():
    """Whoever reads the description sees what is really sent."""
    generated = {"HTTPValidationError"}
    assert [n for n in sorted(set(_bodies()) - generated) if not _described(n)] == []


def _models(kind=BaseModel):
    for child in kind.__subclasses__():
        if child.__module__.startswith("edgefleet_cloud"):
            yield child
        yield from _models(child)


def test_every_example_is_true():
    """An example that its own model refuses would mislead whoever copies it."""
    checked = 0
    for model in _models():
        extra = model.model_config.get("json_schema_extra") or {}
        for example in extra.get("examples", ()):
            model.model_validate(example)
            checked += 1
    assert checked > 20
