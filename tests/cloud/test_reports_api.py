"""Tickets, enrolment, receipts, history and telemetry over HTTP."""

from __future__ import annotations

import base64
from urllib.parse import quote

import msgspec
import pytest

from edgefleet_cloud.reports.ingest import Ingest
from edgefleet_shared import histogram
from edgefleet_shared.identifiers import sha256_digest
from edgefleet_shared.messages import TrialResult
from tests.cloud.test_enrollments import csr
from tests.cloud.test_history import at
from tests.fakes.speaking_device import SpeakingDevice, digest, receipt, window
from tests.fleet_folder import small_package


@pytest.fixture
def cam(cloud):
    """An enrolled device that has swapped twice and answered twenty requests."""
    device = SpeakingDevice("cam-1")
    with cloud.program.database.write() as session:
        session.add(device.row())
    ingest = cloud.program.app.state.parts.get(Ingest)
    swaps = {1: receipt("1.0.0", at(0)), 3: receipt("2.0.0", at(10), failed=0)}
    ingest.handle("cam-1", "ev", "receipts", device.batch("receipts", swaps))
    windows = {1: window("1.0.0"), 2: window("1.0.0", start=at(1), end=at(2))}
    ingest.handle("cam-1", "ev", "telemetry", device.batch("telemetry", windows, dropped=1))
    return device


def _items(cloud, path, **query):
    answer = cloud.client.get(path, params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()["items"]


def test_receipts_are_listed(cloud, cam):
    """By device and slot, by filter, oldest first, as the device wrote them."""
    found = _items(cloud, "/v1/receipts", device="cam-1", slot="digits")
    assert [each["to_version"] for each in found] == ["1.0.0", "2.0.0"]
    assert found[0]["p99_us_during"] == 900
    assert found[0]["p50_us_before"] is None
    assert len(_items(cloud, "/v1/receipts")) == 2
    assert _items(cloud, "/v1/receipts", device="cam-2") == []
    (second,) = _items(cloud, "/v1/receipts", filter='to_version == "2.0.0" and failed == 0')
    assert second["to_digest"] == digest("2.0.0")
    page = cloud.client.get("/v1/receipts", params={"page_size": 1}).json()
    (next_one,) = _items(cloud, "/v1/receipts", page_size=1, page_token=page["next_page_token"])
    assert next_one["to_version"] == "2.0.0"


def test_a_receipt_brings_stand_in_and_canary(cloud, cam):
    """As the device wrote them; a result that cannot be is refused, and nothing else with it."""
    canary = TrialResult(10, 60, "pass", 30, 0, 0, 0, 410, 270, 400)
    wrong = msgspec.structs.replace(canary, requests=-1)
    batch = {
        4: receipt("3.0.0", at(20), way="stand_in", stand_in="small", stand_in_requests=7),
        5: receipt("4.0.0", at(30), canary=canary),
        6: receipt("5.0.0", at(40), canary=wrong),
    }
    ingest = cloud.program.app.state.parts.get(Ingest)
    ingest.handle("cam-1", "ev", "receipts", cam.batch("receipts", batch))
    stood, tried = _items(cloud, "/v1/receipts", device="cam-1")[2:]
    assert (stood["way"], stood["stand_in"], stood["stand_in_requests"]) == ("stand_in", "small", 7)
    assert (stood["canary"], tried["canary"]) == (None, msgspec.to_builtins(canary))


def test_history_is_told(cloud, cam):
    """Ever, and at one time."""
    found = _items(cloud, "/v1/devices/cam-1/history", slot="digits")
    assert [(each["version"], each["from"], each["to"]) for each in found] == [
        ("1.0.0", at(0), at(10)),
        ("2.0.0", at(10), None),
    ]
    (then,) = _items(cloud, "/v1/devices/cam-1/history", at=at(3))
    assert (then["digest"], then["device"]) == (digest("1.0.0"), "cam-1")


def test_the_devices_of_a_version_are_found(cloud, cam):
    """A published version names its devices, at a time and now."""
    manifest, data, blobs = small_package("1.0.0")
    assert cloud.publish(manifest, data, blobs).status_code == 201
    path = "/v1/models/digits/versions/1.0.0/devices"
    assert _items(cloud, path) == []
    real = receipt("x", at(20))
    real = type(real)(**{**_fields(real), "to_digest": sha256_digest(data), "to_version": "1.0.0"})
    batch = cam.batch("receipts", {4: real})
    cloud.program.app.state.parts.get(Ingest).handle("cam-1", "ev", "receipts", batch)
    (found,) = _items(cloud, path)
    assert (found["device"], found["from"], found["to"]) == ("cam-1", at(20), None)
    assert _items(cloud, path, at=at(19)) == []
    missing = cloud.client.get("/v1/models/digits/versions/9.0.0/devices")
    assert (missing.status_code, missing.json()["code"]) == (404, "not_found")


def _fields(struct):
    return {name: getattr(struct, name) for name in struct.__struct_fields__}


def test_telemetry_is_merged_and_gaps_are_named(cloud, cam):
    """Counts, quantiles and buckets of a digest, and what has not arrived."""
    found = cloud.client.get("/v1/telemetry", params={"slot": "digits"}).json()
    (item,) = found["items"]
    assert (item["version"], item["devices"], item["requests"]) == ("1.0.0", 1, 20)
    assert item["latency"] == {"20": 20}
    assert item["p50_us"] == round(histogram.quantile_ns({20: 20}, 0.5) / 1000)
    assert {(gap["stream"], gap["missing"], gap["dropped"]) for gap in found["gaps"]} == {
        ("receipts", 1, 0),
        ("telemetry", 0, 1),
    }
    later = cloud.client.get("/v1/telemetry", params={"from": at(5), "device": "cam-2"}).json()
    assert later == {"items": [], "gaps": []}


BAD_REQUESTS = [
    ("GET", "/v1/devices/absent/history", None, 404, "not_found"),
    ("GET", "/v1/devices/cam-1/history?at=noon", None, 422, "time_span"),
    ("GET", "/v1/devices/cam-1/history?order_by=x", None, 400, "order_by"),
    ("GET", "/v1/devices/cam-1/history?page_token=x", None, 400, "page_token"),
    ("GET", "/v1/models/absent/versions/1.0.0/devices", None, 404, "not_found"),
    ("GET", "/v1/receipts?filter=x", None, 400, "invalid_filter"),
    ("GET", "/v1/receipts?page_size=0", None, 422, "validation"),
    ("GET", "/v1/telemetry?from=noon", None, 422, "time_span"),
    ("GET", f"/v1/telemetry?from={quote(at(2))}&to={quote(at(1))}", None, 422, "time_span"),
    ("POST", "/v1/devices/absent/tickets", {}, 404, "not_found"),
    ("POST", "/v1/devices/cam-1/tickets", {"valid_hours": 0}, 422, "validation"),
    ("POST", "/v1/devices/cam-1/tickets", {"valid_hours": 9999}, 422, "validation"),
    ("POST", "/v1/devices/cam-1/tickets", {"hours": 1}, 422, "validation"),
    ("POST", "/v1/enrollments", {}, 422, "validation"),
    ("POST", "/v1/enrollments", {"ticket": "x", "csr": "x"}, 422, "invalid_csr"),
    ("POST", "/v1/enrollments", {"ticket": "x" * 9000, "csr": "x"}, 422, "validation"),
]


def test_bad_requests_say_why(cloud, cam):
    """Each wrong request gets its problem, and says what to do."""
    for method, path, body, status, code in BAD_REQUESTS:
        answer = cloud.client.request(method, path, json=body)
        assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
        assert answer.json()["hint"]


def test_only_enrolment_is_open(cloud):
    """Everything else needs a token; enrolment is authorised by its ticket."""
    for method, path in (
        ("GET", "/v1/devices"),
        ("POST", "/v1/devices"),
        ("POST", "/v1/devices/cam-1/tickets"),
        ("DELETE", "/v1/devices/cam-1"),
        ("GET", "/v1/groups"),
        ("POST", "/v1/selectors/validate"),
        ("GET", "/v1/events"),
        ("GET", "/v1/receipts"),
        ("GET", "/v1/telemetry"),
        ("GET", "/v1/devices/cam-1/history"),
    ):
        answer = cloud.anyone.request(method, path, json={})
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated"), path
    answer = cloud.anyone.post("/v1/enrollments", json={"ticket": "x", "csr": csr()})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_ticket")


def test_a_device_enrols_over_http_once(cloud):
    """Registered, given a ticket, it exchanges it for a certificate without a token; then never."""
    cloud.client.post("/v1/devices", json={"id": "cam-1"})
    made = cloud.client.post("/v1/devices/cam-1/tickets", json={"valid_hours": 1})
    assert made.status_code == 201
    assert made.json()["not_after"].endswith("Z")
    body = {"ticket": made.json()["ticket"], "csr": csr()}
    done = cloud.anyone.post("/v1/enrollments", json=body)
    assert done.status_code == 201, done.text
    answer = done.json()
    assert (answer["fleet"], answer["device"], answer["counter"]) == ("demo", "cam-1", 0)
    assert answer["transport"]["kind"] == "mqtt"
    assert answer["blobs"] == f"{cloud.url}/v1/blobs"
    root = (cloud.folder.metadata / "1.root.json").read_bytes()
    assert base64.b64decode(answer["root"]) == root
    lost_answer = cloud.anyone.post("/v1/enrollments", json=body)
    assert lost_answer.status_code == 201
    again = cloud.anyone.post("/v1/enrollments", json={**body, "csr": csr()})
    assert (again.status_code, again.json()["code"]) == (403, "ticket_refused")
    device = cloud.client.get("/v1/devices/cam-1").json()
    assert device["state"] == "enrolled"
    assert device["key"].startswith("sha256:")
    kinds = [each["type"] for each in _items(cloud, "/v1/events", filter='type like "device.*"')]
    enrolled = ["device.enrolled", "device.enrolled"]  # the lost answer, too, was a certificate
    assert kinds == ["device.registered", "device.ticket", *enrolled]
