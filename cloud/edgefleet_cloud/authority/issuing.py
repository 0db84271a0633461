"""Signs certificates and revocation lists. Subject and extensions are the server's own, always.

Two files hold the authority: `device-ca.crt`, the certificates that are trusted, newest first, and
`device-ca.pem`, their keys. The newest issues to devices. The oldest issues the broker's server
certificate, for a device that was off since before a rotation knows no other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import (
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edgefleet_cloud.authority.requests import describe
from edgefleet_shared.errors import UnavailableError
from edgefleet_shared.identifiers import check_device, sha256_digest

LIFE = timedelta(days=30)
CLOCK_SLACK = timedelta(minutes=5)  # a device whose clock is a little behind must still start
BACKDATED = timedelta(minutes=15)  # a hub or device whose clock is behind must take a new one
CERTIFICATE = "device-ca.crt"
KEY = "device-ca.pem"
_END = b"-----END PRIVATE KEY-----\n"


class Issuer(NamedTuple):
    """One certificate authority: its certificate and its key."""

    certificate: x509.Certificate
    key: EllipticCurvePrivateKey

    @property
    def digest(self) -> str:
        """Digest of its public key, by which it is named."""
        key = self.key.public_key()
        return describe(key).digest


class Revoked(NamedTuple):
    """A certificate that counts no more, and since when."""

    serial: int
    since: datetime


class DeviceCa:
    """The fleet's certificate authority; safe to share between threads.

    Args:
        issuers: The authorities that are trusted, newest first; at least one.
        life: How long a device's certificate holds.
    """

    def __init__(self, issuers: Sequence[Issuer], life: timedelta = LIFE) -> None:
        self._issuers = tuple(issuers)
        self._life = life

    @classmethod
    def load(cls, keys_dir: Path, life: timedelta = LIFE) -> DeviceCa:
        """Read `device-ca.pem` and `device-ca.crt`.

        Raises:
            UnavailableError: They cannot be read, or do not belong together (code `device_ca`).
        """
        return cls(load_issuers(keys_dir), life)

    @property
    def pem(self) -> str:
        """The certificates of all authorities that are trusted, newest first."""
        return "".join(_pem(issuer.certificate) for issuer in self._issuers)

    @property
    def bundle(self) -> str:
        """Names which authorities are trusted: a digest that changes when they do."""
        return sha256_digest("\n".join(issuer.digest for issuer in self._issuers).encode())

    def replace(self, issuers: Sequence[Issuer]) -> None:
        """Become these authorities, newest first: they have changed on disk."""
        self._issuers = tuple(issuers)

    @property
    def issuers(self) -> Sequence[Issuer]:
        """The authorities that are trusted, newest first."""
        return self._issuers

    def sign(self, key: EllipticCurvePublicKey, fleet: str, device: str, now: datetime) -> str:
        """Return a device's certificate as PEM.

        Raises:
            InvalidInputError: The name is none of a device (code `invalid_name`): a broker would
                take a wildcard or a fleet manager for it.
        """
        check_device(device)
        uri = x509.UniformResourceIdentifier(f"urn:fleet:{fleet}:device:{device}")
        return self._client(key, device, [uri], now, self._life)

    def sign_client(
        self, key: EllipticCurvePublicKey, common_name: str, now: datetime, life: timedelta
    ) -> str:
        """Return the certificate, as PEM, of a client that is no device, as a fleet manager is.

        Args:
            key: The client's.
            common_name: Who it is to the broker.
            now: Aware time of signing.
            life: How long it holds.
        """
        return self._client(key, common_name, [x509.DNSName(common_name)], now, life)

    def sign_server(
        self, key: EllipticCurvePublicKey, names: Sequence[str], now: datetime, life: timedelta
    ) -> str:
        """Return a server's certificate as PEM, issued by the oldest authority that is trusted.

        Args:
            key: The server's.
            names: Host names and IP addresses under which it is reached; at least one.
            now: Aware time of signing.
            life: How long it holds.
        """
        extended = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
        alternatives = [_general_name(name) for name in names]
        return _issue(self._issuers[-1], key, names[0], (extended, alternatives), now, life)

    def crl(self, revoked: Iterable[Revoked], number: int, now: datetime, life: timedelta) -> str:
        """Return the revocation lists, as PEM, one of each authority that is trusted.

        Args:
            revoked: The certificates that count no more. Serial numbers are random, so that each
                list may hold all of them.
            number: Grows with each list.
            now: Aware time of signing.
            life: How long they hold. Once they have expired, a broker refuses every client.
        """
        entries = [
            x509.RevokedCertificateBuilder()
            .serial_number(found.serial)
            .revocation_date(found.since)
            .build()
            for found in revoked
        ]
        return "".join(_crl(issuer, entries, number, now, life) for issuer in self._issuers)

    def _client(
        self,
        key: EllipticCurvePublicKey,
        common_name: str,
        alternatives: Sequence[x509.GeneralName],
        now: datetime,
        life: timedelta,
    ) -> str:
        extended = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
        return _issue(self._issuers[0], key, common_name, (extended, alternatives), now, life)


def load_issuers(keys_dir: Path) -> Sequence[Issuer]:
    """Read the authorities, newest first. A key without a certificate is left out.

    Raises:
        UnavailableError: They cannot be read, or a certificate's key is missing (`device_ca`).
    """
    try:
        certificates = x509.load_pem_x509_certificates((keys_dir / CERTIFICATE).read_bytes())
        text = (keys_dir / KEY).read_bytes()
        keys = [load_pem_private_key(part, None) for part in _split(text)]
    except (OSError, ValueError, TypeError) as error:
        raise _unusable(keys_dir, str(error)) from error
    found = []
    for certificate in certificates:
        key = next((k for k in keys if k.public_key() == certificate.public_key()), None)
        if not isinstance(key, EllipticCurvePrivateKey):
            raise _unusable(keys_dir, "key and certificate do not belong together")
        found.append(Issuer(certificate, key))
    return found


def _split(text: bytes) -> Sequence[bytes]:
    parts = [part + _END for part in text.replace(b"\r", b"").split(_END) if part.strip()]
    return parts or [b""]  # so that an empty file is refused like any other that holds no key


def _issue(
    issuer: Issuer,
    key: EllipticCurvePublicKey,
    common_name: str,
    purpose: tuple[x509.ExtendedKeyUsage, Sequence[x509.GeneralName]],
    now: datetime,
    life: timedelta,
) -> str:
    extended, alternatives = purpose
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]))
        .issuer_name(issuer.certificate.subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(min(now + life, issuer.certificate.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_signing_only(), critical=True)
        .add_extension(extended, critical=False)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(_authority(issuer), critical=False)
    )
    return _pem(builder.sign(issuer.key, hashes.SHA256()))


def _crl(
    issuer: Issuer,
    entries: Iterable[x509.RevokedCertificate],
    number: int,
    now: datetime,
    life: timedelta,
) -> str:
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.certificate.subject)
        .last_update(now - CLOCK_SLACK)
        .next_update(now + life)
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(_authority(issuer), critical=False)
    )
    for entry in entries:
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(issuer.key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


def _authority(issuer: Issuer) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key())


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()


def _signing_only() -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def _unusable(keys_dir: Path, why: str) -> UnavailableError:
    return UnavailableError(
        f"The device authority in {keys_dir} cannot be used: {why}.",
        code="device_ca",
        hint="Restore device-ca.pem and device-ca.crt from the fleet folder.",
    )
