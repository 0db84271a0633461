"""Who this device is: its key, its certificate and what it was told when it enrolled."""

from __future__ import annotations

from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Literal

import msgspec
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from securesystemslib.signer import CryptoSigner, SSlibKey

from edgefleet_agent import durable
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


class Identity:
    """An enrolled device's identity. The key never leaves its file and this process.

    Args:
        folder: `<state_dir>/identity`.

    Raises:
        InvalidInputError: Not enrolled (code `not_enrolled`), or a file is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
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
        self._key = load_key(folder)

    @property
    def certificate_file(self) -> Path:
        """The client certificate, PEM."""
        return self.folder / "device.crt"

    @property
    def key_file(self) -> Path:
        """The private key, PEM, mode 0600."""
        return self.folder / "device.key"

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

    @cached_property
    def who(self) -> DeviceIdentity:
        """Fleet, id and key digest, as an assignment must name them."""
        return DeviceIdentity(self.fleet, self.device, key_digest(self._key))

    @cached_property
    def signer(self) -> CryptoSigner:
        """What signs reports, batches and access statements."""
        return CryptoSigner(self._key, SSlibKey.from_crypto(self._key.public_key()))

    def authorization(self, url: str, now: datetime) -> str:
        """Return an `Authorization` header for a URL, good for five minutes at its host alone."""
        audience = access.origin(url)
        return access.header(self.fleet, self.device, audience, now + ACCESS_LIFE, self.signer)


def load_key(folder: Path) -> ec.EllipticCurvePrivateKey:
    """Return the device's private key.

    Raises:
        InvalidInputError: Missing or damaged (code `damaged_identity`).
    """
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


def load_or_make_key(folder: Path) -> ec.EllipticCurvePrivateKey:
    """Return the device's key, made here (P-256) and written with mode 0600 if there is none."""
    if not (folder / "device.key").exists():
        pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        durable.atomic_write(folder / "device.key", pem, 0o600)
    return load_key(folder)


def key_digest(key: ec.EllipticCurvePrivateKey) -> str:
    """Return the digest of the public half (SPKI, DER)."""
    return sha256_digest(
        key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
