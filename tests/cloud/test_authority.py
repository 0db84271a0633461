"""What the fleet's authority signs, checked by somebody else's verifier, and what it takes back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, Store

from edgefleet_cloud.authority.issuing import DeviceCa, Revoked
from edgefleet_cloud.authority.service import Certificates
from edgefleet_cloud.devices.service import Devices
from edgefleet_cloud.events.feed import EventFeed
from edgefleet_cloud.events.service import EventLog
from tests.fakes.disconnector import RecordingDisconnector

DAY = timedelta(days=1)


@pytest.fixture
def ca(folder) -> DeviceCa:
    """The fleet's own authority."""
    return DeviceCa.load(folder.online / "keys")


def key() -> ec.EllipticCurvePublicKey:
    """Return a fresh public key."""
    return ec.generate_private_key(ec.SECP256R1()).public_key()


def store(ca: DeviceCa) -> Store:
    """Return a trust store of the whole bundle."""
    return Store(x509.load_pem_x509_certificates(ca.pem.encode()))


def test_a_server_certificate_holds_for_its_names(ca):
    """A strict verifier takes it under a host name and an address, and for nothing else."""
    now = datetime.now(UTC)
    pem = ca.sign_server(key(), ["broker.example", "127.0.0.1"], now, 90 * DAY)
    found = x509.load_pem_x509_certificate(pem.encode())
    policy = PolicyBuilder().store(store(ca)).time(now)
    for name in (
        x509.DNSName("broker.example"),
        x509.IPAddress(IPv4Address("127.0.0.1")),
    ):
        assert policy.build_server_verifier(name).verify(found, [])
    with pytest.raises(x509.verification.VerificationError):
        policy.build_server_verifier(x509.DNSName("other.example")).verify(found, [])
    with pytest.raises(x509.verification.VerificationError):
        policy.build_client_verifier().verify(found, [])


def test_a_client_certificate_is_no_device(ca):
    """A fleet manager's certificate is a client's, short-lived, without a device's URI."""
    now = datetime.now(UTC)
    pem = ca.sign_client(key(), "fleet-manager", now, timedelta(minutes=5))
    found = x509.load_pem_x509_certificate(pem.encode())
    usage = found.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert found.not_valid_after_utc - now <= timedelta(minutes=5)
    assert PolicyBuilder().store(store(ca)).time(now).build_client_verifier().verify(found, [])
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert not names.get_values_for_type(x509.UniformResourceIdentifier)


def test_a_revocation_list_names_what_was_revoked(ca):
    """The authority's own key signs it; number, end and serial numbers are as asked."""
    now = datetime.now(UTC).replace(microsecond=0)
    text = ca.crl([Revoked(0xABCDEF, now - DAY)], 7, now, 7 * DAY)
    found = x509.load_pem_x509_crl(text.encode())
    assert found.is_signature_valid(ca.issuers[0].key.public_key())
    assert found.get_revoked_certificate_by_serial_number(0xABCDEF) is not None
    assert found.get_revoked_certificate_by_serial_number(1) is None
    assert found.next_update_utc == now + 7 * DAY
    assert found.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number == 7


def test_what_was_issued_can_be_taken_back(ca, database):
    """Revoking tells the broker once it is on disk; an expired certificate leaves the list."""
    now = [datetime.now(UTC)]
    broker = RecordingDisconnector()
    certificates = Certificates("demo", ca, broker, lambda: now[0])
    with database.write() as session:
        Devices(EventLog(EventFeed())).create(session, "cam-1", {}, "rpi5", "token/admin")
        pem = certificates.issue(session, "cam-1", key())
        assert not certificates.revoked(session)
    serial = x509.load_pem_x509_certificate(pem.encode()).serial_number
    with database.write() as session:
        assert certificates.revoke_device(session, "cam-1", "stolen") == 1
        assert not broker.calls
    assert broker.calls == ["cam-1"]
    with database.read() as session:
        (found,) = certificates.revoked(session)
        assert found.serial == serial
        assert certificates.of_device(session, "cam-1")[0].reason == "stolen"
        now[0] += 31 * DAY
        assert not certificates.revoked(session)


def test_a_revocation_that_is_rolled_back_reaches_nobody(ca, database):
    """A transaction that fails leaves certificate and connection as they were."""
    broker = RecordingDisconnector()
    certificates = Certificates("demo", ca, broker)
    with pytest.raises(RuntimeError), database.write() as session:
        certificates.revoke_device(session, "cam-1", "stolen")
        raise RuntimeError
    assert not broker.calls
