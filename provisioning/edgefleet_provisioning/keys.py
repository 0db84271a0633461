"""Signing keys: made, encoded, decoded. Pure; `fleet_folder` reads and writes their files."""

from __future__ import annotations

import json
from typing import NamedTuple

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from securesystemslib.signer import CryptoSigner

from edgefleet_shared.errors import InvalidInputError

MIN_PASSPHRASE = 12  # characters; PKCS#8 stretches a passphrase only 2048 times
ENCRYPTED_MARK = b"ENCRYPTED PRIVATE KEY"


class NamedKey(NamedTuple):
    """A signing key with its file name (`root-1`) and the role it signs for (`root`)."""

    name: str
    role: str
    signer: CryptoSigner


def generate(name: str, role: str) -> NamedKey:
    """Return a new ECDSA P-256 key: the curve that every key store speaks."""
    return NamedKey(name, role, CryptoSigner.generate_ecdsa())


def check_passphrase(passphrase: bytes) -> bytes:
    """Return a passphrase that is long enough.

    Raises:
        InvalidInputError: It is not.
    """
    if len(passphrase.decode(errors="replace")) < MIN_PASSPHRASE:
        raise InvalidInputError(
            f"The passphrase is shorter than {MIN_PASSPHRASE} characters.",
            code="weak_passphrase",
            hint="Four random words make a good one.",
        )
    return passphrase


def encode_private(signer: CryptoSigner, passphrase: bytes | None) -> bytes:
    """Return PKCS#8 PEM, encrypted (PBES2, AES-256) if there is a passphrase."""
    if passphrase is None:
        return signer.private_bytes
    key = load_pem_private_key(signer.private_bytes, None)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(passphrase))


def is_encrypted(pem: bytes) -> bool:
    """Tell whether a PEM needs a passphrase."""
    return ENCRYPTED_MARK in pem


def decode_private(pem: bytes, passphrase: bytes | None, name: str) -> CryptoSigner:
    """Return the signer of a PKCS#8 PEM; a passphrase that is not needed is not looked at.

    Raises:
        InvalidInputError: Not a key that can sign here, or the passphrase is missing or wrong.
    """
    encrypted = is_encrypted(pem)
    if encrypted and passphrase is None:
        raise InvalidInputError(
            f"The key {name} is encrypted and no passphrase was given.",
            code="passphrase_needed",
            hint="Run on a terminal to be asked for it, or give --passphrase-file.",
        )
    try:
        key = load_pem_private_key(pem, passphrase if encrypted else None)
        return CryptoSigner(key)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        if encrypted and "password" in str(error).lower():
            raise InvalidInputError(
                f"The passphrase does not open the key {name}.",
                code="passphrase_wrong",
                hint="It is the one that `edgefleet init` was given. Nothing was signed.",
            ) from error
        raise InvalidInputError(
            f"The key {name} cannot be used: {error}.",
            code="bad_key",
            hint="Expected is an ECDSA or Ed25519 private key as PKCS#8 PEM.",
        ) from error


def encode_public(key: NamedKey) -> bytes:
    """Return the public half as JSON: securesystemslib's key dict, `keyid` and `role`."""
    public = key.signer.public_key
    document = {**public.to_dict(), "keyid": public.keyid, "role": key.role}
    return json.dumps(document, indent=1, sort_keys=True).encode() + b"\n"
