"""Private keys wherever they are: files here, tokens by PKCS#11, cloud key services.

A key is named by a securesystemslib URI: `file2:PATH`, `hsm:KEYID?label=TOKEN`, `awskms:ID`,
`azurekms://VAULT.vault.azure.net/keys/NAME/VERSION`, `gcpkms:ID`. What a scheme needs is an extra
of this distribution and is imported only when such a key is used.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

from securesystemslib.signer import (
    AWSSigner,
    AzureSigner,
    CryptoSigner,
    GCPSigner,
    HSMSigner,
    Key,
    Signer,
)

from edgefleet_provisioning import keys
from edgefleet_provisioning.fleet_folder import read
from edgefleet_shared.errors import EdgeFleetError, InvalidInputError

PKCS11_LIBRARY = "PYKCS11LIB"


class _Scheme(NamedTuple):
    module: str
    extra: str


SCHEMES = {
    "file2": _Scheme("cryptography", ""),
    "hsm": _Scheme("pkcs11", "pkcs11"),
    "awskms": _Scheme("boto3", "kms-aws"),
    "azurekms": _Scheme("azure.keyvault.keys", "kms-azure"),
    "gcpkms": _Scheme("google.cloud.kms", "kms-gcp"),
}

Secrets = Callable[[str], str]
"""Gives a passphrase or PIN; its argument says for what."""


def check_uri(uri: str) -> str:
    """Return the scheme of a URI whose library is installed.

    Raises:
        InvalidInputError: Not a URI of a key, or its extra or its settings are missing.
    """
    scheme = uri.partition(":")[0]
    known = SCHEMES.get(scheme)
    if known is None or ":" not in uri:
        raise InvalidInputError(
            f"{uri[:100]!r} is not the URI of a key.",
            code="key_uri",
            hint=f"It begins with one of {', '.join(f'{name}:' for name in SCHEMES)}.",
        )
    if not _installed(known.module):
        raise InvalidInputError(
            f"Keys at {scheme}: need the extra {known.extra!r} of edgefleet.",
            code="missing_extra",
            hint=f"pip install 'edgefleet[{known.extra}]'",
        )
    if scheme == "hsm" and not os.environ.get(PKCS11_LIBRARY):
        raise InvalidInputError(
            f"{PKCS11_LIBRARY} is not set: the PKCS#11 library that speaks to the token.",
            code="key_uri",
            hint=f"For SoftHSM: export {PKCS11_LIBRARY}=/usr/lib/softhsm/libsofthsm2.so",
        )
    return scheme


class Found(NamedTuple):
    """A key at a URI: the URI that names exactly it, and its public half."""

    uri: str
    key: Key


def import_public(uri: str, secrets: Secrets) -> Found:
    """Return the public key at a URI.

    Raises:
        InvalidInputError: It cannot be had; says why.
    """
    scheme = check_uri(uri)
    try:
        if scheme == "file2":
            return Found(uri, _from_file(uri, secrets).public_key)
        return Found(*_IMPORTS[scheme](uri, secrets))
    except EdgeFleetError:
        raise
    except Exception as error:
        raise _cannot("reached", uri, error) from error


def open_uri(uri: str, key: Key, secrets: Secrets) -> Signer:
    """Return the signer at a URI; a token or key service is not asked before it signs.

    Raises:
        InvalidInputError: It cannot be opened, or holds another key.
    """
    scheme = check_uri(uri)
    if scheme == "file2":
        signer: Signer = _from_file(uri, secrets)
        if signer.public_key.keyid != key.keyid:
            raise _cannot("opened", uri, ValueError("another key lies there"))
        return signer
    try:
        return Signer.from_priv_key_uri(uri, key, secrets)
    except Exception as error:
        raise _cannot("opened", uri, error) from error


def sign_with(signer: Signer, payload: bytes, name: str) -> str:
    """Return a signature in hex; what tokens and key services raise becomes one sentence.

    Raises:
        InvalidInputError: It did not sign (code `signer`).
    """
    try:
        return signer.sign(payload).signature
    except EdgeFleetError:
        raise
    except Exception as error:
        raise _cannot("signed with", name, error) from error


def _from_file(uri: str, secrets: Secrets) -> CryptoSigner:
    path = Path(uri.removeprefix("file2:"))
    pem = read(path, "key", f"The private key {path} is missing.", "Check the path after file2:.")
    encrypted = keys.is_encrypted(pem)
    return keys.decode_private(pem, secrets(str(path)).encode() if encrypted else None, str(path))


def _from_token(uri: str, secrets: Secrets) -> tuple[str, Key]:
    parts = urlsplit(uri)
    label = parse_qs(parts.query).get("label", [None])[0]
    return HSMSigner.import_(int(parts.path) if parts.path else None, label, secrets)


def _from_azure(uri: str, _secrets: Secrets) -> tuple[str, Key]:
    parts = urlsplit(uri)
    vault = (parts.hostname or "").partition(".")[0]
    return AzureSigner.import_(vault, parts.path.removeprefix("/keys/").partition("/")[0])


_IMPORTS: dict[str, Callable[[str, Secrets], tuple[str, Key]]] = {
    "hsm": _from_token,
    "awskms": lambda uri, _: AWSSigner.import_(uri.removeprefix("awskms:")),
    "azurekms": _from_azure,
    "gcpkms": lambda uri, _: GCPSigner.import_(uri.removeprefix("gcpkms:")),
}


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # its parent package is missing
        return False


def _cannot(what: str, name: str, error: Exception) -> InvalidInputError:
    return InvalidInputError(
        f"The key {name} cannot be {what}: {str(error) or type(error).__name__}.",
        code="signer",
        hint="Nothing was signed.",
    )
