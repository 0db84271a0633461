"""One-time tickets, certificate requests, and the certificates that the server makes of them."""

from __future__ import annotations

import base64
import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store

from edgefleet_cloud.authority.issuing import DeviceCa
from edgefleet_cloud.authority.requests import describe
from edgefleet_cloud.authority.service import Certificates
from edgefleet_cloud.devices.keys import DeviceKeys
from edgefleet_cloud.devices.service import Devices
from edgefleet_cloud.enrollments import tickets
from edgefleet_cloud.enrollments.service import Addresses, Enrollments
from edgefleet_cloud.enrollments.tables import TicketRow
from edgefleet_cloud.errors import ConflictError, ForbiddenError, NotFoundError
from edgefleet_cloud.events.feed import EventFeed
from edgefleet_cloud.events.service import EventLog
from edgefleet_cloud.iothub.ways import Ways
from edgefleet_shared.errors import InvalidInputError, UnavailableError
from edgefleet_shared.identifiers import sha256_digest
from tests.fakes.disconnector import RecordingDisconnector

DAY = timedelta(days=1)
ADDRESSES = Addresses("http://fleet.example:8080", Ways(broker=lambda: "mqtt://fleet.example:1883"))


def csr(key=None, *, extensions=(), name="anything") -> str:
    """Return a certificate request in PEM."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, algorithm).public_bytes(serialization.Encoding.PEM).decode()


class Office:
    """The enrolment service over a real database and the fleet's own authority."""

    def __init__(self, folder, database) -> None:
        self.database = database
        self.now = datetime.now(UTC)
        self.root = (folder.metadata / "1.root.json").read_bytes()
        log = EventLog(EventFeed())
        self.devices = Devices(log)
        self.broker = RecordingDisconnector()

        def clock() -> datetime:
            return self.now

        self.service = Enrollments(
            "demo",
            Certificates("demo", DeviceCa.load(folder.online / "keys"), self.broker, clock),
            self,
            self.devices,
            log,
            lambda: ADDRESSES,
            clock,
        )
        with database.write() as session:
            for name in ("cam-1", "cam-2"):
                self.devices.create(session, name, {}, "rpi5", "token/admin")

    def bundle(self) -> bytes:
        raise NotImplementedError

    def first_root(self) -> bytes:
        return self.root

    def versions(self) -> dict[str, int]:
        return {"root": 2, "timestamp": 9, "snapshot": 4, "targets": 3, "publisher/digits": 6}

    def ticket(self, device: str = "cam-1", life: timedelta = DAY) -> str:
        with self.database.write() as session:
            return self.service.issue(session, device, life, "token/admin").text

    def enroll(self, ticket: str, request: str):
        with self.database.write() as session:
            return self.service.enroll(session, ticket, request)

    def row(self, device: str = "cam-1"):
        with self.database.read() as session:
            return self.devices.get(session, device)


@pytest.fixture
def office(folder, database):
    """Two registered devices."""
    return Office(folder, database)


def test_a_ticket_tells_the_device_everything_it_needs(office):
    """It names fleet, device, address, end and the root to pin; the server keeps a hash only."""
    text = office.ticket()
    body = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    assert body["v"] == 1
    assert (body["fleet"], body["device"], body["url"]) == ("demo", "cam-1", ADDRESSES.api)
    assert body["root"] == sha256_digest(office.root)
    with office.database.read() as session:
        row = session.get(TicketRow, sha256_digest(body["secret"].encode()))
        assert row.device == "cam-1"
        assert body["secret"] not in row.model_dump_json()
    assert len(base64.urlsafe_b64decode(body["secret"] + "==")) == 32


def test_a_device_gets_a_certificate_for_its_key(office):
    """Everything in it is the server's word but the key; the row knows key and digest."""
    key = ec.generate_private_key(ec.SECP256R1())
    asked = (
        x509.BasicConstraints(ca=True, path_length=None),
        x509.SubjectAlternativeName([x509.DNSName("admin.example")]),
    )
    done = office.enroll(office.ticket(), csr(key, extensions=asked, name="cam-2"))
    made = x509.load_pem_x509_certificate(done.certificate.encode())
    assert made.public_key() == key.public_key()
    assert made.subject.rfc4514_string() == "CN=cam-1"
    assert made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [each.value for each in names] == ["urn:fleet:demo:device:cam-1"]
    usage = made.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert made.extensions.get_extension_for_class(x509.KeyUsage).value.digital_signature
    assert not made.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    for kind in (x509.SubjectKeyIdentifier, x509.AuthorityKeyIdentifier):
        assert made.extensions.get_extension_for_class(kind)
    life = made.not_valid_after_utc - made.not_valid_before_utc
    assert timedelta(days=30) <= life < timedelta(days=31)
    row = office.row()
    assert (row.state, row.key) == ("enrolled", describe(key.public_key()).digest)
    assert DeviceKeys(office.database).key_of("cam-1") is not None
    assert (done.fleet, done.device, done.counter) == ("demo", "cam-1", 0)
    assert (done.root, done.api) == (office.root, ADDRESSES.api)
    assert done.transport == ("mqtt", "mqtt://fleet.example:1883")
    assert done.minimum == office.versions()


def test_the_certificate_holds_before_a_strict_verifier(office):
    """An X.509 verifier that we did not write accepts it as a client's, up to the fleet's CA."""
    done = office.enroll(office.ticket(), csr())
    ca = x509.load_pem_x509_certificate(done.ca.encode())
    verifier = PolicyBuilder().store(Store([ca])).time(office.now).build_client_verifier()
    found = verifier.verify(x509.load_pem_x509_certificate(done.certificate.encode()), [])
    assert [each.value for each in found.subjects] == ["urn:fleet:demo:device:cam-1"]


def test_fifty_at_once_give_one_certificate(office):
    """A ticket is burnt in the transaction that uses it: one wins, forty-nine are refused."""
    text = office.ticket()
    requests = [csr() for _ in range(50)]

    def attempt(request):
        try:
            return office.enroll(text, request)
        except ForbiddenError as error:
            assert error.code == "ticket_refused"
            return None

    with ThreadPoolExecutor(16) as pool:
        done = [each for each in pool.map(attempt, requests) if each]
    assert len(done) == 1
    winner = x509.load_pem_x509_certificate(done[0].certificate.encode())
    assert office.row().key == describe(winner.public_key()).digest
    assert office.row().enrollment == 1


def test_a_lost_answer_is_given_again_to_the_same_key(office):
    """The ticket's device asks again with its key and is answered; another key is refused."""
    text, key = office.ticket(), ec.generate_private_key(ec.SECP256R1())
    office.enroll(text, csr(key))
    again = office.enroll(text, csr(key))
    assert x509.load_pem_x509_certificate(again.certificate.encode()).public_key() == (
        key.public_key()
    )
    assert office.row().enrollment == 1
    with pytest.raises(ForbiddenError):
        office.enroll(text, csr())
    office.now += 2 * DAY
    with pytest.raises(ForbiddenError):
        office.enroll(text, csr(key))


def _not_requests():
    p256 = ec.generate_private_key(ec.SECP256R1())
    good = csr(p256)
    der = x509.load_pem_x509_csr(good.encode()).public_bytes(serialization.Encoding.DER)
    forged = base64.encodebytes(der[:-1] + bytes([der[-1] ^ 1])).decode()
    yield "empty", ""
    yield "text", "please"
    yield "a certificate's name on it", good.replace("REQUEST", "")
    yield "cut short", good[:-60]
    yield (
        "not signed by its key",
        (f"-----BEGIN CERTIFICATE REQUEST-----\n{forged}-----END CERTIFICATE REQUEST-----\n"),
    )
    yield "P-384", csr(ec.generate_private_key(ec.SECP384R1()))
    yield "RSA", csr(rsa.generate_private_key(65537, 2048))
    yield "Ed25519", csr(ed25519.Ed25519PrivateKey.generate())
    yield "very long", good + "\n" * 9000
    yield "not ASCII", good.replace("A", "Ä")


def test_a_bad_request_leaves_the_ticket_good(office):
    """Each is refused with code invalid_csr, and the ticket still works afterwards."""
    text = office.ticket()
    for name, request in _not_requests():
        try:
            office.enroll(text, request)
        except InvalidInputError as error:
            assert (error.code, bool(error.hint)) == ("invalid_csr", True), name
        else:
            pytest.fail(f"A request was accepted that is {name}.")
    assert office.row().state == "registered"
    assert office.enroll(text, csr()).device == "cam-1"


def test_a_ticket_works_once_in_time_for_one_device(office):
    """Used, expired, foreign, altered and invented tickets are refused, nothing changes."""
    used, late = office.ticket(), office.ticket(life=timedelta(hours=1))
    office.enroll(used, csr())
    key = office.row().key
    real = tickets.decode(office.ticket())
    fake = tickets.issue("demo", "cam-1", "http://x", real.root, office.now + DAY)
    other = tickets.Ticket(**{**_fields(real), "device": "cam-2"})
    fleet = tickets.Ticket(**{**_fields(real), "fleet": "other"})
    longer = tickets.Ticket(
        **{**_fields(tickets.decode(late)), "not_after": "2099-01-01T00:00:00Z"}
    )
    office.now += timedelta(hours=2)
    for name, text in {
        "used": used,
        "late": late,
        "late with another end": tickets.encode(longer),
        "invented": tickets.encode(fake),
        "for another device": tickets.encode(other),
        "of another fleet": tickets.encode(fleet),
    }.items():
        with pytest.raises(ForbiddenError) as caught:
            office.enroll(text, csr())
        assert caught.value.code == "ticket_refused", name
    assert (office.row().key, office.row("cam-2").state) == (key, "registered")
    assert office.enroll(tickets.encode(real), csr()).device == "cam-1"


def _fields(ticket):
    return {name: getattr(ticket, name) for name in ticket.__struct_fields__}


@pytest.mark.parametrize("text", ["", "x", "eyJ2IjoxfQ", "ä" * 9, "A" * 9000, "e30=", "!!!!"])
def test_what_is_no_ticket_is_refused(office, text):
    """Garbage is told from a ticket that does not hold."""
    with pytest.raises(InvalidInputError) as caught:
        office.enroll(text, csr())
    assert caught.value.code == "invalid_ticket"


def test_a_new_ticket_gives_an_enrolled_device_a_new_key(office):
    """The old key counts no more, and the numbers of reports begin anew."""
    office.enroll(office.ticket(), csr())
    first = office.row()
    with office.database.write() as session:
        row = office.devices.get(session, "cam-1")
        row.reported_seq = 70
        session.add(row)
    office.enroll(office.ticket(), csr())
    again = office.row()
    assert again.key != first.key
    assert (again.enrollment, again.reported_seq) == (2, 0)


def test_a_decommissioned_device_gets_nothing(office):
    """Neither a ticket nor, with one it still had, a certificate; its key is gone at once."""
    early = office.ticket()
    with office.database.write() as session:
        office.devices.decommission(session, office.devices.get(session, "cam-1"), "token/admin")
    with pytest.raises(ConflictError):
        office.ticket()
    with pytest.raises(ConflictError):
        office.enroll(early, csr())
    assert DeviceKeys(office.database).key_of("cam-1") is None


def test_a_ticket_needs_a_device(office):
    """There is no ticket for a name that nobody registered."""
    with pytest.raises(NotFoundError):
        office.ticket("nobody")


def test_a_broken_authority_is_told_at_the_start(folder, tmp_path):
    """A missing file, garbage, and a key of another certificate each say what to restore."""
    keys = folder.online / "keys"
    with pytest.raises(UnavailableError):
        DeviceCa.load(tmp_path)
    right = (keys / "device-ca.pem").read_bytes()
    for wrong in (b"garbage", (keys / "director.pem").read_bytes()):
        (keys / "device-ca.pem").write_bytes(wrong)
        with pytest.raises(UnavailableError) as caught:
            DeviceCa.load(keys)
        assert caught.value.code == "device_ca"
    (keys / "device-ca.pem").write_bytes(right)
    assert DeviceCa.load(keys)
