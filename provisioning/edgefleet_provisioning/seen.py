"""Which versions this fleet folder has seen or signed: what a server shows may not be older.

python-tuf's cache remembers what a server showed. A server that takes what was signed here and then
shows what was there before would have the owner sign again what they had just revoked; so would who
hands an old ceremony file to the holder of a key.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edgefleet_provisioning.durable import write_file
from edgefleet_shared import strict_json
from edgefleet_shared.errors import TrustError

NAME = "seen.json"
MAX_BYTES = 1024 * 1024


class Seen:
    """The highest version of each role that people sign.

    Args:
        folder: Where it is remembered; made if it is not there.

    Raises:
        InvalidInputError: What is remembered cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._versions: dict[str, int] = {}
        if self._path.exists():
            self._versions = strict_json.decode(
                self._path.read_bytes(), dict[str, int], max_bytes=MAX_BYTES, what=NAME
            )

    def check(self, versions: Mapping[str, int]) -> None:
        """Check the versions that something new is to follow, and remember them.

        Raises:
            TrustError: They are older than what was seen before (code `untrusted_catalog`).
        """
        for role, version in versions.items():
            if version < self._versions.get(role, 0):
                raise TrustError(
                    f"This would follow version {version} of {role}, and version "
                    f"{self._versions[role]} was seen before.",
                    code="untrusted_catalog",
                    hint="Whoever shows it was restored from a copy, or lies. Nothing was signed.",
                )
        self.remember(versions)

    def remember(self, versions: Mapping[str, int]) -> None:
        """Remember versions that were signed here, or seen."""
        merged = self._versions | {
            role: max(version, self._versions.get(role, 0)) for role, version in versions.items()
        }
        if merged != self._versions:
            write_file(self._path, strict_json.encode(merged))
            self._versions = merged
