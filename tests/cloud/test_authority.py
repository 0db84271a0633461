"""What the fleet's authority signs, checked by somebody else's verifier, and what it takes back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, Store

from edgefleet_cloud import durable
from edgefleet_cloud.authority import rotation
from edgefleet_cloud.authority.issuing import DeviceCa, Revoked
from edgefleet_cloud.authority.service import Certificates
from edgefleet_cloud.authority.watch import AuthorityWatch
from edgefleet_cloud.devices.service import Devices
from edgefleet_cloud.errors import ConflictError
from edgefleet_cloud.events.feed import EventFeed
from edgefleet_cloud.events.service import EventLog
from edgefleet_shared.errors import UnavailableError
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


def test_a_rotation_keeps_the_old_authority_until_it_is_retired(folder):
    """The new one issues, the old one stays in the bundle, signs lists and the server; then not."""
    keys, now = folder.online / "keys", datetime.now(UTC)
    old = DeviceCa.load(keys)
    early = x509.load_pem_x509_certificate(old.sign(key(), "demo", "cam-1", now).encode())
    made = rotation.rotate(keys, now)
    both = DeviceCa.load(keys)
    assert [each.digest for each in both.issuers] == [made.digest, old.issuers[0].digest]
    names = {each.certificate.subject for each in both.issuers}
    assert len(names) == 2
    late = x509.load_pem_x509_certificate(both.sign(key(), "demo", "cam-1", now).encode())
    server = x509.load_pem_x509_certificate(both.sign_server(key(), ["b"], now, DAY).encode())
    late.verify_directly_issued_by(made.certificate)
    server.verify_directly_issued_by(old.issuers[0].certificate)
    lists = both.crl([Revoked(early.serial_number, now)], 1, now, DAY).split("-----END X509 CRL")
    assert len(lists) == 3
    verifier = PolicyBuilder().store(store(both)).time(now).build_client_verifier()
    assert verifier.verify(early, [])
    assert verifier.verify(late, [])
    with pytest.raises(ConflictError) as caught:
        rotation.rotate(keys, now)
    assert caught.value.code == "rotation_under_way"
    assert [each.digest for each in rotation.retire(keys)] == [old.issuers[0].digest]
    verifier = PolicyBuilder().store(store(DeviceCa.load(keys))).time(now).build_client_verifier()
    assert verifier.verify(late, [])
    with pytest.raises(x509.verification.VerificationError):
        verifier.verify(early, [])
    assert rotation.retire(keys) == []
    assert (keys / "device-ca.pem").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("action", ["rotate", "retire"])
def test_a_rotation_that_is_cut_short_is_whole_or_not_begun(folder, monkeypatch, action, step):
    """Power fails before either file is written: what is there is an authority, and goes on."""
    keys, now = folder.online / "keys", datetime.now(UTC)
    if action == "retire":
        rotation.rotate(keys, now)
    trusted = len(DeviceCa.load(keys).issuers)
    left = [step]

    def write(*arguments, real=durable.write):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        real(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(durable, "write", write)
        rotation.rotate(keys, now) if action == "rotate" else rotation.retire(keys)
    assert len(DeviceCa.load(keys).issuers) in {trusted, 1}
    if action == "rotate":
        rotation.rotate(keys, now)
    assert len(rotation.retire(keys)) <= 1
    assert len(DeviceCa.load(keys).issuers) == 1


def test_a_changed_authority_issues_once_the_broker_has_taken_it_up(folder):
    """A broker that fails is asked again, and nobody gets a certificate that it would refuse."""
    keys = folder.online / "keys"
    ca, told, broken = DeviceCa.load(keys), [], [True]

    def take_up() -> None:
        if broken[0]:
            raise UnavailableError("not now")
        told.append(1)

    watch = AuthorityWatch(ca, keys, take_up)
    watch.look()
    made = rotation.rotate(keys, datetime.now(UTC))
    with pytest.raises(UnavailableError):
        watch.look()
    assert ca.issuers[0].digest != made.digest
    broken[0] = False
    watch.look()
    watch.look()
    assert (ca.issuers[0].digest, told) == (made.digest, [1])
