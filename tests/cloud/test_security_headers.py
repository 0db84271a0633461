"""Headers of every answer: what OWASP asks of an API and of pages that are to come."""

from __future__ import annotations

import re

import httpx
import pytest

from tests.cloud.running import RunningCloud

EXPECTED = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "X-Permitted-Cross-Domain-Policies": "none",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
POLICY = {"default-src 'none'", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"}

ANSWERS = [
    ("GET", "/healthz", 200),
    ("GET", "/v1/openapi.json", 200),
    ("GET", "/v1/devices", 401),
    ("GET", "/nowhere", 404),
    ("DELETE", "/v1/models", 405),
    ("POST", "/v1/enrollments", 422),
    ("POST", "/v1/enrollments?big", 413),
]


@pytest.mark.parametrize(("method", "path", "status"), ANSWERS)
def test_every_answer_has_them(cloud, method, path, status):
    """Good answers and refusals of every layer carry the same headers, and no server's name."""
    content = b"x" * (5 * 1024 * 1024) if "big" in path else b""
    answer = cloud.anyone.request(method, path, content=content)
    assert answer.status_code == status
    assert {name: answer.headers.get(name) for name in EXPECTED} == EXPECTED
    assert set(answer.headers["Content-Security-Policy"].split("; ")) == POLICY
    features = answer.headers["Permissions-Policy"].split(", ")
    assert all(re.fullmatch(r"[a-z-]+=\(\)", feature) for feature in features)
    assert {"camera=()", "geolocation=()", "microphone=()"} <= set(features)
    assert "server" not in answer.headers
    assert "Strict-Transport-Security" not in answer.headers


def test_other_origins_are_given_nothing(cloud):
    """A page of another origin gets no permission to read: there is no CORS header at all."""
    headers = {"Origin": "https://evil.example", "Access-Control-Request-Method": "GET"}
    for method in ("GET", "OPTIONS"):
        answer = cloud.anyone.request(method, "/v1/devices", headers=headers)
        assert not [name for name in answer.headers if name.startswith("access-control-")]


def test_https_is_insisted_on_where_it_is_offered(folder):
    """With an https public_url browsers are told to come back by https alone."""
    text = folder.config.read_text()
    folder.config.write_text('public_url = "https://fleet.example"\n' + "\n".join(
        line for line in text.splitlines() if not line.startswith("public_url")))  # fmt: skip
    cloud = RunningCloud(folder)
    try:
        answer = httpx.get(f"http://{cloud.config.listen}/healthz")
        assert answer.headers["Strict-Transport-Security"] == "max-age=31536000"
    finally:
        cloud.stop()
