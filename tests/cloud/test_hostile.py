"""Callers that mean harm: nothing without a token, no 500, no upload that contradicts itself."""

from __future__ import annotations

import json
import re
import threading

import httpx
import pytest

from edgefleet_cloud import compose
from edgefleet_shared.identifiers import sha256_digest
from tests.cloud.access_world import OPEN

DESCRIPTION = compose.api_description()
OPERATIONS = [
    (method.upper(), re.sub(r"\{[^}]*\}", "x", path), path)
    for path, methods in DESCRIPTION["paths"].items()
    for method in methods
]
BODIES = {"POST", "PUT", "PATCH"}
STRANGERS = [
    {},
    {"Authorization": "Bearer eft_guessed"},
    {"Authorization": "Basic YWRtaW46YWRtaW4="},
    {"Authorization": "DSSE cam-1.e30="},
]


def test_no_route_works_without_a_token(cloud):
    """Every route but the open ones answers 401, whatever else is sent, and 429 to who goes on."""
    wrong = []
    for method, path, template in OPERATIONS:
        if template in OPEN:
            continue
        for headers in STRANGERS:
            body = {"json": {}} if method in BODIES else {}
            answer = cloud.anyone.request(method, path, headers=headers, **body)
            if answer.status_code not in {401, 429}:
                wrong.append((method, template, headers, answer.status_code))
    assert wrong == []
    assert len(OPERATIONS) > 30
    assert {template for _, _, template in OPERATIONS} >= OPEN


NONSENSE = [
    b"",
    b"[" * 200_000,
    b'{"a":' * 100_000,
    b"9" * 10_000,
    b"\xff\xfe",
    b'{"id": "\\ud800", "name": "\\u0000"}',
    b'{"digest": "sha256:' + b"0" * 64 + b'", "size": 1e300}',
]


@pytest.mark.parametrize("body", NONSENSE, ids=range(len(NONSENSE)))
def test_nonsense_is_the_callers_fault(cloud, body):
    """Each route that takes a body answers nonsense with a problem of 4xx."""
    headers = {"Content-Type": "application/json", "If-Match": "*", "Upload-Offset": "0"}
    for method, path, template in OPERATIONS:
        if method in BODIES:
            answer = cloud.client.request(method, path, content=body, headers=headers)
            # A few routes need no body, and of such an action `x` is the name of nothing.
            assert 400 <= answer.status_code < 500, (method, template, answer.text)
            assert answer.headers["content-type"] == "application/problem+json"


WILD = ["\x00", "a" * 5000, "((((", "9" * 30, "-1", "1e400", "0000-01-01T00:00:00Z", "\U0001f4a5"]


def test_wild_parameters_are_the_callers_fault(cloud):
    """No value of any query parameter of any GET makes the server fail."""
    cloud.client.post("/v1/devices", json={"id": "x"})
    asked = 0
    for method, path, template in OPERATIONS:
        for parameter in DESCRIPTION["paths"][template][method.lower()].get("parameters", ()):
            if method != "GET" or parameter["in"] != "query":
                continue
            for value in WILD:
                answer = cloud.client.get(path, params={parameter["name"]: value})
                assert answer.status_code < 500, (path, parameter["name"], value, answer.text)
                asked += 1
    assert asked > 200


def _begin(cloud, data):
    made = cloud.client.post("/v1/uploads", json={"digest": sha256_digest(data), "size": len(data)})
    return made.json()["id"]


def test_an_upload_that_lost_its_file_begins_anew(cloud):
    """GET and PATCH agree on where it stands, so that whoever asks and goes on succeeds."""
    data = b"hello world"
    upload = _begin(cloud, data)
    (cloud.config.data / "uploads" / upload).unlink()
    assert cloud.client.get(f"/v1/uploads/{upload}").json()["offset"] == 0
    sent = cloud.client.patch(f"/v1/uploads/{upload}", content=data, headers={"Upload-Offset": "0"})
    assert (sent.status_code, sent.json()["state"]) == (200, "complete")


def test_many_senders_of_one_upload(cloud):
    """Of eight that send the same bytes at once one is let in; the blob is whole."""
    data = bytes(range(256)) * 8000
    upload, answers, gate = _begin(cloud, data), [], threading.Barrier(8)

    def send():
        with httpx.Client(base_url=cloud.url, headers=cloud.client.headers, timeout=30) as client:
            gate.wait()
            headers = {"Upload-Offset": "0"}
            answers.append(client.patch(f"/v1/uploads/{upload}", content=data, headers=headers))

    threads = [threading.Thread(target=send) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    codes = sorted(answer.json().get("code", "") for answer in answers)
    assert codes.count("") == 1
    assert set(codes) <= {"", "upload_busy", "wrong_offset", "upload_complete"}
    assert cloud.client.get(f"/v1/blobs/{sha256_digest(data)}").content == data
    assert list((cloud.config.data / "uploads").iterdir()) == []


def test_a_repeated_key_of_somebody_else_tells_nothing(cloud):
    """A stranger that repeats another's request by its key is refused before it is looked up."""
    body = json.dumps({"id": "cam-9"}).encode()
    headers = {"Idempotency-Key": "k1", "Content-Type": "application/json"}
    assert cloud.client.post("/v1/devices", content=body, headers=headers).status_code == 201
    for stranger in STRANGERS:
        answer = cloud.anyone.post("/v1/devices", content=body, headers={**headers, **stranger})
        assert answer.status_code == 401
