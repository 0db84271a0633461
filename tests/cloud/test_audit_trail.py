"""Every change is an event: with its actor, its reason, and what was and is."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime

import httpx
import pytest

from edgefleet_cloud import compose
from edgefleet_cloud.audit import configuration
from edgefleet_cloud.config import Broker, Config
from edgefleet_provisioning.key_changes import Changes
from edgefleet_provisioning.present import read_present
from edgefleet_shared import reasons
from edgefleet_shared.identifiers import sha256_digest
from tests.cloud.test_iothub_enrollment import start, table
from tests.fleet_folder import small_package
from tests.http_device import HttpDevice, new_key

REASON = "so that it is tried"
WRITES = {"post", "put", "patch", "delete"}
CHANGES_NOTHING = {
    ("post", "/v1/selectors/validate"),
    ("post", "/v1/iothubs/{name}/devices/{device_id}/ping"),
}
OPERATIONS = {
    (method, path)
    for path, methods in compose.api_description()["paths"].items()
    for method in methods
    if method in WRITES
} - CHANGES_NOTHING


@pytest.fixture
def cloud(folder):
    """A fleet manager that has a hub beside its broker."""
    running = start(folder, table(folder, "main"))
    yield running
    running.stop()


class World:
    """A running fleet manager, and one call of each of its writing routes that succeeds."""

    def __init__(self, cloud) -> None:
        self.cloud = cloud
        self.http: httpx.Client = cloud.client
        self.http.headers[reasons.HEADER] = REASON
        self.manifest, self.data, self.blobs = small_package()
        self.device = HttpDevice(cloud)
        cloud.anyone.headers[reasons.HEADER] = REASON
        self.ticket = ""
        self.group_ticket = ""
        self.rollout = ""
        self.upload = ""
        self.actor = "token/admin"

    def post(self, path: str, body: object = None) -> httpx.Response:
        """POST a document."""
        return self.http.post(path, json=body)

    def matched(self, method: str, path: str, body: object) -> httpx.Response:
        """Change a resource as it now is."""
        tag = self.http.get(path).headers["ETag"]
        return self.http.request(method, path, json=body, headers={"If-Match": tag})

    def register(self) -> httpx.Response:
        """Register the device."""
        return self.post("/v1/devices", {"id": "cam-1", "labels": {"site": "a"}})

    def make_ticket(self) -> httpx.Response:
        """Make the device's ticket."""
        answer = self.post("/v1/devices/cam-1/tickets", {"valid_hours": 1})
        self.ticket = answer.json()["ticket"]
        return answer

    def make_group_ticket(self) -> httpx.Response:
        """Make a ticket for several devices."""
        answer = self.post("/v1/group-tickets", {"prefix": "cam", "limit": 2})
        self.group_ticket = answer.json()["id"]
        return answer

    def enroll(self) -> httpx.Response:
        """Enrol the device, as itself."""
        self.actor = "devices/cam-1"
        return self.device.enroll(self.ticket)

    def renew(self) -> httpx.Response:
        """Renew the device's key, as itself."""
        self.actor = "devices/cam-1"
        return self.device.renew(self.device.renewal(new_key()))

    def begin_upload(self) -> httpx.Response:
        """Begin to upload two bytes."""
        answer = self.post("/v1/uploads", {"digest": sha256_digest(b"ab"), "size": 2})
        self.upload = answer.json()["id"]
        return answer

    def end_upload(self) -> httpx.Response:
        """Send them."""
        return self.http.patch(
            f"/v1/uploads/{self.upload}", content=b"ab", headers={"Upload-Offset": "0"}
        )

    def publish(self) -> httpx.Response:
        """Publish a version."""
        return self.cloud.publish(self.manifest, self.data, self.blobs)

    def delegate(self) -> httpx.Response:
        """Bring new targets."""
        folder = self.cloud.folder
        present = {path.name: path.read_bytes() for path in folder.metadata.iterdir()}
        changes = Changes(read_present(present, present["1.root.json"]), datetime.now(UTC))
        changes.renew("targets")
        ((name, metadata),) = changes.finish().items()
        for key in ("targets-1", "targets-2"):
            metadata.sign(folder.signer(key), append=True)
        files = {name: base64.b64encode(metadata.to_bytes()).decode()}
        return self.post("/v1/trust/metadata", {"files": files})

    def make_rollout(self) -> httpx.Response:
        """Make a rollout and leave it a draft."""
        body = {
            "model": "digits", "version": "1.0.0", "devices": ["cam-1"], "start": False,
            "waves": [{"name": "all", "rest": True}],
        }  # fmt: skip
        answer = self.post("/v1/rollouts", body)
        self.rollout = answer.json()["id"]
        return answer

    def steer(self, verb: str) -> httpx.Response:
        """Start, pause, resume or stop the rollout."""
        return self.post(f"/v1/rollouts/{self.rollout}/{verb}", {})


# In an order in which each can succeed.
CALLS = {
    ("post", "/v1/groups"): lambda w: w.post(
        "/v1/groups", {"name": "berlin", "selector": "labels.site == 'a'"}
    ),
    ("put", "/v1/groups/{name}"): lambda w: w.matched(
        "PUT", "/v1/groups/berlin", {"selector": "labels.site == 'b'"}
    ),
    ("delete", "/v1/groups/{name}"): lambda w: w.http.delete("/v1/groups/berlin"),
    ("post", "/v1/devices"): World.register,
    ("patch", "/v1/devices/{device_id}"): lambda w: w.matched(
        "PATCH", "/v1/devices/cam-1", {"labels": {"site": "b"}}
    ),
    ("post", "/v1/devices/{device_id}/tickets"): World.make_ticket,
    ("post", "/v1/enrollments"): World.enroll,
    ("post", "/v1/devices/{device_id}/renew"): lambda w: w.post("/v1/devices/cam-1/renew"),
    ("post", "/v1/renewals"): World.renew,
    ("put", "/v1/iothubs/{name}/devices/{device_id}"): lambda w: w.http.put(
        "/v1/iothubs/main/devices/cam-1"
    ),
    ("post", "/v1/devices/import"): lambda w: w.post(
        "/v1/devices/import", {"devices": [{"id": "cam-7"}, {"id": "cam-8"}]}
    ),
    ("post", "/v1/group-tickets"): World.make_group_ticket,
    ("delete", "/v1/group-tickets/{ticket_id}"): lambda w: w.http.delete(
        f"/v1/group-tickets/{w.group_ticket}"
    ),
    ("post", "/v1/models"): lambda w: w.post("/v1/models", {"name": "digits"}),
    ("post", "/v1/uploads"): World.begin_upload,
    ("patch", "/v1/uploads/{upload_id}"): World.end_upload,
    ("post", "/v1/models/{name}/versions"): World.publish,
    ("post", "/v1/trust/keys"): lambda w: w.post("/v1/trust/keys", {"role": "director"}),
    ("post", "/v1/trust/metadata"): World.delegate,
    ("post", "/v1/rollouts"): World.make_rollout,
    ("post", "/v1/rollouts/{rollout_id}/start"): lambda w: w.steer("start"),
    ("post", "/v1/rollouts/{rollout_id}/pause"): lambda w: w.steer("pause"),
    ("post", "/v1/rollouts/{rollout_id}/resume"): lambda w: w.steer("resume"),
    ("post", "/v1/rollouts/{rollout_id}/stop"): lambda w: w.steer("stop"),
    ("post", "/v1/rollouts/{rollout_id}/rollback"): lambda w: w.steer("rollback"),
    ("post", "/v1/tokens"): lambda w: w.post(
        "/v1/tokens", {"name": "ci", "role": "viewer", "days": 1}
    ),
    ("delete", "/v1/tokens/{name}"): lambda w: w.http.delete("/v1/tokens/ci"),
    ("post", "/v1/devices/{device_id}/revoke"): lambda w: w.post("/v1/devices/cam-1/revoke"),
    ("delete", "/v1/devices/{device_id}"): lambda w: w.http.delete("/v1/devices/cam-1"),
}
MAKES_ANEW = {("put", "/v1/iothubs/{name}/devices/{device_id}")} | {
    ("post", path)
    for path in (
        "/v1/groups", "/v1/devices", "/v1/devices/{device_id}/tickets", "/v1/models", "/v1/uploads",
        "/v1/models/{name}/versions", "/v1/rollouts", "/v1/tokens", "/v1/trust/keys",
        "/v1/devices/import", "/v1/group-tickets",
    )
}  # fmt: skip


def test_every_writing_route_has_a_call_below():
    """A new route that changes something must show here that it tells of it."""
    assert sorted(OPERATIONS - CALLS.keys()) == []
    assert sorted(CALLS.keys() - OPERATIONS) == []


def test_every_change_leaves_an_event(cloud):
    """Each route, called so that it succeeds, leaves who, why, and for updates what was and is."""
    world = World(cloud)
    secrets = [cloud.token]
    seen = 0
    for operation, call in CALLS.items():
        seen = max([e["id"] for e in _events(cloud, seen)], default=seen)
        world.actor = "token/admin"
        answer = call(world)
        assert answer.is_success, (operation, answer.text)
        told = [e for e in _events(cloud, seen) if e["actor"] == world.actor]
        assert told, operation
        assert {event["reason"] for event in told} == {REASON}, (operation, told)
        if operation in MAKES_ANEW:
            assert any(e["before"] is None and e["after"] for e in told), (operation, told)
        elif operation[0] == "delete" and "groups" in operation[1]:
            assert any(e["before"] and e["after"] is None for e in told), (operation, told)
        else:
            differ = [e for e in told if e["before"] and e["after"] and e["before"] != e["after"]]
            assert differ, (operation, told)
        body = answer.json() if answer.content else {}
        secrets += [body[key] for key in ("ticket", "token") if isinstance(body.get(key), str)]
    text = json.dumps(_events(cloud, 0))
    assert len(secrets) == 4
    for secret in secrets:
        assert secret not in text
        assert sha256_digest(secret.encode())[7:] not in text


def _events(cloud, after: int) -> list[dict]:
    found: list[dict] = []
    token = ""
    while True:
        query = {"filter": f"id > {after}", "page_size": 500}
        query |= {"page_token": token} if token else {}
        page = cloud.client.get("/v1/events", params=query).json()
        found += page["items"]
        token = page["next_page_token"]
        if not token:
            return found


def test_configuration_stands_in_the_log_without_passwords(cloud):
    """Each start tells what was configured before and is now; logins in URLs are left out."""
    (first,) = [e for e in _events(cloud, 0) if e["type"] == "server.started"]
    assert first["before"] is None
    assert first["after"]["fleet"] == "demo"
    cloud.stop()
    text = cloud.folder.config.read_text()
    cloud.folder.config.write_text(text.replace("[broker]", 'log_level = "WARNING"\n[broker]'))
    cloud.start()
    second = [e for e in _events(cloud, 0) if e["type"] == "server.started"][-1]
    assert second["before"] == first["after"]
    assert second["after"]["log_level"] == "WARNING"
    assert "log_level" in second["message"]
    said = configuration.described(
        Config("demo", database_url="postgresql://me:hush@db/x", broker=Broker("mqtts://a:hush@b"))
    )
    assert "hush" not in json.dumps(said)
    assert said["broker"]["url"] == "mqtts://...@b"
