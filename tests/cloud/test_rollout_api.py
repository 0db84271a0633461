"""/v1/rollouts over real HTTP, a real broker, and a device that signs what it says."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from tuf.api.metadata import Metadata, Targets

from edgefleet_agent.tls import Tls
from edgefleet_shared import bundle, strict_json, topics
from edgefleet_shared.messages import Assignment, Desired, Get
from edgefleet_shared.trust import DeviceIdentity, open_assignment
from tests.brokers import CALLBACKS, any_certificate
from tests.cloud.running import RunningCloud
from tests.fakes.speaking_device import SpeakingDevice, slot_report
from tests.fleet_folder import FleetFolder, small_package


def until(true: Callable[[], object], seconds: float = 20) -> object:
    """Wait for a condition, with a deadline; return what came true."""
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline, "did not come true"
        time.sleep(0.02)
    return found


class WireDevice(SpeakingDevice):
    """A device on the broker, which checks its assignments as the agent does."""

    def connect(self, url: str, keys_dir: Path, pair: Path) -> None:
        self.documents: list[Desired] = []
        self._client = paho.Client(*CALLBACKS, client_id=self.name)
        self._client.on_message = self._on_message
        any_certificate(keys_dir, self.name, pair)
        self._client.tls_set_context(Tls(keys_dir / "device-ca.crt", pair, pair).context())
        self._client.connect("127.0.0.1", int(url.rpartition(":")[2]))
        self._client.loop_start()
        self._client.subscribe(topics.down(self.name), qos=1)
        self.send(topics.get(self.name), strict_json.encode(Get(1, 0)))
        self.send(topics.presence(self.name), self.presence())

    def _on_message(self, _client, _data, message) -> None:
        desired = strict_json.decode(message.payload, Desired, max_bytes=2**18, what="desired")
        self.documents.append(desired)

    def send(self, topic: str, payload: bytes) -> None:
        self._client.publish(topic, payload, qos=1).wait_for_publish(10)

    def assignment(self, floor: int = 0) -> Assignment:
        """Return the newest assignment, verified against the targets role that came with it."""
        desired = self.documents[-1]
        files = bundle.decode(base64.b64decode(desired.bundle))
        newest = max(name for name in files if name.endswith(".targets.json"))
        targets = Metadata[Targets].from_bytes(files[newest]).signed
        me = DeviceIdentity("demo", self.name, self.key)
        sealed = base64.b64decode(desired.assignment)
        return open_assignment(sealed, targets, me, floor=floor, now=datetime.now(UTC))

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningCloud, WireDevice]]:
    """A whole fleet manager with two published versions and one device on the wire."""
    folder = FleetFolder(tmp_path_factory.mktemp("api") / "fleet")
    cloud = RunningCloud(folder, background=True)
    for counter, version in enumerate(("1.0.0", "2.0.0"), 1):
        answer = cloud.publish(*small_package(version, counter))
        assert answer.status_code == 201, answer.text
    device = WireDevice("cam-1")
    with cloud.program.database.write() as session:
        session.add(device.row())
    device.connect(cloud.facts["broker"], folder.online / "keys", folder.path / "cam-1.pem")
    yield cloud, device
    device.close()
    cloud.stop()


def wish(version: str, **more) -> dict:
    """Return the body of a rollout of digits to cam-1."""
    return {"model": "digits", "version": version, "devices": ["cam-1"], **more}


def test_a_rollout_reaches_the_device_and_its_report_completes_it(fleet):
    """POST, a signed assignment on the broker, a signed report back: completed."""
    cloud, device = fleet
    made = cloud.client.post("/v1/rollouts", json=wish("1.0.0", reason="first"))
    assert made.status_code == 201, made.text
    assert made.json()["state"] == "running"
    until(lambda: device.documents)
    slot = device.assignment().slots["digits"]
    assert (slot.version, slot.mode, slot.rollout) == ("1.0.0", "run", made.json()["id"])
    assert slot.manifest == made.json()["manifest"]
    report = slot_report("1.0.0", deployment=slot.deployment, seq=9)
    device.send(
        topics.reported("cam-1"),
        device.reported(1, counter=device.documents[-1].counter, slots={"digits": report}),
    )
    path = f"/v1/rollouts/{made.json()['id']}"
    until(lambda: cloud.client.get(path).json()["state"] == "completed")
    found = cloud.client.get(path).json()
    assert found["counts"] == {"succeeded": 1}
    assert found["waves"][0]["counts"] == {"succeeded": 1}
    rows = cloud.client.get(f"{path}/device-deployments").json()["items"]
    assert [(r["device"], r["state"], r["wave"], r["seq"]) for r in rows] == [
        ("cam-1", "succeeded", "all", 9)
    ]
    assert cloud.client.get(f"/v1/device-deployments/{rows[0]['id']}").json()["age_s"] >= 0
    state = cloud.client.get("/v1/devices/cam-1/state").json()
    assert state["desired"]["slots"]["digits"]["version"] == "1.0.0"


def test_a_dry_run_answers_200_with_the_plan(fleet):
    """Nothing is made, and the plan says what would be."""
    cloud, _ = fleet
    before = cloud.client.get("/v1/rollouts").json()["items"]
    plan = cloud.client.post("/v1/rollouts", json=wish("2.0.0", dry_run=True))
    assert plan.status_code == 200, plan.text
    assert plan.json()["devices"] == 1
    assert plan.json()["bytes"] > 0
    assert plan.json()["waves"][0]["devices"] == ["cam-1"]
    assert cloud.client.get("/v1/rollouts").json()["items"] == before


def test_verbs_move_a_draft_along_and_refuse_what_cannot_be(fleet):
    """draft, start, pause, resume, stop; a second stop is 409 and names what can be done."""
    cloud, _ = fleet
    made = cloud.client.post("/v1/rollouts", json=wish("2.0.0", start=False)).json()
    path = f"/v1/rollouts/{made['id']}"
    for verb, state in (
        ("start", "running"), ("pause", "paused"), ("resume", "running"), ("stop", "stopped"),
    ):  # fmt: skip
        answer = cloud.client.post(f"{path}/{verb}", json={"reason": f"to {verb}"})
        assert (answer.status_code, answer.json()["state"]) == (200, state), answer.text
        assert answer.json()["reason"] == f"to {verb}"
    refused = cloud.client.post(f"{path}/stop")
    assert (refused.status_code, refused.json()["code"]) == (409, "transition")
    assert "From here:" in refused.json()["hint"]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"version": "7.0.0"}, "unknown_version"),
        ({"devices": ["ghost"]}, "unknown_device"),
        ({"devices": None, "selector": "labels.site == 'mars'"}, "no_devices"),
        ({"devices": None, "selector": "labels.site = 1"}, "invalid_filter"),
        ({"waves": [{"name": "a"}]}, "validation"),
        ({"gate": {"deadline_s": 5}}, "validation"),
        ({"surprise": 1}, "validation"),
    ],
)
def test_bad_input_is_a_problem_with_a_way_out(fleet, body, code):
    """4xx, a stable code, one paragraph, and nothing half-written."""
    cloud, _ = fleet
    before = len(cloud.client.get("/v1/rollouts").json()["items"])
    answer = cloud.client.post("/v1/rollouts", json={**wish("2.0.0"), **body})
    assert answer.status_code in {400, 422}, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == code
    assert answer.json()["detail"]
    assert len(cloud.client.get("/v1/rollouts").json()["items"]) == before


@pytest.mark.parametrize("path", ["/v1/rollouts/ghost", "/v1/device-deployments/ghost"])
def test_what_does_not_exist_is_404(fleet, path):
    """With a hint where to look."""
    cloud, _ = fleet
    answer = cloud.client.get(path)
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert "GET /v1/" in answer.json()["hint"]


def test_lists_page_and_filter(fleet):
    """Cursor paging and the one filter language."""
    cloud, _ = fleet
    drafts = wish("2.0.0", start=False)
    made = [cloud.client.post("/v1/rollouts", json=drafts).json()["id"] for _ in range(2)]
    first = cloud.client.get("/v1/rollouts", params={"page_size": 1}).json()
    assert len(first["items"]) == 1
    assert first["next_page_token"]
    params = {"filter": f"id == '{made[1]}'"}
    found = cloud.client.get("/v1/rollouts", params=params).json()["items"]
    assert [row["id"] for row in found] == [made[1]]
    params = {"filter": f"rollout == '{made[0]}'", "order_by": "updated desc"}
    found = cloud.client.get("/v1/device-deployments", params=params).json()["items"]
    assert [(row["device"], row["state"]) for row in found] == [("cam-1", "assigned")]


def test_nobody_without_a_token(fleet):
    """Rollouts are for operators."""
    cloud, _ = fleet
    assert cloud.anyone.get("/v1/rollouts").status_code == 401
    assert cloud.anyone.post("/v1/rollouts", json=wish("1.0.0")).status_code == 401


def test_asking_again_brings_the_same_assignment(fleet):
    """up/get is answered with the stored bytes."""
    cloud, device = fleet
    if not device.documents:
        assert cloud.client.post("/v1/rollouts", json=wish("1.0.0")).status_code == 201
        until(lambda: device.documents)
    before = len(device.documents)
    device.send(topics.get("cam-1"), strict_json.encode(Get(1, 0)))
    until(lambda: len(device.documents) > before)
    device.send(topics.get("cam-1"), strict_json.encode(Get(1, 0)))
    until(lambda: len(device.documents) > before + 1)
    assert device.documents[-1].assignment == device.documents[-2].assignment
