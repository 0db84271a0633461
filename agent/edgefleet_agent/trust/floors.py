"""Below these the device never goes again, whatever is lost, replayed or restored.

Two slots, each with a generation and a checksum; a commit overwrites the older one, so that a torn
write costs at most the newest step. They lie apart from every cache: a wiped cache changes nothing.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

import msgspec

from edgefleet_agent import durable
from edgefleet_shared import strict_json
from edgefleet_shared.errors import InvalidInputError

MAX_BYTES = 256 * 1024
SLOTS = ("floors-a.json", "floors-b.json")


class ModelFloor(msgspec.Struct, frozen=True):
    """Of one model: newest release counter accepted, and the publisher's security floor."""

    release_counter: int = 0
    security_floor: int = 0


class Floors(msgspec.Struct, frozen=True):
    """Everything that only grows.

    `targets` maps role to version (`targets` and the publishers); `keys` holds the key ids that
    signed timestamp and snapshot, so that a new root which replaces them may start anew; `time` is
    RFC 3339 UTC or ''.
    """

    format: Literal[1] = 1
    root: int = 0
    timestamp: int = 0
    snapshot: int = 0
    targets: dict[str, int] = {}
    keys: dict[str, list[str]] = {}
    counter: int = 0
    models: dict[str, ModelFloor] = {}
    time: str = ""

    def model(self, name: str) -> ModelFloor:
        """Return one model's floor; zeros for a model never seen."""
        return self.models.get(name, ModelFloor())


class _Slot(msgspec.Struct, frozen=True):
    generation: int
    sha256: str
    floors: Floors


class FloorStore:
    """The two slots on disk.

    Args:
        folder: `<state_dir>/trust`, which exists.

    Attributes:
        current: The newest readable floors, or None where no slot can be read.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        durable.sweep(folder)
        newest = _newest(folder)
        self._generation = newest.generation if newest else 0
        self.current = newest.floors if newest else None

    def commit(self, floors: Floors) -> None:
        """Make new floors durable; nothing happens if they equal the current ones.

        Raises:
            OSError: They could not be written; the old ones stand.
        """
        if floors == self.current:
            return
        generation = self._generation + 1
        slot = _Slot(generation, _checksum(generation, floors), floors)
        durable.atomic_write(self._folder / SLOTS[generation % 2], strict_json.encode(slot))
        self._generation, self.current = generation, floors


def read_floors(folder: Path) -> Floors | None:
    """Return the newest readable floors without touching anything; None where none can be read."""
    newest = _newest(folder)
    return newest.floors if newest else None


def _newest(folder: Path) -> _Slot | None:
    found = [slot for name in SLOTS if (slot := _read(folder / name))]
    return max(found, key=lambda slot: slot.generation, default=None)


def _checksum(generation: int, floors: Floors) -> str:
    return hashlib.sha256(b"%d:" % generation + strict_json.encode(floors)).hexdigest()


def _read(path: Path) -> _Slot | None:
    try:
        data = durable.read_bytes(path)
        if data is None:
            return None
        slot = strict_json.decode(data, _Slot, max_bytes=MAX_BYTES, what=path.name)
    except InvalidInputError:
        return None  # torn: the other slot stands
    return slot if slot.sha256 == _checksum(slot.generation, slot.floors) else None
