"""/v1/devices: register, look up, label, decommission."""

from __future__ import annotations

import msgspec
import pytest

from edgefleet_cloud.events.feed import EventFeed
from edgefleet_cloud.events.service import EventLog
from edgefleet_cloud.reports.ingest import Ingest
from edgefleet_shared.messages import OwnersLock
from tests.fakes.speaking_device import SpeakingDevice, digest, slot_report


@pytest.fixture
def three(cloud):
    """Three registered devices in two sites."""
    for name, site in (("cam-1", "berlin"), ("cam-2", "berlin"), ("cam-3", "paris")):
        body = {"id": name, "labels": {"site": site}, "hardware": "rpi5"}
        assert cloud.client.post("/v1/devices", json=body).status_code == 201
    return cloud


def test_a_device_is_registered_and_found(cloud):
    """What was posted is what GET answers, with an ETag, and an event tells of it."""
    body = {"id": "cam-1", "labels": {"site": "berlin"}}
    made = cloud.client.post("/v1/devices", json=body)
    assert made.status_code == 201
    got = cloud.client.get("/v1/devices/cam-1")
    assert got.json() == made.json()
    assert got.headers["etag"] == made.headers["etag"]
    assert got.json()["state"] == "registered"
    assert got.json()["hardware"] == "generic-x86_64"
    assert (got.json()["online"], got.json()["counter"], got.json()["slots"]) == (False, 0, {})
    (event,) = cloud.client.get("/v1/events", params={"filter": 'type like "device.*"'}).json()[
        "items"
    ]
    assert (event["type"], event["subject"], event["actor"]) == (
        "device.registered",
        "devices/cam-1",
        "token/admin",
    )


QUERIES = [
    ({}, ["cam-1", "cam-2", "cam-3"]),
    ({"filter": 'labels.site == "berlin"'}, ["cam-1", "cam-2"]),
    ({"filter": 'labels.site != "berlin" or id == "cam-1"'}, ["cam-1", "cam-3"]),
    ({"filter": "online == true"}, []),
    ({"filter": "exists(last_seen)"}, []),
    (
        {"filter": 'created > "2020-01-01T00:00:00Z"', "order_by": "id desc"},
        ["cam-3", "cam-2", "cam-1"],
    ),
    ({"page_size": 2}, ["cam-1", "cam-2"]),
]


def test_devices_are_listed(three):
    """Lists are filtered, ordered and cut into pages."""
    for query, expected in QUERIES:
        answer = three.client.get("/v1/devices", params=query)
        assert [each["id"] for each in answer.json()["items"]] == expected
        assert bool(answer.json()["next_page_token"]) is (query.get("page_size") == 2)


def test_the_owners_lock_is_shown(cloud):
    """Who locked it, why and until when, as the device reported it; its removal too."""
    device = SpeakingDevice("cam-1")
    with cloud.program.database.write() as session:
        session.add(device.row())
    ingest = Ingest(cloud.program.database, EventLog(EventFeed()))
    lock = OwnersLock("2026-01-01T00:00:00Z", "anna", "inspection", "2026-01-01T08:00:00Z")
    ingest.handle("cam-1", "reported", "", device.reported(1, locked=lock))
    assert cloud.client.get("/v1/devices/cam-1").json()["locked"] == msgspec.to_builtins(lock)
    (listed,) = cloud.client.get("/v1/devices").json()["items"]
    assert listed["locked"]["by"] == "anna"
    ingest.handle("cam-1", "reported", "", device.reported(2))
    assert cloud.client.get("/v1/devices/cam-1").json()["locked"] is None


def test_pages_follow_one_another(three):
    """The next page begins where the last ended."""
    first = three.client.get("/v1/devices", params={"page_size": 2}).json()
    query = {"page_size": 2, "page_token": first["next_page_token"]}
    second = three.client.get("/v1/devices", params=query).json()
    assert [each["id"] for each in second["items"]] == ["cam-3"]
    assert not second["next_page_token"]


def test_labels_are_patched(three):
    """A label that is null goes, a new one comes, the rest stays; the ETag moves on."""
    etag = three.client.get("/v1/devices/cam-1").headers["etag"]
    change = {"labels": {"site": None, "floor": "2"}, "hardware": "nano"}
    changed = three.client.patch("/v1/devices/cam-1", json=change, headers={"If-Match": etag})
    assert changed.status_code == 200
    assert changed.json()["labels"] == {"floor": "2"}
    assert changed.json()["hardware"] == "nano"
    assert changed.headers["etag"] != etag
    again = three.client.patch("/v1/devices/cam-1", json=change, headers={"If-Match": etag})
    assert (again.status_code, again.json()["code"]) == (412, "precondition_failed")
    without = three.client.patch("/v1/devices/cam-1", json=change)
    assert (without.status_code, without.json()["code"]) == (428, "precondition_required")


def test_a_decommissioned_device_is_out_for_good(three):
    """It stays readable, cannot be changed, and its id is not given again."""
    gone = three.client.delete("/v1/devices/cam-1")
    assert gone.json()["state"] == "decommissioned"
    assert three.client.delete("/v1/devices/cam-1").status_code == 200
    patch = three.client.patch("/v1/devices/cam-1", json={}, headers={"If-Match": "*"})
    assert (patch.status_code, patch.json()["code"]) == (409, "decommissioned")
    again = three.client.post("/v1/devices", json={"id": "cam-1"})
    assert (again.status_code, again.json()["code"]) == (409, "device_exists")
    events = three.client.get("/v1/events", params={"filter": 'type == "device.decommissioned"'})
    assert len(events.json()["items"]) == 1


BAD_DEVICES = [
    ({"id": "Cam"}, "invalid_name"),
    ({"id": "a/b"}, "invalid_name"),
    ({"id": "cam-9", "labels": {"Site": "x"}}, "invalid_label"),
    ({"id": "cam-9", "labels": {"site": "x\ny"}}, "invalid_label"),
    ({"id": "cam-9", "labels": {"site": "x" * 129}}, "invalid_label"),
    ({"id": "cam-9", "labels": {f"k{i}": "" for i in range(65)}}, "invalid_label"),
    ({"id": "cam-9", "labels": {"site": 3}}, "validation"),
    ({"id": "cam-9", "hardware": "a b"}, "invalid_hardware"),
    ({"id": "cam-9", "owner": "me"}, "validation"),
    ({}, "validation"),
    ([], "validation"),
]


def test_a_bad_device_is_refused(cloud):
    """Each gets its problem and nothing half-written: the list stays empty."""
    for body, code in BAD_DEVICES:
        answer = cloud.client.post("/v1/devices", json=body)
        assert (answer.status_code, answer.json()["code"]) == (422, code), body
    assert cloud.client.get("/v1/devices").json()["items"] == []


BAD_REQUESTS = [
    ("GET", "/v1/devices/absent", 404, "not_found"),
    ("DELETE", "/v1/devices/absent", 404, "not_found"),
    ("PATCH", "/v1/devices/absent", 404, "not_found"),
    ("GET", "/v1/devices/absent/state", 404, "not_found"),
    ("GET", "/v1/devices?filter=site%3D%3D1", 400, "invalid_filter"),
    ("GET", "/v1/devices?filter=labels.x%20%3D%3D%201", 400, "invalid_filter"),
    ("GET", "/v1/devices?order_by=labels", 400, "order_by"),
    ("GET", "/v1/devices?page_token=x", 400, "page_token"),
    ("GET", f"/v1/devices?filter={'x' * 2001}", 422, "validation"),
]


def test_bad_requests_say_why(cloud):
    """Each wrong request gets its problem, and says what to do."""
    for method, path, status, code in BAD_REQUESTS:
        body = {"labels": {}} if method == "PATCH" else None
        answer = cloud.client.request(method, path, json=body)
        assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
        assert answer.json()["hint"]


def test_a_bad_filter_in_the_api_tells_the_position(cloud):
    """The problem carries the offset for a user interface to mark."""
    answer = cloud.client.get("/v1/devices", params={"filter": 'id = "x"'})
    assert answer.json()["position"] == 3
    assert "==" in answer.json()["hint"]


def test_state_shows_both_sides(cloud):
    """What was reported stands beside what is desired."""
    device = SpeakingDevice("cam-1")
    reported = {"counter": 0, "slots": {"digits": {"active": digest("1.0.0")}}}
    with cloud.program.database.write() as session:
        session.add(device.row(reported=reported, reported_at="2026-01-31T12:00:00.000Z"))
    state = cloud.client.get("/v1/devices/cam-1/state").json()
    assert state == {
        "desired": {"counter": 0, "slots": {}},
        "reported": reported,
        "in_sync": True,
        "reported_at": "2026-01-31T12:00:00.000Z",
    }
    assert cloud.client.get("/v1/devices/cam-1").json()["slots"] == reported["slots"]


def test_in_sync_means_every_desired_slot_runs():
    """A device that lags, refused or runs something else is not in sync."""
    from edgefleet_cloud.devices.schemas import in_sync
    from edgefleet_shared.messages import SlotAssignment

    def slot(mode: str, version: str) -> SlotAssignment:
        return SlotAssignment(mode, "d", "digits", version, digest(version), 1, 1)

    runs = {"counter": 3, "slots": {"digits": {"active": slot_report("1.0.0").active}}}
    assert in_sync(runs, 3, {"digits": slot("run", "1.0.0")})
    assert not in_sync(runs, 4, {"digits": slot("run", "1.0.0")})
    assert not in_sync(runs, 3, {"digits": slot("run", "2.0.0")})
    assert not in_sync(runs, 3, {"digits": slot("stop", "1.0.0")})
    assert in_sync({"counter": 3, "slots": {}}, 3, {"digits": slot("stop", "1.0.0")})
    assert not in_sync(None, 1, {"digits": slot("run", "1.0.0")})
