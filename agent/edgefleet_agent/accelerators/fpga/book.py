"""What the FPGA's slots hold, written down before and after each act of programming."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

import msgspec

from edgefleet_agent import durable
from edgefleet_shared import strict_json
from edgefleet_shared.errors import InvalidInputError

MAX_BYTES: Final = 1024 * 1024
Phase = Literal["reserved", "programming", "operating", "unloading", "error"]


class Holding(msgspec.Struct, frozen=True):
    """One slot: whose it is, under which name, how far it is, and what lies in the firmware folder.

    `hardware` is the slot that the vendor's daemon took, where that is its choice; `whole` a
    bitstream that takes the whole FPGA.
    """

    digest: str
    name: str
    phase: Phase
    hardware: int
    placed: list[str] = []
    whole: bool = False


class Page(msgspec.Struct, frozen=True):
    """The whole of it; `boot` is the kernel's boot id, for a fabric loses all with its power."""

    boot: str = ""
    slots: dict[str, Holding] = {}


class Book:
    """The page on disk.

    Args:
        path: `<state_dir>/fpga.json`.
        boot: The kernel's boot id now; what was written under another is gone from the fabric.
    """

    def __init__(self, path: Path, boot: str) -> None:
        self._path = path
        self.stale: list[Holding] = []
        page = _read(path)
        if page.boot == boot:
            self._page = page
            return
        # Power was away: the fabric is blank, and only the files in the firmware folder are left.
        self.stale = list(page.slots.values())
        self._page = Page(boot)

    @property
    def slots(self) -> dict[str, Holding]:
        """Slot to what it holds."""
        return dict(self._page.slots)

    def write(self, slot: str, holding: Holding | None) -> None:
        """Replace or remove one slot's entry, durably.

        Raises:
            OSError: It could not be written; the old page stands.
        """
        slots = {key: value for key, value in self._page.slots.items() if key != slot}
        if holding is not None:
            slots[slot] = holding
        page = Page(self._page.boot, slots)
        durable.atomic_write(self._path, strict_json.encode(page))
        self._page = page

    def places(self) -> set[str]:
        """Return every path below the firmware folder that is ours."""
        holdings = [*self._page.slots.values(), *self.stale]
        return {path for holding in holdings for path in holding.placed}


def _read(path: Path) -> Page:
    data = durable.read_bytes(path)
    if data is None:
        return Page()
    try:
        return strict_json.decode(data, Page, max_bytes=MAX_BYTES, what="FPGA's book")
    except InvalidInputError as error:
        raise InvalidInputError(
            f"{path} is damaged: {error}",
            code="fpga_book",
            hint="Remove it and reset the board; nothing is known of its slots without it.",
        ) from error


def boot_id() -> str:
    """Return the kernel's id of this boot; '' where it has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""
