"""How often each digest's worker died, in the run folder: it outlives the gateway, not a reboot.

Without it a gateway that is killed between two crashes would count from nothing again. What must
outlive a reboot, that a version was given up, is in agentd's journal.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from edgefleet_agent import durable

KEPT: Final = 64
_BOOT = Path("/proc/sys/kernel/random/boot_id")


class Record(msgspec.Struct, frozen=True):
    """Times of the last deaths on CLOCK_MONOTONIC; `why` is there once it was quarantined."""

    times: list[float] = []
    why: str = ""


class _Document(msgspec.Struct, frozen=True):
    boot: str
    digests: dict[str, Record] = {}


class DeathBook:
    """What is known of deaths, kept in a file.

    Args:
        path: `<run_dir>/deaths.json`; one of another boot, or that cannot be read, says nothing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._boot = _boot()
        self._digests: dict[str, Record] = {}
        try:
            found = msgspec.json.decode(path.read_bytes(), type=_Document)
        except (OSError, msgspec.DecodeError):
            return
        if found.boot == self._boot:
            self._digests = found.digests

    def of(self, digest: str) -> Record:
        """Return what is known of a digest."""
        return self._digests.get(digest, Record())

    def note(self, digest: str, times: Sequence[float], why: str = "") -> None:
        """Write down a digest's last deaths, and why it is quarantined if it is."""
        self._digests.pop(digest, None)
        self._digests[digest] = Record(list(times), why)
        for old in list(self._digests)[:-KEPT]:
            del self._digests[old]
        self._write()

    def forgive(self, digest: str) -> None:
        """Forget: it has proved itself anew, or is loaded because its files were mended."""
        if self._digests.pop(digest, None) is not None:
            self._write()

    def _write(self) -> None:
        try:
            document = _Document(self._boot, self._digests)
            durable.atomic_write(self._path, msgspec.json.encode(document))
        except OSError as error:  # the count in memory holds
            sys.stderr.write(f"{self._path} cannot be written: {error}\n")


def _boot() -> str:
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return ""
