"""Signing keys: made, encoded, decoded. Pure; `fleet_folder` reads and writes their files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import NamedTuple

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from securesystemslib.formats import encode_canonical
from securesystemslib.signer import CryptoSigner, Key

from edgefleet_shared.errors import InvalidInputError, TrustError

MIN_PASSPHRASE = 12  # characters; PKCS#8 stretches a passphrase only 2048 times
ENCRYPTED_MARK = b"ENCRYPTED PRIVATE KEY"
DEFAULT_ALGORITHM = "ecdsa-p256"
ALGORITHMS: dict[str, Callable[[], CryptoSigner]] = {
    DEFAULT_ALGORITHM: CryptoSigner.generate_ecdsa,
    "ed25519": CryptoSigner.generate_ed25519,
    "ml-dsa-65": CryptoSigner.generate_mldsa,
}
ROOT_ONLY = "ml-dsa-65"
"""Its keys and signatures are too long for what travels with every assignment."""


class NamedKey(NamedTuple):
    """A signing key with its file name (`root-1`) and the role it signs for (`root`)."""

    name: str
    role: str
    signer: CryptoSigner


def generate(name: str, role: str, algorithm: str = DEFAULT_ALGORITHM) -> NamedKey:
    """Return a new key; ECDSA P-256 is the curve that every key store speaks.

    Raises:
        InvalidInputError: An algorithm that is none, or not for this role (code `algorithm`).
    """
    if algorithm not in ALGORITHMS:
        raise InvalidInputError(
            f"{algorithm[:40]!r} is not an algorithm of a signing key.",
            code="algorithm",
            hint=f"Choose one of {', '.join(ALGORITHMS)}.",
        )
    if algorithm == ROOT_ONLY and role != "root":
        raise InvalidInputError(
            f"{ROOT_ONLY} is for root keys alone.",
            code="algorithm",
            hint="What other keys sign travels in every message, and its signatures are long.",
        )
    return NamedKey(name, role, ALGORITHMS[algorithm]())


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
            hint="Expected is an ECDSA, Ed25519 or ML-DSA private key as PKCS#8 PEM.",
        ) from error


def encode_public(public: Key, role: str, uri: str = "") -> bytes:
    """Return a public key as JSON: securesystemslib's key dict, `keyid` and `role`.

    Args:
        public: The key.
        role: What it signs.
        uri: Where its private half is, if not in a file beside this one.
    """
    document = {**public.to_dict(), "keyid": public.keyid, "role": role}
    if uri:
        document["uri"] = uri
    return json.dumps(document, indent=1, sort_keys=True).encode() + b"\n"


def check_key_id(key: Key) -> Key:
    """Return a key whose id is the digest of its content, so that no name can mean two keys.

    Raises:
        TrustError: It has another id (code `key_id`).
    """
    content = {"keytype": key.keytype, "scheme": key.scheme, "keyval": key.keyval}
    due = hashlib.sha256(str(encode_canonical(content)).encode()).hexdigest()
    if key.keyid != due:
        raise TrustError(
            f"The key {key.keyid[:80]!r} has another id than its content gives: {due}.",
            code="key_id",
            hint="Somebody may be passing off a key as another; sign nothing.",
        )
    return key
