"""A threshold counts keys, not names of keys: one key under two key ids must not sign twice.

python-tuf counts key ids. Whoever is to be trusted by two signatures of three would then need one
key only, if owners were brought to sign a role that lists it twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cryptography.hazmat.primitives import serialization
from securesystemslib.signer import Key
from tuf.api.metadata import Role, Root, Signed, Targets

from edgefleet_shared.errors import TrustError


def check_distinct_keys(signed: Signed) -> None:
    """Check that no role with a threshold above one names a key twice.

    Args:
        signed: Metadata of any kind; only root and targets name keys.

    Raises:
        TrustError: A role does (code `duplicate_key`).
    """
    if isinstance(signed, Root):
        _check(signed.keys, signed.roles.items())
    elif isinstance(signed, Targets) and signed.delegations and signed.delegations.roles:
        _check(signed.delegations.keys, signed.delegations.roles.items())


def _check(keys: Mapping[str, Key], roles: Iterable[tuple[str, Role]]) -> None:
    for name, role in roles:
        found = [_public(keys[keyid]) for keyid in role.keyids if keyid in keys]
        if role.threshold > 1 and len(set(found)) != len(found):
            raise TrustError(
                f"The role {name[:80]!r} names one key under two key ids.",
                code="duplicate_key",
                hint="List every key once, under the id that its content gives.",
            )


def _public(key: Key) -> bytes:
    """Return the key itself, however its text is written."""
    text = str(key.keyval.get("public", ""))
    try:
        public = serialization.load_pem_public_key(text.encode())
    except ValueError:
        return text.strip().lower().encode()  # Ed25519 keys are hexadecimal
    return public.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
