"""Scopes: whoever holds a role within Berlin neither sees nor touches what is in Paris."""

from __future__ import annotations

import re
import threading
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import httpx
import pytest

from edgefleet_cloud.auth.guards import Allow
from edgefleet_cloud.auth.roles import FLEET_WIDE
from edgefleet_cloud.reports.ingest import Ingest
from edgefleet_shared import access
from tests.cloud.access_world import caller, routes
from tests.cloud.running import RunningCloud
from tests.cloud.test_history import at
from tests.fakes.speaking_device import SpeakingDevice, receipt, window
from tests.fleet_folder import FleetFolder, small_package
from tests.http_device import csr, new_key

BERLIN, PARIS = "labels.site == 'berlin'", "labels.site == 'paris'"


def _devices(cloud):
    """Enrol two devices a site, each of which has swapped once and answered."""
    ingest = cloud.program.app.state.parts.get(Ingest)
    for name in ("ber-1", "ber-2", "par-1", "par-2"):
        device = SpeakingDevice(name)
        site = {"ber": "berlin", "par": "paris"}[name[:3]]
        with cloud.program.database.write() as session:
            session.add(device.row(labels={"site": site}))
        ingest.handle(name, "ev", "receipts", device.batch("receipts", {1: receipt("1", at(0))}))
        seen = device.batch("telemetry", {1: window("1")}, dropped=1)
        ingest.handle(name, "ev", "telemetry", seen)


def _roll_out(client, **wish):
    body = {"model": "digits", "version": "1.0.0", "start": False, **wish}
    made = client.post("/v1/rollouts", json=body)
    assert made.status_code == 201, made.text
    return made.json()["id"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A fleet in two cities, with callers of each and a rollout in each and in both."""
    cloud = RunningCloud(FleetFolder(tmp_path_factory.mktemp("scopes") / "fleet"))
    assert cloud.publish(*small_package("1.0.0", 1)).status_code == 201
    _devices(cloud)
    made = SimpleNamespace(
        cloud=cloud,
        admin=cloud.client,
        viewer=caller(cloud, "ber-viewer", "viewer", BERLIN),
        operator=caller(cloud, "ber-operator", "operator", BERLIN),
        provisioner=caller(cloud, "ber-provisioner", "provisioner", BERLIN),
        half_admin=caller(cloud, "ber-admin", "admin", BERLIN),
        paris=caller(cloud, "the-other-operator", "operator", PARIS),
    )
    made.in_berlin = _roll_out(made.operator)
    made.in_paris = _roll_out(made.paris, reason="only for par-1 and par-2")
    made.in_both = _roll_out(made.admin)
    made.paris.post("/v1/groups", json={"name": "par-group", "selector": PARIS})
    made.admin.post("/v1/groups", json={"name": "everything", "selector": "id like '*'"})
    made.operator.post("/v1/groups", json={"name": "ber-group", "selector": "id like '*'"})
    yield made
    cloud.stop()


def _deployment_in_paris(world):
    rows = world.admin.get("/v1/device-deployments", params={"filter": "device == 'par-1'"}).json()
    return rows["items"][0]["id"]


def _filled(world, path):
    """Return a path with what Paris has in the place of each parameter."""
    known = {
        "device_id": "par-1",
        "rollout_id": world.in_paris,
        "deployment_id": _deployment_in_paris(world),
    }
    if path.startswith("/v1/groups/"):
        known["name"] = "par-group"
    else:
        known |= {"name": "digits", "version": "1.0.0"}
    return re.sub(r"\{(\w+)\}", lambda found: known.get(found[1], "absent"), path)


READS = [
    route
    for route in routes()
    if route.method == "GET"
    and isinstance(route.guards[0], Allow)
    and route.guards[0].permission.endswith(".read")
    and route.guards[0].permission not in FLEET_WIDE
]


@pytest.mark.parametrize("route", READS, ids=lambda route: route.path)
def test_nothing_of_paris_is_read_in_berlin(world, route):
    """No route that reads shows a name from outside; what is asked for by name is not found."""
    path = _filled(world, route.path)
    answer = world.viewer.get(path, params={"page_size": 500} if path == route.path else {})
    if re.search(r"\{(device|rollout|deployment)_id\}|groups/\{name\}", route.path):
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), answer.text
        absent = re.sub(r"par-1|par-group|[0-9a-f]{8}-[0-9a-f-]{27}", "absent", path)
        as_absent = world.viewer.get(absent)
        # What is outside and what does not exist at all are told in the same words.
        assert as_absent.status_code == 404
        assert _words(answer, path) == _words(as_absent, absent)
        return
    assert answer.status_code not in {401, 403, 500}, answer.text
    assert "par-" not in answer.text, answer.text
    assert "paris" not in answer.text


def _words(answer, path):
    body = answer.json()
    name = re.escape(path.split("/")[3])
    return re.sub(name, "X", body["detail"]), body["hint"], body["code"]


WRITES = [
    route
    for route in routes()
    if route.method not in {"GET", "HEAD"}
    and re.search(r"\{(device|rollout|deployment)_id\}|groups/\{name\}", route.path)
    and isinstance(route.guards[0], Allow)
]


@pytest.mark.parametrize("route", WRITES, ids=lambda route: f"{route.method} {route.path}")
def test_nothing_of_paris_is_changed_from_berlin(world, route):
    """What is outside cannot be changed, by an admin of Berlin neither: it is not there."""
    body = {"selector": "id like '*'"} if route.method == "PUT" else {}
    path = _filled(world, route.path)
    answer = world.half_admin.request(route.method, path, json=body, headers={"If-Match": "*"})
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), answer.text


@pytest.mark.parametrize(
    "wish",
    [
        {},
        {"selector": "id like '*'"},
        {"selector": f"{PARIS} or {BERLIN}"},
        {"selector": "labels.site != 'berlin' or id like '*'"},
        {"group": "everything"},
        {"group": "ber-group"},
    ],
)
def test_waves_are_the_selector_and_the_scope(world, wish):
    """However wide the selection, the frozen waves and the plan hold devices of Berlin alone."""
    plan = world.operator.post(
        "/v1/rollouts", json={"model": "digits", "version": "1.0.0", "dry_run": True, **wish}
    )
    assert plan.status_code == 200, plan.text
    assert "par-" not in plan.text
    made = world.admin.get(f"/v1/rollouts/{_roll_out(world.operator, **wish)}").json()
    assert sorted(made["waves"][0]["devices"]) == ["ber-1", "ber-2"]


@pytest.mark.parametrize(
    ("wish", "code", "says"),
    [
        ({"selector": PARIS}, "no_devices", "No device matches"),
        ({"devices": ["ber-1", "par-1", "par-2"]}, "unknown_device", "2 of the 3 named devices"),
        ({"devices": ["par-1"]}, "unknown_device", "There is no device 'par-1'"),
        ({"group": "par-group"}, "unknown_group", "There is no group 'par-group'"),
        ({"waves": [{"name": "all", "devices": ["par-1"]}]}, "unknown_device", "no device"),
        (
            {"selector": BERLIN, "waves": [{"name": "a", "devices": ["par-1"]},
                                           {"name": "b", "rest": True}]},
            "waves",
            "not among the rollout's devices",
        ),
    ],
)  # fmt: skip
def test_a_rollout_to_devices_outside_is_refused(world, wish, code, says):
    """Devices outside that are named are unknown, just as ones that do not exist."""
    body = {"model": "digits", "version": "1.0.0", "start": False, **wish}
    answer = world.operator.post("/v1/rollouts", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, code), answer.text
    assert says in answer.json()["detail"]


@pytest.mark.parametrize("verb", ["start", "pause", "resume", "stop", "rollback"])
def test_a_rollout_that_reaches_beyond_is_seen_in_part_and_not_steered(world, verb):
    """Of a rollout in both cities Berlin sees its own devices; it may not move it."""
    seen = world.operator.get(f"/v1/rollouts/{world.in_both}").json()
    assert sorted(seen["waves"][0]["devices"]) == ["ber-1", "ber-2"]
    assert seen["counts"] == {"assigned": 2}
    assert not set(seen["waves"][0]["unreachable"]) - {"ber-1", "ber-2"}
    answer = world.operator.post(f"/v1/rollouts/{world.in_both}/{verb}", json={})
    assert (answer.status_code, answer.json()["code"]) == (403, "outside_scope")
    assert answer.json()["detail"].startswith("2 devices of this rollout")


def test_groups_made_within_a_scope_stay_within_it(world):
    """A group of Berlin means no device of Paris, whoever asks, whatever its selector says."""
    members = world.admin.get("/v1/groups/ber-group/devices").json()["items"]
    assert [each["id"] for each in members] == ["ber-1", "ber-2"]
    shared = world.operator.get("/v1/groups/everything/devices").json()["items"]
    assert [each["id"] for each in shared] == ["ber-1", "ber-2"]
    names = [each["name"] for each in world.viewer.get("/v1/groups").json()["items"]]
    assert names == ["ber-group", "everything"]
    for method, body in (("PUT", {"selector": BERLIN}), ("DELETE", None)):
        answer = world.operator.request(
            method, "/v1/groups/everything", json=body, headers={"If-Match": "*"}
        )
        assert (answer.status_code, answer.json()["code"]) == (403, "outside_scope")


def test_a_device_can_be_neither_pushed_out_nor_made_outside(world):
    """Labels may not leave the scope of who sets them, and no device is registered outside."""
    match = {"If-Match": "*"}
    for change in ({"labels": {"site": "paris"}}, {"labels": {"site": None}}):
        answer = world.operator.patch("/v1/devices/ber-1", json=change, headers=match)
        assert (answer.status_code, answer.json()["code"]) == (403, "outside_scope"), change
    kept = world.admin.get("/v1/devices/ber-1").json()
    assert kept["labels"] == {"site": "berlin"}
    fine = world.operator.patch("/v1/devices/ber-1", json={"labels": {"line": "3"}}, headers=match)
    assert fine.status_code == 200
    for labels, status in (({"site": "paris"}, 403), ({}, 403), ({"site": "berlin"}, 201)):
        body = {"id": f"ber-{len(labels)}{status}", "labels": labels}
        assert world.provisioner.post("/v1/devices", json=body).status_code == status, labels


def test_filters_do_not_widen_a_scope(world):
    """A filter is read by itself before the scope is added: no quoting or `or` gets out of it."""
    for text in (
        "id like '*' or labels.site == 'paris'",
        "not (labels.site == 'berlin')",
        "labels.site != 'berlin'",
        "id in ('par-1', 'par-2', 'ber-1')",
        "exists(labels.site) or not exists(labels.site)",
    ):
        answer = world.viewer.get("/v1/devices", params={"filter": text, "page_size": 500})
        assert answer.status_code == 200, answer.text
        assert "par-" not in answer.text, text
        verdict = world.viewer.post("/v1/selectors/validate", json={"filter": text}).json()
        assert verdict["devices"] <= 3, text
    for text in ("id == 'x') or (id like '*'", "labels.site == 'berlin' --", "'; drop table"):
        assert world.viewer.get("/v1/devices", params={"filter": text}).status_code == 400


def test_a_page_token_of_somebody_else_shows_no_more(world):
    """A cursor from the admin's list only says where to go on."""
    page = world.admin.get("/v1/devices", params={"page_size": 1}).json()["next_page_token"]
    answer = world.viewer.get("/v1/devices", params={"page_size": 1, "page_token": page})
    assert "par-" not in answer.text


def test_telemetry_counts_the_devices_within(world):
    """Merged figures are those of Berlin's devices; the devices of a version are Berlin's."""
    (item,) = world.viewer.get("/v1/telemetry").json()["items"]
    (whole,) = world.admin.get("/v1/telemetry").json()["items"]
    assert (item["devices"], whole["devices"]) == (2, 4)
    assert item["requests"] * 2 == whole["requests"]
    assert world.viewer.get("/v1/telemetry", params={"device": "par-1"}).json() == {
        "items": [],
        "gaps": [],
    }


def test_the_stream_of_events_is_narrowed(world):
    """The stream from the first event on tells Berlin's events and ends with the token."""
    client = caller(world.cloud, "ber-listener", "viewer", BERLIN)
    seen: list[str] = []
    ended = threading.Event()

    def listen():
        headers = {"Accept": "text/event-stream", "Last-Event-ID": "0"}
        with client.stream("GET", "/v1/events", headers=headers) as answer:
            seen.extend(answer.iter_lines())
        ended.set()

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    match = {"If-Match": "*"}
    for device in ("par-1", "ber-2"):
        change = {"labels": {"told": "now"}}
        assert world.admin.patch(f"/v1/devices/{device}", json=change, headers=match).is_success
    while not any('"told"' in line for line in list(seen)):
        assert not ended.wait(0.02)
    world.admin.delete("/v1/tokens/ber-listener")
    assert ended.wait(10), "the stream outlived its token"
    thread.join()
    text = "\n".join(seen)
    assert "devices/ber-2" in text
    assert f"rollouts/{world.in_berlin}" not in text or "par-" not in text
    for hidden in ("par-", world.in_both, world.in_paris, "tokens/"):
        assert hidden not in text, hidden


def test_a_publisher_may_be_held_to_models(world):
    """A publisher's scope is over models; another model is refused before anything is read."""
    client = caller(world.cloud, "digits-ci", "publisher", "model == 'digits'")
    assert client.post("/v1/models", json={"name": "audio"}).status_code == 403
    body = {"version": "1.0.0", "manifest": "sha256:" + "0" * 64, "metadata": ""}
    refused = client.post("/v1/models/audio/versions", json=body)
    assert (refused.status_code, refused.json()["code"]) == (403, "outside_scope")
    allowed = client.post("/v1/models/digits/versions", json=body)
    assert allowed.json()["code"] == "version_exists"


def test_a_group_ticket_reaches_no_device_outside(world):
    """The id that a device chooses and the labels that another has do not lead out of the scope."""
    narrow = f"{BERLIN} and id != 'ber-vault' and not exists(labels.secret)"
    client = caller(world.cloud, "ber-narrow", "provisioner", narrow)
    labels = {"site": "berlin"}
    for device, more in (("ber-known", {}), ("ber-hidden", {"secret": "yes"})):
        body = {"id": device, "labels": labels | more}
        assert world.admin.post("/v1/devices", json=body).status_code == 201
    wish = {"prefix": "ber", "limit": 9, "labels": labels}
    outside = client.post("/v1/group-tickets", json=wish | {"labels": {"site": "paris"}})
    assert (outside.status_code, outside.json()["code"]) == (403, "outside_scope")
    made = client.post("/v1/group-tickets", json=wish)
    assert made.status_code == 201, made.text
    for device, status in (
        ("ber-vault", 403), ("ber-hidden", 403), ("ber-known", 201), ("ber-new", 201),
    ):  # fmt: skip
        body = {"ticket": made.json()["ticket"], "csr": csr(new_key()), "device": device}
        answer = world.cloud.anyone.post("/v1/enrollments", json=body)
        assert answer.status_code == status, (device, answer.text)
    assert world.admin.get("/v1/devices/ber-vault").status_code == 404
    assert world.admin.get("/v1/devices/ber-hidden").json()["state"] == "registered"


def test_devices_hold_no_role(world):
    """A device's signed statement opens blobs, and nothing else."""
    device = SpeakingDevice("ber-9")
    with world.cloud.program.database.write() as session:
        session.add(device.row(labels={"site": "berlin"}))
    until = datetime.now(UTC) + timedelta(hours=1)
    here = access.origin(world.cloud.url)
    header = access.header("demo", "ber-9", here, until, device.signer)
    with httpx.Client(base_url=world.cloud.url, headers={"Authorization": header}) as client:
        for route in routes():
            if not isinstance(route.guards[0], Allow):
                continue
            path = re.sub(r"\{[^}]*\}", "sha256:" + "0" * 64, route.path)
            answer = client.request(route.method, path, json={})
            expected = {403, 404} if route.guards[0].devices else {403}
            assert answer.status_code in expected, (route.method, route.path, answer.text)
