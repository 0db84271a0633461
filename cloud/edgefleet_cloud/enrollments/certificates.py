"""Checks a device's certificate request and issues its certificate. Pure; time is passed in.

From the request only the public key is taken. Subject and every extension are the server's own.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edgefleet_shared.errors import InvalidInputError, UnavailableError
from edgefleet_shared.identifiers import sha256_digest

LIFE = timedelta(days=30)
CLOCK_SLACK = timedelta(minutes=5)  # a device whose clock is a little behind must still start
MAX_CSR_BYTES = 8192


class DeviceKey(NamedTuple):
    """A device's public key as PEM, and the digest of its SPKI DER."""

    pem: str
    digest: str


def read_request(text: str) -> EllipticCurvePublicKey:
    """Return the public key of a certificate request that was signed by its private key.

    Raises:
        InvalidInputError: Not a request, another kind of key, or not signed by its own key (code
            `invalid_csr`).
    """
    if len(text) > MAX_CSR_BYTES:
        raise _refused("it is too long")
    try:
        request = x509.load_pem_x509_csr(text.encode())
        key = request.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _refused("it is not a PEM certificate request") from error
    if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP256R1):
        raise _refused("its key is not ECDSA P-256")
    try:
        valid = request.is_signature_valid
    except (InvalidSignature, UnsupportedAlgorithm, ValueError) as error:
        raise _refused("its signature cannot be checked") from error
    if not valid:
        raise _refused("its own key did not sign it")
    return key


def describe(key: EllipticCurvePublicKey) -> DeviceKey:
    """Return the public key in the forms in which it is stored and named."""
    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return DeviceKey(pem, sha256_digest(der))


class DeviceCa:
    """The fleet's certificate authority for devices.

    Args:
        key: Its private key.
        certificate: Its certificate.
    """

    def __init__(self, key: EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        self._key = key
        self._certificate = certificate

    @classmethod
    def load(cls, keys_dir: Path) -> DeviceCa:
        """Read `device-ca.pem` and `device-ca.crt`.

        Raises:
            UnavailableError: They cannot be read, or do not belong together (code `device_ca`).
        """
        try:
            key = load_pem_private_key((keys_dir / "device-ca.pem").read_bytes(), None)
            certificate = x509.load_pem_x509_certificate((keys_dir / "device-ca.crt").read_bytes())
        except (OSError, ValueError, TypeError) as error:
            raise _unusable(keys_dir, str(error)) from error
        if not isinstance(key, EllipticCurvePrivateKey):
            raise _unusable(keys_dir, "the key is not an elliptic curve key")
        if key.public_key() != certificate.public_key():
            raise _unusable(keys_dir, "key and certificate do not belong together")
        return cls(key, certificate)

    @property
    def pem(self) -> str:
        """The authority's certificate."""
        return self._certificate.public_bytes(Encoding.PEM).decode()

    def sign(self, key: EllipticCurvePublicKey, fleet: str, device: str, now: datetime) -> str:
        """Return a device's certificate as PEM, valid for 30 days."""
        uri = f"urn:fleet:{fleet}:device:{device}"
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, device)]))
            .issuer_name(self._certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - CLOCK_SLACK)
            .not_valid_after(min(now + LIFE, self._certificate.not_valid_after_utc))
        )
        for extension, critical in (
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (_signing_only(), True),
            (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), False),
            (x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), False),
            (x509.SubjectKeyIdentifier.from_public_key(key), False),
            (self._authority(), False),
        ):
            builder = builder.add_extension(extension, critical)
        certificate = builder.sign(self._key, hashes.SHA256())
        return certificate.public_bytes(Encoding.PEM).decode()

    def _authority(self) -> x509.AuthorityKeyIdentifier:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())


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


def _refused(why: str) -> InvalidInputError:
    return InvalidInputError(
        f"The certificate request is refused: {why}.",
        code="invalid_csr",
        hint="Make a PKCS#10 request in PEM with a fresh ECDSA P-256 key.",
    )


def _unusable(keys_dir: Path, why: str) -> UnavailableError:
    return UnavailableError(
        f"The device authority in {keys_dir} cannot be used: {why}.",
        code="device_ca",
        hint="Restore device-ca.pem and device-ca.crt from the fleet folder.",
    )
