"""The assumptions that all rests on, held against a hub: the double always, Azure's on request.

With EDGEFLEET_IOTHUB_CONNECTION and EDGEFLEET_IOTHUB_EVENTS (and for DPS EDGEFLEET_DPS_CONNECTION
and EDGEFLEET_DPS_SCOPE) in the environment every test runs against a real hub too; docs/iothub.md
says how. Everything that is made there is named `edgefleet-test-...` and removed again.
"""

from __future__ import annotations

import secrets
import threading

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from edgefleet_cloud import migrations
from edgefleet_cloud.database import Database
from edgefleet_cloud.errors import NotFoundError
from edgefleet_cloud.events.feed import EventFeed
from edgefleet_cloud.events.service import EventLog
from edgefleet_cloud.iothub.rest import RefusedError
from edgefleet_cloud.iothub.upstream import Needs, Upstream
from edgefleet_provisioning.azure_iot import enrolment_groups
from edgefleet_provisioning.azure_iot.enrolment_groups import Plan
from edgefleet_shared import strict_json, topics, twin
from edgefleet_shared.messages import Get, Presence
from tests.contracts.test_agent_transport import Done, Events, sealed
from tests.iothub import pki
from tests.iothub.hub_worlds import PREFIX, WORLDS

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(params=WORLDS)
def world(request, tmp_path):
    """The double, or the hub that the environment names; else that one skips."""
    with WORLDS[request.param](tmp_path) as made:
        yield made


def desired(payload, **given):
    """Return the patch that tells a device its document."""
    return {"properties": {"desired": twin.document_patch(payload, **given)}}


def lies_in(world, name):
    """Return the report in a device's twin, None if there is none."""
    found = twin.read_report(world.rest.twin(name)["properties"]["reported"])
    return found.payload if found else None


def test_the_largest_document_lies_whole_in_a_twin(world):
    """Six strings of 4,000 characters are taken, come back the same, and an empty patch clears."""
    name = world.device(type="certificateAuthority")
    payload = secrets.token_hex(twin.INLINE_MAX // 2).encode()
    world.rest.patch_twin(name, desired(payload))
    read = twin.read_document(world.rest.twin(name)["properties"]["desired"])
    assert read == (twin.digest(payload), len(payload), payload)
    world.rest.patch_twin(name, desired(b"{}", inline_max=0))
    read = twin.read_document(world.rest.twin(name)["properties"]["desired"])
    assert read == (twin.digest(b"{}"), 2, None)


def test_what_breaks_the_rules_of_twins_is_refused(world):
    """A section above 32 KB and a stale etag are refused; neither changes anything."""
    name = world.device(type="certificateAuthority")
    found = world.rest.patch_twin(name, desired(b"first"))
    huge = {"properties": {"desired": {f"k{number}": "x" * 4000 for number in range(9)}}}
    with pytest.raises(RefusedError):
        world.rest.patch_twin(name, huge)
    world.rest.patch_twin(name, desired(b"second"))
    with pytest.raises(RefusedError) as stale:
        world.rest.patch_twin(name, desired(b"third"), etag=found["etag"])
    assert stale.value.status == 412
    document = twin.read_document(world.rest.twin(name)["properties"]["desired"])
    assert document.payload == b"second"


def test_a_device_by_key_hears_what_lies_there_and_what_comes(world):
    """A symmetric key: the document from before it connected, the next one, and a method."""
    name, options = world.device_by_key()
    world.rest.patch_twin(name, desired(b"first"))
    events = Events()
    agent = world.agent(name, events, **options)
    world.wait(lambda: events.connected, "connected")
    agent.request_desired(0)
    world.wait(lambda: events.desired[-1:] == [b"first"], "what lay there")
    world.rest.patch_twin(name, desired(b"second"))
    world.wait(lambda: events.desired[-1:] == [b"second"], "what comes")
    pong = world.rest.invoke(name, "ping", {})
    assert (pong["status"], pong["payload"]["device"]) == (200, name)


def test_a_device_by_certificate_reports(world):
    """A certificate by its thumbprint: what the device reports lies in its twin."""
    name = world.name()
    pair = pki.make(name)
    key = pair.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    file = world.folder / "pair.pem"
    file.write_bytes(key + pair.pem)
    thumbprint = pair.thumbprint(hashes.SHA256())
    both = {"primaryThumbprint": thumbprint, "secondaryThumbprint": thumbprint}
    world.device(name, type="selfSigned", x509Thumbprint=both)
    events, done = Events(), Done()
    agent = world.agent(name, events, pair=file)
    world.wait(lambda: events.connected, "connected")
    agent.publish_reported(sealed("e30="), done)
    world.wait(lambda: done.told == [True], "taken")
    assert world.wait(lambda: lies_in(world, name), "reported") == sealed("e30=")


def test_a_disabled_device_is_refused(world):
    """A device that the registry disables is thrown out, and let in again once it is enabled."""
    name, options = world.device_by_key()
    events = Events()
    world.agent(name, events, **options)
    world.wait(lambda: events.connected, "connected")
    identity = world.rest.device(name)
    world.rest.put_device({**identity, "status": "disabled"}, etag="*")
    world.wait(lambda: events.refused, "refused")
    world.rest.put_device({**identity, "status": "enabled"}, etag="*")
    world.wait(lambda: events.connected >= 2, "connected again")


class Heard:
    """The fleet manager's end: what arrived of one device, as on MQTT."""

    def __init__(self, world) -> None:
        self._lock = threading.Lock()
        self._all: list[tuple[str, bytes]] = []
        self._database = Database(f"sqlite:///{world.folder / 'fleet.db'}")
        migrations.upgrade(self._database)
        log = EventLog(EventFeed())
        needs = Needs(world.rest, self._database, self, log)
        self._upstream = Upstream(world.config, needs)
        self._upstream.start(self._hear)
        world.ends.callback(self._database.close)
        world.ends.callback(self._upstream.stop)

    def _hear(self, topic: str, payload: bytes) -> None:
        with self._lock:
            self._all.append((topic, payload))

    def seen(self, device: str, sha256: str, module: str = "") -> None:
        """Nothing depends on it here."""

    def reported(self, device: str) -> None:
        """Nothing depends on it here."""

    def read(self) -> None:
        """Nothing is throttled here."""

    def of(self, topic: str) -> list[bytes]:
        """Return what has come on a topic."""
        with self._lock:
            return [payload for where, payload in self._all if where == topic]


def test_what_a_device_says_comes_by_event_hubs(world):
    """Report, batch, question and presence arrive at the fleet manager as they would by MQTT."""
    heard = Heard(world)
    name, options = world.device_by_key()
    events, done = Events(), Done()
    agent = world.agent(name, events, **options)
    world.wait(lambda: events.connected, "connected")
    agent.request_desired(41)
    agent.publish_batch("events", sealed("YmF0Y2g="), done)
    agent.publish_reported(sealed("cmVwb3J0"), done)
    world.wait(lambda: done.told == [True, True], "taken")
    world.wait(lambda: heard.of(topics.reported(name)) == [sealed("cmVwb3J0")], "report")
    world.wait(lambda: heard.of(topics.stream(name, "events")) == [sealed("YmF0Y2g=")], "batch")
    asked = world.wait(lambda: heard.of(topics.get(name)), "question")
    assert strict_json.decode(asked[-1], Get, max_bytes=1000, what="get").have == 41
    said = world.wait(lambda: heard.of(topics.presence(name)), "presence")
    assert strict_json.decode(said[0], Presence, max_bytes=1000, what="presence").online


def test_devices_are_found_by_query(world):
    """The registry can be walked, and a summary of a report be asked for."""
    name, options = world.device_by_key()
    events, done = Events(), Done()
    agent = world.agent(name, events, **options)
    world.wait(lambda: events.connected, "connected")
    agent.publish_reported(sealed("e30="), done)
    world.wait(lambda: done.told == [True], "taken")

    def found():
        rows = world.rest.query(f"SELECT * FROM devices WHERE deviceId = '{name}'")
        return [row for row in rows if twin.read_report(row["properties"]["reported"])]

    (row,) = world.wait(found, "in the index")  # which is seconds behind in Azure
    assert row["deviceId"] == name


def test_a_device_comes_through_the_provisioning_service(world):
    """A group with a symmetric key is made, a device registers, is assigned and connects."""
    if world.dps is None:
        pytest.skip("needs a DPS: EDGEFLEET_DPS_CONNECTION, EDGEFLEET_DPS_SCOPE; docs/iothub.md")
    name, group = world.name(), world.name()
    world.ends.callback(world.rest.delete_device, name)
    with enrolment_groups.connect(world.dps.file, world.dps.api, world.ca) as groups:
        plan = Plan(symmetric=True, hubs=[world.config.host], allocation="static", enabled=True)
        groups.create(enrolment_groups.document(group, plan))
        world.ends.callback(_delete, world, group)
        key = enrolment_groups.derive(groups.keys(group)["primaryKey"], name)
    events = Events()
    world.agent(name, events, url=world.dps.url, auth="sas", key_file=world.secret(key))
    world.wait(lambda: events.connected, "connected")
    assert world.rest.device(name)["status"] == "enabled"


def _delete(world, group: str) -> None:
    with enrolment_groups.connect(world.dps.file, world.dps.api, world.ca) as groups:
        groups.delete(group)


def test_nothing_of_ours_is_left(world):
    """What a test made is gone once its world has ended."""
    name = world.device(type="certificateAuthority")
    assert name.startswith(PREFIX)
    assert world.rest.device(name)["deviceId"] == name
    world.rest.delete_device(name)
    assert world.rest.device(name) is None
    with pytest.raises(NotFoundError):
        world.rest.invoke(name, "ping", {})
