"""/v1/devices/{id}/desired: the same message as on the broker, for its device and for operators."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from tuf.api.metadata import Metadata, Targets

from edgefleet_shared import access, bundle, strict_json
from edgefleet_shared.messages import Desired
from edgefleet_shared.trust import DeviceIdentity, open_assignment
from tests.cloud.running import RunningCloud
from tests.cloud.test_rollout_api import until
from tests.fakes.speaking_device import SpeakingDevice
from tests.fleet_folder import FleetFolder, small_package

PATH = "/v1/devices/cam-1/desired"


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCloud]:
    """A fleet manager with a published version and two devices."""
    folder = FleetFolder(tmp_path_factory.mktemp("documents") / "fleet")
    cloud = RunningCloud(folder, background=True)
    answer = cloud.publish(*small_package("1.0.0", 1))
    assert answer.status_code == 201, answer.text
    cloud.devices = {name: SpeakingDevice(name) for name in ("cam-1", "cam-2")}
    with cloud.program.database.write() as session:
        session.add_all(device.row() for device in cloud.devices.values())
    yield cloud
    cloud.stop()


def ask(cloud: RunningCloud, name: str, path: str = PATH):
    """Ask as a device, by a statement that its key signs."""
    end = datetime.now(UTC) + timedelta(minutes=5)
    signer = cloud.devices[name].signer
    header = access.header("demo", name, access.origin(cloud.url), end, signer)
    return cloud.anyone.get(path, headers={"Authorization": header})


def test_nothing_is_there_before_something_is_assigned(cloud):
    """A device without an assignment is told so, and nothing is signed for it."""
    answer = ask(cloud, "cam-2", "/v1/devices/cam-2/desired")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_assigned")


def test_a_device_and_an_operator_read_the_same_document(cloud):
    """What comes over HTTP holds as what comes over the broker: signed, whole, for this device."""
    made = cloud.client.post(
        "/v1/rollouts", json={"model": "digits", "version": "1.0.0", "devices": ["cam-1"]}
    )
    assert made.status_code == 201, made.text
    until(lambda: ask(cloud, "cam-1").status_code == 200)
    first, second = ask(cloud, "cam-1"), cloud.client.get(PATH)
    assert (first.status_code, second.status_code) == (200, 200), first.text
    desired, other = (
        strict_json.decode(answer.content, Desired, max_bytes=2**18, what="desired")
        for answer in (first, second)
    )
    assert (desired.assignment, desired.bundle) == (other.assignment, other.bundle)
    files = bundle.decode(base64.b64decode(desired.bundle))
    newest = max(name for name in files if name.endswith(".targets.json"))
    targets = Metadata[Targets].from_bytes(files[newest]).signed
    me = DeviceIdentity("demo", "cam-1", cloud.devices["cam-1"].key)
    sealed = base64.b64decode(desired.assignment)
    order = open_assignment(sealed, targets, me, floor=0, now=datetime.now(UTC))
    assert order.slots["digits"].version == "1.0.0"


def test_nobody_reads_what_is_for_another_device(cloud):
    """Another device, a stranger, and a statement for another host are turned away."""
    assert ask(cloud, "cam-2").status_code == 403
    assert cloud.anyone.get(PATH).status_code == 401
    end = datetime.now(UTC) + timedelta(minutes=5)
    signer = cloud.devices["cam-1"].signer
    elsewhere = access.header("demo", "cam-1", "http://elsewhere", end, signer)
    assert cloud.anyone.get(PATH, headers={"Authorization": elsewhere}).status_code == 401
