"""Keys and trust metadata for tests, made once: signing is cheap, making keys is not."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import cache

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import DelegatedRole, Delegations, Targets

from edgefleet_shared.trust import DIRECTOR_PATHS, DIRECTOR_ROLE

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


@cache
def signer(name: str) -> CryptoSigner:
    """Return a P-256 signer; one name is one key."""
    assert name
    return CryptoSigner.generate_ecdsa()


def targets(*directors: CryptoSigner, threshold: int = 1) -> Targets:
    """Return a top-level targets role that delegates to directors."""
    keys = {d.public_key.keyid: d.public_key for d in directors}
    role = DelegatedRole(DIRECTOR_ROLE, list(keys), threshold, terminating=True,
                         paths=DIRECTOR_PATHS)  # fmt: skip
    return Targets(
        expires=NOW + timedelta(days=180),
        delegations=Delegations(keys, {DIRECTOR_ROLE: role}),
    )
