"""The fleet's device CA, as Azure wants it: certificates, and the proof that we hold the keys."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from edgefleet_provisioning.fleet_folder import read
from edgefleet_shared.errors import InvalidInputError

CERTIFICATE, KEY = "device-ca.crt", "device-ca.pem"
PROOF_LIFE = timedelta(hours=1)
CLOCK_SLACK = timedelta(minutes=10)
MAX_CODE = 64  # of a common name
_END = b"-----END PRIVATE KEY-----\n"
_HINT = "They lie in online/keys of the fleet folder, or in keys_dir of the server; give --keys."


class Authority(NamedTuple):
    """One CA certificate of the fleet, and its key where it is at hand."""

    certificate: x509.Certificate
    key: EllipticCurvePrivateKey | None

    @property
    def pem(self) -> str:
        """The certificate."""
        return self.certificate.public_bytes(Encoding.PEM).decode()

    @property
    def thumbprint(self) -> str:
        """Its SHA-1 in upper-case hex, by which Azure knows it."""
        return self.certificate.fingerprint(hashes.SHA1()).hex().upper()  # noqa: S303 - Azure's

    @property
    def name(self) -> str:
        """What it is called in Azure: the same for the same certificate, of [A-Za-z0-9._-]."""
        return f"edgefleet-{self.certificate.fingerprint(hashes.SHA256()).hex()[:16]}"


def load(keys: Path) -> list[Authority]:
    """Read the authorities that the fleet trusts, newest first: one, or two in a rotation.

    Raises:
        InvalidInputError: There is no certificate, or it cannot be read (`device_ca`).
    """
    missing = f"There is no certificate of a device CA in {keys}."
    try:
        found = x509.load_pem_x509_certificates(
            read(keys / CERTIFICATE, "certificate", missing, _HINT)
        )
        private = _private(keys)
    except ValueError as error:
        raise InvalidInputError(
            f"The device CA in {keys} cannot be read: {error}.", code="device_ca", hint=_HINT
        ) from error
    return [
        Authority(one, next((k for k in private if k.public_key() == one.public_key()), None))
        for one in found
    ]


def prove(authority: Authority, code: str, now: datetime) -> str:
    """Return a certificate whose subject is Azure's verification code, signed by the CA's key.

    Args:
        authority: The CA.
        code: What Azure gave.
        now: Aware time of signing.

    Raises:
        InvalidInputError: The key is not here (`device_ca`), or that is no code (`usage`).
    """
    if authority.key is None:
        raise InvalidInputError(
            f"The key of the CA {authority.name} is not here, so nothing can be signed with it.",
            code="device_ca",
            hint=_HINT,
        )
    if not (code.isascii() and code.isalnum() and len(code) <= MAX_CODE):
        raise InvalidInputError(
            f"{code[:80]!r} is not a verification code of Azure's.",
            code="usage",
            hint="It is of letters and digits, as `az iot hub certificate "
            "generate-verification-code` shows under properties.verificationCode.",
        )
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, code)])
    issuer = authority.certificate
    issued = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject)
        .public_key(generate_private_key(SECP256R1()).public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SLACK)
        .not_valid_after(now + PROOF_LIFE)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(authority.key, hashes.SHA256())
    )
    return issued.public_bytes(Encoding.PEM).decode()


def _private(keys: Path) -> list[EllipticCurvePrivateKey]:
    path = keys / KEY
    if not path.exists():
        return []
    text = read(path, "key of the device CA", f"{path} is missing.", _HINT).replace(b"\r", b"")
    found = [load_pem_private_key(part + _END, None) for part in text.split(_END) if part.strip()]
    return [key for key in found if isinstance(key, EllipticCurvePrivateKey)]
