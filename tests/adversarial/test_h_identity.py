"""H. Enrolment and identity: a real fleet manager over HTTP, and everything that it must refuse."""

from __future__ import annotations

import base64
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from securesystemslib.signer import CryptoSigner
from sqlalchemy import select

from edgefleet_cloud.authority.requests import describe
from edgefleet_cloud.devices.tables import DeviceRow
from edgefleet_cloud.enrollments.tables import TicketRow
from edgefleet_cloud.ports import system_clock
from edgefleet_cloud.reports.ingest import Ingest
from edgefleet_shared import dsse, strict_json
from edgefleet_shared.messages import REPORTED_TYPE, Reported
from edgefleet_shared.times import format_time
from tests.cloud.running import RunningCloud
from tests.fleet_folder import FleetFolder
from tests.http_device import HttpDevice, csr, new_key, renewed


@pytest.fixture
def cloud(tmp_path):
    """A running fleet manager, its broker left out: these rows are about HTTP."""
    folder = FleetFolder(tmp_path / "fleet")
    with folder.config.open("a") as file:  # the lock-out after twenty failures has tests of its own
        file.write("\n[limits]\nauth_failures = 1000\n")
    running = RunningCloud(folder)
    yield running
    running.stop()


@pytest.fixture
def device(cloud):
    """A registered device."""
    made = HttpDevice(cloud)
    made.register()
    return made


@pytest.fixture
def enrolled(device):
    """An enrolled device."""
    assert device.enroll().status_code == 201
    return device


def code(answer) -> str:
    """Return the code of a refusal."""
    assert answer.status_code >= 400, answer.text
    return answer.json()["code"]


def digest(key) -> str:
    """Return how the fleet manager names a key."""
    return describe(key.public_key()).digest


def test_59_a_ticket_works_once(device):
    """A second key with a used ticket is refused, and the device stays with the first."""
    ticket = device.ticket()
    assert device.enroll(ticket).status_code == 201
    assert code(device.enroll(ticket, csr(new_key()))) == "ticket_refused"
    assert device.row()["key"] == digest(device.key)


def test_59_fifty_at_once_give_one_device(device):
    """Fifty keys hand one ticket in at the same time: one is taken, forty-nine are refused."""
    ticket, keys = device.ticket(), [new_key() for _ in range(50)]
    with ThreadPoolExecutor(25) as pool:
        answers = list(pool.map(lambda key: device.enroll(ticket, csr(key)).status_code, keys))
    assert sorted(answers) == [201] + [403] * 49
    assert device.row()["key"] == digest(keys[answers.index(201)])


def test_59_an_expired_ticket_is_refused(cloud, device):
    """A ticket past its end opens nothing."""
    ticket = device.ticket()
    with cloud.program.database.write() as session:
        row = session.scalars(select(TicketRow)).one()
        row.not_after = format_time(system_clock() - timedelta(seconds=1))
    assert code(device.enroll(ticket)) == "ticket_refused"
    assert device.row()["state"] == "registered"


def test_59_a_ticket_of_another_device_is_refused(cloud, device):
    """A ticket rewritten to another id, or to a path, makes nobody a device."""
    other = HttpDevice(cloud, "cam-2")
    other.register()
    text = device.ticket()
    body = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    for name in (b"cam-2", b"../cam-2", b"cam-2/../cam-1"):
        forged = base64.urlsafe_b64encode(body.replace(b"cam-1", name)).decode().rstrip("=")
        assert code(device.enroll(forged)) in {"ticket_refused", "invalid_ticket"}
    assert other.row()["state"] == device.row()["state"] == "registered"


def test_59_a_request_signed_by_another_key_is_refused(device):
    """A request whose own signature does not hold gets nothing, and the ticket stays good."""
    ticket = device.ticket()
    der = x509.load_pem_x509_csr(csr(device.key).encode()).public_bytes(serialization.Encoding.DER)
    body = base64.encodebytes(der[:-1] + bytes([der[-1] ^ 1])).decode()
    forged = f"-----BEGIN CERTIFICATE REQUEST-----\n{body}-----END CERTIFICATE REQUEST-----\n"
    assert code(device.enroll(ticket, forged)) == "invalid_csr"
    assert device.enroll(ticket).status_code == 201


@pytest.mark.parametrize("name", ["fleet-manager", "../cam-1", "cam-1/../cam-2", "+", "#"])
def test_59_what_a_request_asks_for_decides_nothing(device, name):
    """CA:TRUE, a foreign URI or host and any subject in the request: the server sets its own."""
    uri = x509.UniformResourceIdentifier("urn:fleet:demo:device:cam-9")
    asked = (
        x509.BasicConstraints(ca=True, path_length=None),
        x509.SubjectAlternativeName([uri, x509.DNSName("fleet-manager")]),
        x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.SERVER_AUTH]),
    )
    answer = device.enroll(request=csr(device.key, name, asked))
    made = x509.load_pem_x509_certificate(answer.json()["certificate"].encode())
    assert made.subject.rfc4514_string() == "CN=cam-1"
    assert made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [each.value for each in names] == ["urn:fleet:demo:device:cam-1"]
    usage = made.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [x509.ExtendedKeyUsageOID.CLIENT_AUTH]


@pytest.mark.parametrize(
    "name",
    ["../cam-1", "+", "#", "a/b", "CAM", "", "a" * 80, "a\u0000b", "fleet-manager", "broker-probe"],
)
def test_59_no_device_has_such_an_id(cloud, name):
    """What would be a path, a wildcard or another's topic is never registered."""
    assert code(cloud.client.post("/v1/devices", json={"id": name})) == "invalid_name"


def test_60_a_certificate_without_its_key_renews_nothing(enrolled):
    """Whoever holds the certificate alone signs by a key of his own: refused, with an alarm."""
    before = enrolled.row()["key"]
    thief = new_key()
    for new in (thief, new_key()):
        assert code(enrolled.renew(enrolled.renewal(new, signed_by=thief))) == "signature"
    assert enrolled.row()["key"] == before
    (alarm,) = enrolled.events("device.renewal_refused")
    assert alarm["data"]["code"] == "signature"


def test_60_a_renewal_must_be_signed_by_the_present_key(enrolled):
    """The old key's word ends with the renewal: it cannot move the device to yet another key."""
    old, new = enrolled.key, new_key()
    first = enrolled.renewal(new)
    answer = renewed(enrolled.renew(first))
    assert answer.key == digest(new) == enrolled.row()["key"]
    assert code(enrolled.renew(enrolled.renewal(new_key(), signed_by=old))) == "signature"
    again = renewed(enrolled.renew(first))
    assert (again.key, again.certificate) == (answer.key, answer.certificate)
    assert enrolled.row()["key"] == digest(new)
    assert enrolled.events("device.renewal_refused")


def test_60_a_renewal_is_for_one_device_of_one_fleet(cloud, enrolled):
    """Signed about another device or fleet, or about nobody, it is refused."""
    other = HttpDevice(cloud, "cam-2")
    other.register()
    assert other.enroll().status_code == 201
    new = new_key()
    theirs = enrolled.renewal(new, device="cam-2")
    assert code(other.renew(theirs)) == "signature"
    assert code(enrolled.renew(theirs)) == "wrong_device"
    assert code(enrolled.renew(enrolled.renewal(new, fleet="other"))) == "wrong_device"
    assert code(enrolled.renew(enrolled.renewal(new), "nobody")) == "renewal_refused"
    assert code(enrolled.renew("not base64!")) == "base64"
    assert code(enrolled.renew(enrolled.renewal(new, csr="no request"))) == "invalid_csr"
    assert enrolled.row()["key"] == digest(enrolled.key)


def test_60_a_revoked_device_renews_nothing(enrolled):
    """Its own key is refused from the revocation on, and a new ticket readmits it."""
    enrolled.cloud.client.post("/v1/devices/cam-1/revoke").raise_for_status()
    assert code(enrolled.renew(enrolled.renewal(new_key()))) == "revoked"
    assert enrolled.row()["state"] == "revoked"
    enrolled.key = new_key()
    assert enrolled.enroll().status_code == 201
    renewed(enrolled.renew(enrolled.renewal(new_key())))


def test_60_tickets_from_before_the_revocation_readmit_nobody(enrolled):
    """Neither the one by which the device enrolled, with its key, nor one that nobody used."""
    used, unused = enrolled.ticket(), enrolled.ticket()
    assert enrolled.enroll(used).status_code == 201
    enrolled.cloud.client.post("/v1/devices/cam-1/revoke").raise_for_status()
    assert code(enrolled.enroll(used)) == "ticket_refused"
    assert code(enrolled.enroll(unused)) == "ticket_refused"
    enrolled.key = new_key()
    assert code(enrolled.enroll(unused)) == "ticket_refused"
    assert enrolled.row()["state"] == "revoked"
    assert enrolled.enroll().status_code == 201


def test_60_a_ticket_for_a_group_does_not_readmit_a_revoked_device(cloud):
    """Not even with the key that it was bound to."""
    asked = {"prefix": "cam", "limit": 3, "valid_hours": 1}
    made = cloud.client.post("/v1/group-tickets", json=asked)
    assert made.status_code == 201, made.text
    key = new_key()
    body = {"ticket": made.json()["ticket"], "csr": csr(key, "cam-g"), "device": "cam-g"}
    assert cloud.anyone.post("/v1/enrollments", json=body).status_code == 201
    cloud.client.post("/v1/devices/cam-g/revoke").raise_for_status()
    assert code(cloud.anyone.post("/v1/enrollments", json=body)) == "ticket_refused"
    other = body | {"csr": csr(new_key(), "cam-g")}
    assert code(cloud.anyone.post("/v1/enrollments", json=other)) == "ticket_refused"


def test_60_a_device_is_pinned_to_its_key(cloud, enrolled):
    """Reports count by the pinned key alone; an older one again is refused, with an alarm."""
    ingest = cloud.program.app.state.parts.get(Ingest)

    def hear(seq: int, key) -> int:
        body = Reported(1, "cam-1", "boot", seq, "2026-01-01T00:00:00Z", 0, {})
        sealed = dsse.seal(strict_json.encode(body), REPORTED_TYPE, CryptoSigner(key))
        ingest.handle("cam-1", "reported", "", sealed)
        return cloud.client.get("/v1/devices/cam-1/state").json()["reported"]["seq"]

    assert hear(5, enrolled.key) == 5
    assert hear(9, new_key()) == 5
    with cloud.program.database.write() as session:
        row = session.get(DeviceRow, "cam-1")
        row.reported_at = format_time(system_clock() - timedelta(minutes=2))
    assert hear(4, enrolled.key) == 5
    assert {each["data"]["code"] for each in enrolled.events("report.refused")} == {
        "signature", "replayed",
    }  # fmt: skip
    # After a renewal what the old key has signed counts, until ten minutes after the new one was
    # heard: it may still have been on its way.
    old, new = enrolled.key, new_key()
    renewed(enrolled.renew(enrolled.renewal(new)))
    assert [hear(6, old), hear(7, new), hear(8, old)] == [6, 7, 8]
    with cloud.program.database.write() as session:
        row = session.get(DeviceRow, "cam-1")
        assert row.previous_until is not None
        row.previous_until = format_time(system_clock() - timedelta(seconds=1))
    assert hear(10, old) == 8


def test_60_a_key_for_tls_ends_with_the_key_that_vouched_for_it(cloud, enrolled):
    """A thief's certificate for TLS alone is on the revocation list once the device has renewed."""
    old, new = enrolled.key, new_key()
    theirs = enrolled.renewal(new_key(), purpose="session")
    stolen = renewed(enrolled.renew(theirs))
    assert enrolled.row()["key"] == digest(old)
    renewed(enrolled.renew(enrolled.renewal(new)))
    assert code(enrolled.renew(enrolled.renewal(new_key(), purpose="session"))) == "signature"
    body = Reported(1, "cam-1", "boot", 1, "2026-01-01T00:00:00Z", 0, {})
    sealed = dsse.seal(strict_json.encode(body), REPORTED_TYPE, CryptoSigner(new))
    cloud.program.app.state.parts.get(Ingest).handle("cam-1", "reported", "", sealed)
    serial = x509.load_pem_x509_certificate(stolen.certificate.encode()).serial_number
    given = cloud.client.get("/v1/devices/cam-1/certificates").json()["items"]
    ended = {each["serial"]: each["revoked"] for each in given}
    assert ended[f"{serial:X}"] is not None
    assert list(ended.values()).count(None) == 1
