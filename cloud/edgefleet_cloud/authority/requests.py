"""Checks a device's certificate request. Pure: only the public key is taken from it."""

from __future__ import annotations

from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.identifiers import sha256_digest

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


def _refused(why: str) -> InvalidInputError:
    return InvalidInputError(
        f"The certificate request is refused: {why}.",
        code="invalid_csr",
        hint="Make a PKCS#10 request in PEM with a fresh ECDSA P-256 key.",
    )
