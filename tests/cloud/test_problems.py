"""Errors of the API: always problem+json, always with a code and a request id."""

from __future__ import annotations

import pytest

from edgefleet_cloud import http_errors
from edgefleet_cloud.errors import NotFoundError
from edgefleet_shared.errors import EdgeFleetError, InvalidInputError


def _subclasses(kind):
    for child in kind.__subclasses__():
        yield child
        yield from _subclasses(child)


def test_every_error_class_has_a_status():
    """No error class can reach the border without a status of its own or of a base."""
    for kind in _subclasses(EdgeFleetError):
        error = kind.__new__(kind)
        error.code = "some_code"
        assert 400 <= http_errors.status_of(error) <= 503, kind


def test_a_code_decides_before_the_class():
    """A bad page token is a 400 although other invalid input is a 422."""
    assert http_errors.status_of(InvalidInputError("x", code="page_token")) == 400
    assert http_errors.status_of(InvalidInputError("x", code="other")) == 422
    assert http_errors.status_of(NotFoundError("x", code="other")) == 404


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "/v1/nothing", None, 404, "not_found"),
        ("PUT", "/v1/models", None, 405, "method_not_allowed"),
        ("GET", "/v1/models/absent", None, 404, "not_found"),
        ("GET", "/v1/models?page_size=0", None, 422, "validation"),
        ("GET", "/v1/models?page_size=501", None, 422, "validation"),
        ("GET", "/v1/models?page_token=xyz", None, 400, "page_token"),
        ("GET", "/v1/models?order_by=secret", None, 400, "order_by"),
        ("POST", "/v1/models", {}, 422, "validation"),
        ("POST", "/v1/models", {"name": "Not A Name"}, 422, "invalid_name"),
        ("POST", "/v1/models", {"name": "a", "surprise": 1}, 422, "validation"),
    ],
)
def test_bad_requests_get_a_problem(cloud, method, path, body, status, code):
    """Whatever is wrong, the answer is a problem with status, code and the request's id."""
    answer = cloud.client.request(method, path, json=body)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["type"] == f"https://edgefleet.dev/problems/{code}"
    assert problem["request_id"] == answer.headers["x-request-id"]
    assert problem["status"] == status
    assert problem["detail"].endswith(".")
    assert problem["hint"]


def test_field_errors_are_named(cloud):
    """A request that does not fit the schema is told which fields do not."""
    errors = cloud.client.post("/v1/models", json={"labels": 3}).json()["errors"]
    assert {error["field"] for error in errors} == {"body.name", "body.labels"}


@pytest.mark.parametrize("header", [None, "Bearer wrong", "Basic YWRtaW46YWRtaW4=", "Bearer"])
def test_without_a_valid_token_nothing_is_shown(cloud, header):
    """No token, a wrong one or another scheme: 401 and how to do better."""
    headers = {"Authorization": header} if header else {}
    answer = cloud.anyone.get("/v1/models", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
    assert answer.headers["www-authenticate"] == "Bearer"


def test_the_unexpected_is_a_problem_too(cloud, caplog):
    """An error nobody foresaw answers 500 with the id under which the log tells more."""

    @cloud.program.app.get("/boom")
    def boom() -> None:
        raise ZeroDivisionError("secret detail")

    answer = cloud.anyone.get("/boom")
    assert answer.status_code == 500
    assert answer.json()["code"] == "internal"
    assert "secret" not in answer.text
    assert answer.json()["request_id"] in caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_health_needs_no_token(cloud):
    """Probes need no token."""
    assert cloud.anyone.get("/healthz").json() == {"status": "ok"}
    assert cloud.anyone.get("/readyz").json() == {"status": "ok"}
