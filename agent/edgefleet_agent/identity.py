"""Who this device is: its key, its certificate and what it was told when it enrolled."""

from __future__ import annotations

from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Literal

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from securesystemslib.signer import (
    CryptoSigner,
    Key,
    SecretsHandler,
    Signature,
    Signer,
    SSlibKey,
)

from edgefleet_agent import durable, rekeying
from edgefleet_shared import access, strict_json
from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.identifiers import sha256_digest
from edgefleet_shared.trust import DeviceIdentity

ENROLLMENT_MAX_BYTES = 64 * 1024
ACCESS_LIFE = timedelta(minutes=5)


class TransportInfo(msgspec.Struct, frozen=True):
    """Which transport the fleet manager speaks, and where."""

    kind: str
    url: str


class Enrollment(msgspec.Struct, frozen=True):
    """What enrolment settled; written last, so that its presence means the device is enrolled."""

    v: Literal[1]
    fleet: str
    device: str
    transport: TransportInfo
    blobs: str
    api: str = ""  # base URL of the fleet manager; '' in what an older version wrote


class PresentSigner(Signer):
    """Signs with whatever key the device has at the time: a renewal changes it under way."""

    def __init__(self, signer: CryptoSigner) -> None:
        self.current = signer

    @classmethod
    def from_priv_key_uri(
        cls, priv_key_uri: str, public_key: Key, secrets_handler: SecretsHandler | None = None
    ) -> Signer:
        """Refuse: it is made from an identity alone."""
        raise NotImplementedError

    @property
    def public_key(self) -> Key:
        """The public key of the device now."""
        return self.current.public_key

    def sign(self, payload: bytes) -> Signature:
        """Return a signature by the device's key."""
        return self.current.sign(payload)


class Identity:
    """An enrolled device's identity. The key never leaves its file, or token, and this process.

    Args:
        folder: `<state_dir>/identity`.
        token: RFC 7512 URI of the key if it lies on a token; '' = `device.key`.

    Raises:
        InvalidInputError: Not enrolled (code `not_enrolled`), or a file is damaged.
    """

    def __init__(self, folder: Path, token: str = "") -> None:
        self.folder, self.token = folder, token
        rekeying.finish(folder)
        data = durable.read_bytes(folder / "enrollment.json")
        if data is None:
            raise InvalidInputError(
                "This device is not enrolled.",
                code="not_enrolled",
                hint="Create a ticket on the fleet manager and run "
                "'edgefleet-agent enroll --ticket-file FILE'.",
            )
        self.enrollment = strict_json.decode(
            data, Enrollment, max_bytes=ENROLLMENT_MAX_BYTES, what="file identity/enrollment.json"
        )
        self.fleet = self.enrollment.fleet
        self.device = self.enrollment.device
        self._key = load_key(folder, token)
        self._signer = PresentSigner(_signer(self._key))

    def reload(self) -> None:
        """Read the key again: a renewal has put another one in place."""
        self._key = load_key(self.folder, self.token)
        self._signer.current = _signer(self._key)

    @property
    def certificate_file(self) -> Path:
        """The client certificate, PEM."""
        return self.folder / ("tls.crt" if self.token else "device.crt")

    @property
    def key_file(self) -> Path:
        """The private key of `certificate_file`, PEM, mode 0600.

        TLS cannot use a key on a token; there is then a key for TLS alone, which the token's key
        has vouched for.
        """
        return self.folder / ("tls.key" if self.token else "device.key")

    @property
    def api(self) -> str:
        """Base URL of the fleet manager."""
        return (self.enrollment.api or self.enrollment.blobs.removesuffix("/v1/blobs")).rstrip("/")

    def certificate(self) -> x509.Certificate | None:
        """Return the client certificate; None if there is none that can be read."""
        data = durable.read_bytes(self.certificate_file)
        try:
            return x509.load_pem_x509_certificate(data) if data else None
        except ValueError:
            return None

    @property
    def ca_file(self) -> Path:
        """The CA that the fleet manager's broker shows, PEM."""
        return self.folder / "ca.crt"

    @cached_property
    def root(self) -> bytes:
        """The pinned first TUF root."""
        data = durable.read_bytes(self.folder / "root.json")
        if data is None:
            raise InvalidInputError(
                "The pinned trust root identity/root.json is missing.",
                code="damaged_identity",
                hint="Enrol the device anew.",
            )
        return data

    @property
    def who(self) -> DeviceIdentity:
        """Fleet, id and key digest, as an assignment must name them."""
        return DeviceIdentity(self.fleet, self.device, key_digest(self._key))

    @property
    def signer(self) -> PresentSigner:
        """What signs reports, batches, access statements and renewals; it follows a renewal."""
        return self._signer

    def authorization(self, url: str, now: datetime) -> str:
        """Return an `Authorization` header for a URL, good for five minutes at its host alone."""
        audience = access.origin(url)
        return access.header(self.fleet, self.device, audience, now + ACCESS_LIFE, self.signer)


def load_key(folder: Path, token: str = "") -> ec.EllipticCurvePrivateKey:
    """Return the device's private key.

    Args:
        folder: Where `device.key` lies.
        token: RFC 7512 URI of the key if it lies on a token.

    Raises:
        InvalidInputError: Missing or damaged (code `damaged_identity`), or the token cannot be used
            (`token`).
    """
    if token:
        from edgefleet_agent.token_key import TokenKey  # an extra: most devices have no token

        return TokenKey.open(token)
    data = durable.read_bytes(folder / "device.key")
    why = "it is missing" if data is None else "it is no elliptic curve key"
    if data is not None:
        try:
            key = serialization.load_pem_private_key(data, None)
            if isinstance(key, ec.EllipticCurvePrivateKey):
                return key
        except (ValueError, TypeError) as error:
            why = str(error)
    raise InvalidInputError(
        f"The device key {folder / 'device.key'} cannot be used: {why}.",
        code="damaged_identity",
        hint="Enrol the device anew; a lost key cannot be restored.",
    )


def load_or_make_key(folder: Path, token: str = "") -> ec.EllipticCurvePrivateKey:
    """Return the device's key; made here (P-256), on the token or with mode 0600, if none is."""
    if token:
        from edgefleet_agent.token_key import TokenKey  # as above

        return TokenKey.open(token, make=True)
    if not (folder / "device.key").exists():
        durable.atomic_write(folder / "device.key", private_pem(new_key()), 0o600)
    return load_key(folder)


def new_key() -> ec.EllipticCurvePrivateKey:
    """Return a fresh P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a key as it is written to disk."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def request(key: ec.EllipticCurvePrivateKey, device: str) -> str:
    """Return a certificate request for a key, signed by it, as PEM."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, device)])
    csr = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    return csr.public_bytes(serialization.Encoding.PEM).decode()


def _signer(key: ec.EllipticCurvePrivateKey) -> CryptoSigner:
    return CryptoSigner(key, SSlibKey.from_crypto(key.public_key()))


def key_digest(key: ec.EllipticCurvePrivateKey) -> str:
    """Return the digest of the public half (SPKI, DER)."""
    return sha256_digest(
        key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
