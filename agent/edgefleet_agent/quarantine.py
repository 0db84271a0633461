"""Which digests are not tried again on this device, and for how long. Pure.

Each try needs a signed deployment of its own; what is kept here is that a fleet manager which sends
one after the other, in good faith or bad, cannot keep a device busy proving what it has disproved.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

PROOFS_MAX: Final = 3
KEPT: Final = 32

NOT_ITS_FAULT: Final = frozenset({"unsupported_runtime", "unsupported_accelerator", "blob_corrupt"})
"""Nothing was proved: another installation, or the same bytes fetched again, may well succeed."""
UNCERTAIN: Final = frozenset({"crashed", "load_failed", "load_timeout", "out_of_memory"})
"""The device may have been busy or short of memory; `PROOFS_MAX` failures settle it."""


class Failures(msgspec.Struct, frozen=True):
    """What is held against one digest: how much, why last, and under which software that was."""

    proofs: int
    reason: str
    software: str


def barred(known: Mapping[str, Failures], digest: str, software: str) -> Failures | None:
    """Return what is held against a digest if that is enough not to try it; None otherwise.

    Args:
        known: Digest to what is held against it.
        digest: The manifest's.
        software: Agent and runtime that are here now; under others the digest gets a new chance.
    """
    found = known.get(digest)
    held = found is not None and found.software == software and found.proofs >= PROOFS_MAX
    return found if held else None


def after_failure(
    known: Mapping[str, Failures], digest: str, reason: str, software: str
) -> dict[str, Failures]:
    """Return what is held after a proof failed; all but `UNCERTAIN` reasons settle it at once."""
    rest = {other: failures for other, failures in known.items() if other != digest}
    before = known.get(digest)
    if reason in NOT_ITS_FAULT:
        return dict(known)
    proofs = before.proofs if before and before.software == software else 0
    proofs = proofs + 1 if reason in UNCERTAIN else PROOFS_MAX
    kept = list(rest.items())[1 - KEPT :]
    return {**dict(kept), digest: Failures(proofs, reason, software)}
