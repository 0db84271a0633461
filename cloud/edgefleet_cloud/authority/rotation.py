"""Replaces the device authority: a new one issues, the old one is trusted until it is retired.

`device-ca.crt` is the switch, `device-ca.pem` only holds keys: a key without a certificate is
nobody's. So the keys are written first when one comes, and last when one goes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from edgefleet_cloud import durable
from edgefleet_cloud.authority.issuing import CERTIFICATE, KEY, Issuer, load_issuers
from edgefleet_cloud.errors import ConflictError

LIFE = timedelta(days=3650)
BACKDATE = timedelta(hours=1)  # devices' clocks run behind
KEY_MODE = 0o600
_NUMBERED = re.compile(r"(.*) (\d{1,9})")


def rotate(keys_dir: Path, now: datetime) -> Issuer:
    """Make a new authority, which issues from now on; the present one stays trusted.

    Returns:
        The new authority.

    Raises:
        ConflictError: The last rotation is not ended (code `rotation_under_way`).
        UnavailableError: The present authority cannot be read.
        OSError: A file cannot be written; the present authority stands.
    """
    present = load_issuers(keys_dir)
    if len(present) > 1:
        raise ConflictError(
            "The authority before the present one is still trusted.",
            code="rotation_under_way",
            hint="End the last rotation first: edgefleet-cloud ca retire",
        )
    made = _successor(present[0], now)
    _write_keys(keys_dir, [made, *present])
    _write_certificates(keys_dir, [made, *present])
    return made


def retire(keys_dir: Path) -> Sequence[Issuer]:
    """Trust the newest authority alone; return those that are trusted no more.

    Raises:
        UnavailableError: The authorities cannot be read.
        OSError: A file cannot be written.
    """
    newest, *older = load_issuers(keys_dir)
    if older:
        _write_certificates(keys_dir, [newest])
    _write_keys(keys_dir, [newest])
    return older


def _successor(present: Issuer, now: datetime) -> Issuer:
    key = ec.generate_private_key(ec.SECP256R1())
    public = key.public_key()
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, _next_name(present))])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(now + LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_certifying_only(), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Issuer(certificate, key)


def _next_name(present: Issuer) -> str:
    """Return another name than the present one's: OpenSSL looks authorities up by theirs."""
    names = present.certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    name = str(names[0].value) if names else "device CA"
    numbered = _NUMBERED.fullmatch(name)
    return f"{numbered[1]} {int(numbered[2]) + 1}" if numbered else f"{name} 2"


def _certifying_only() -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )


def _write_keys(keys_dir: Path, issuers: Sequence[Issuer]) -> None:
    keys = [
        issuer.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        for issuer in issuers
    ]
    durable.write(keys_dir / KEY, b"".join(keys), KEY_MODE)


def _write_certificates(keys_dir: Path, issuers: Sequence[Issuer]) -> None:
    certificates = [issuer.certificate.public_bytes(Encoding.PEM) for issuer in issuers]
    durable.write(keys_dir / CERTIFICATE, b"".join(certificates))
