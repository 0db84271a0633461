"""How late a device may renew, who is asked to, and what a repeated request is answered."""

from __future__ import annotations

import json
from concurrent.futures import Future
from datetime import timedelta

import pytest
from cryptography import x509
from sqlalchemy import update

from edgefleet_cloud.authority import rotation
from edgefleet_cloud.authority.tables import CertificateRow
from edgefleet_cloud.devices.tables import DeviceRow
from edgefleet_cloud.enrollments import asking
from edgefleet_cloud.enrollments.asking import Asking
from edgefleet_cloud.enrollments.renewals import Renewals
from edgefleet_cloud.enrollments.service import Enrollments
from edgefleet_cloud.events.feed import EventFeed
from edgefleet_cloud.events.service import EventLog
from edgefleet_cloud.ports import system_clock
from edgefleet_shared import topics
from edgefleet_shared.times import format_time
from tests.http_device import HttpDevice, new_key, renewed

DAY = timedelta(days=1)


@pytest.fixture
def device(cloud):
    """An enrolled device."""
    made = HttpDevice(cloud)
    made.register()
    assert made.enroll().status_code == 201
    return made


def expire(cloud, ago: timedelta) -> None:
    """Let every certificate have ended that long ago."""
    with cloud.program.database.write() as session:
        session.execute(update(CertificateRow).values(not_after=format_time(system_clock() - ago)))


def test_a_device_that_was_off_renews_by_its_old_key(cloud, device):
    """Its certificate ended eleven months ago: within the year that is the default."""
    expire(cloud, 330 * DAY)
    answer = renewed(device.renew(device.renewal(new_key())))
    found = x509.load_pem_x509_certificate(answer.certificate.encode())
    assert found.not_valid_after_utc > system_clock() + 29 * DAY


def test_too_late_is_refused_with_an_alarm(cloud, device):
    """After the grace only a ticket helps; it then starts anew."""
    expire(cloud, 366 * DAY)
    answer = device.renew(device.renewal(new_key()))
    assert (answer.status_code, answer.json()["code"]) == (403, "renewal_too_late")
    assert device.events("device.renewal_refused")
    assert device.enroll().status_code == 201
    renewed(device.renew(device.renewal(new_key())))


def test_without_grace_a_day_late_is_too_late(cloud, device):
    """`renewal_grace_days = 0`: a certificate that has ended cannot be renewed."""
    cloud.stop()
    with cloud.folder.config.open("a") as file:
        file.write("\n[identity]\nrenewal_grace_days = 0\ncertificate_life_days = 7\n")
    cloud.start()
    answer = renewed(device.renew(device.renewal(device.key)))
    found = x509.load_pem_x509_certificate(answer.certificate.encode())
    life = found.not_valid_after_utc - found.not_valid_before_utc
    assert 7 * DAY <= life < 8 * DAY
    expire(cloud, DAY)
    assert device.renew(device.renewal(new_key())).json()["code"] == "renewal_too_late"


def test_a_lost_answer_that_comes_too_late_is_made_anew(cloud, device):
    """Asked again by the same bytes after the certificate in it has ended: another, for the key."""
    request = device.renewal(new_key())
    first = renewed(device.renew(request))
    expire(cloud, 40 * DAY)
    again = renewed(device.renew(request))
    assert again.key == first.key
    assert again.certificate != first.certificate


class Sent:
    """A transport that remembers what was published, and whether it was retained."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, bytes]] = []

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> Future:
        assert retain
        self.sent.append((topic, payload))
        done: Future = Future()
        done.set_result(None)
        return done


class World:
    """Asking over the running server's database."""

    def __init__(self, cloud) -> None:
        parts = cloud.program.app.state.parts
        self.database = cloud.program.database
        self.certificates = parts.get(Renewals)._certificates
        self.devices = parts.get(Enrollments)._devices
        self.transport = Sent()
        self.asking = Asking(
            self.database, self.devices, self.certificates, self.transport, EventLog(EventFeed())
        )

    def words(self, device: str = "cam-1") -> list[bytes]:
        """Return what was published to ask a device."""
        return [body for topic, body in self.transport.sent if topic == topics.renew(device)]


def test_a_word_names_the_key_and_is_taken_back(cloud, device):
    """It is said again on each connect until the device has renewed, then emptied; once."""
    world = World(cloud)
    with world.database.write() as session:
        world.asking.ask(session, "cam-1", "token/admin")
    with world.database.write() as session:
        world.asking.remind(session, "cam-1")
    first, second = world.words()
    assert first == second
    assert json.loads(first)["key"] == device.row()["key"]
    with world.database.write() as session:
        world.asking.renewed(session, session.get(DeviceRow, "cam-1"))
    with world.database.write() as session:
        world.asking.renewed(session, session.get(DeviceRow, "cam-1"))
        world.asking.remind(session, "cam-1")
        world.asking.remind(session, "nobody")
    assert world.words()[2:] == [b""]


def test_everybody_is_asked_once_after_a_rotation_a_few_at_a_time(cloud, device, monkeypatch):
    """Three devices, two at a time; those that are revoked are left in peace."""
    monkeypatch.setattr(asking, "AT_A_TIME", 2)
    names = ["cam-2", "cam-3", "cam-4"]
    for name in names:
        each = HttpDevice(cloud, name)
        each.register()
        assert each.enroll().status_code == 201
    cloud.client.post("/v1/devices/cam-4/revoke").raise_for_status()
    world = World(cloud)
    world.asking.sweep()
    assert not world.transport.sent
    rotation.rotate(cloud.config.keys, system_clock())
    world.certificates.ca.replace(rotation.load_issuers(cloud.config.keys))
    counts = []
    for _ in range(4):
        world.asking.sweep()
        counts.append(len(world.transport.sent))
    assert counts == [2, 3, 3, 3]
    assert not world.words("cam-4")
    renewed(device.renew(device.renewal(new_key())))
    with world.database.write() as session:
        world.asking.remind(session, "cam-1")
        world.asking.remind(session, "cam-2")
    assert [len(world.words(f"cam-{n}")) for n in (1, 2, 3)] == [1, 2, 1]
