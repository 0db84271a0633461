"""Programming by AMD's dfx-mgr, through its client program.

The daemon's socket carries C structs that differ between versions; the client is its stable face
and both faces, that of 2022 (`-load NAME`, `-remove SLOT`) and that of today (`-loadByName NAME`,
`-unloadByName NAME`), are spoken here. The daemon chooses the slot and checks the shell's UUID; it
does not check who made a bitstream, which the agent has done before.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from edgefleet_agent.accelerators.fpga import programs
from edgefleet_agent.accelerators.fpga.states import Job, ProgramError
from edgefleet_agent.config import FpgaOptions

NOTICE_S: Final = 10.0
"""How long the daemon, which watches the firmware folder, may take to notice a package."""
_POLL_S: Final = 0.1
_COUNTS = re.compile(r"\((\d+(?:\+\d+)+)\)")


class Row(NamedTuple):
    """One accelerator of `-listPackage`: its base, slot (-1 = not loaded) and UUID check."""

    name: str
    base: str
    flat: bool
    slot: int
    slots: int
    check: str

    def is_on(self, base: str) -> bool:
        """Return whether it is for a base, whose name the daemon may have cut."""
        return base == self.base or (
            self.base.endswith("...") and base.startswith(self.base.removesuffix("..."))
        )


class DfxMgr:
    """The daemon of Kria, Zynq and Versal boards."""

    name = "dfx-mgr"

    def __init__(self, options: FpgaOptions) -> None:
        self._client = programs.find([options.dfx_mgr])
        self._wanted = options.dfx_mgr
        self._base = options.base
        self._shell = Path(options.firmware, "xilinx", options.base or "-", "shell.json")
        self._slots = options.slots
        self._timeout_s = options.timeout_s
        self._modern: bool | None = None

    def why_not(self) -> str:
        """Return '' if the daemon answers its client."""
        if not self._client:
            return f"no {self._wanted} on PATH"
        try:
            self._list()
        except ProgramError as error:
            return f"dfx-mgrd does not answer ({error})"
        return ""

    def cannot(self, job: Job) -> str:
        """Return '' if the package has what dfx-mgr asks for."""
        if not all(slot.description for slot in job.fpga.slots):
            return "dfx-mgr needs an accel.json or shell.json for each slot"
        if job.fpga.partial and not self._base:
            return "fpga.base does not name the static design's folder"
        return ""

    def slots(self) -> int:
        """Return how many slots the base has, by the daemon's own list or as configured."""
        counts = [row.slots for row in self._rows() if row.slots and row.is_on(self._base)]
        return max(counts, default=0) or _slots_of(self._shell) or self._slots

    def place(self, name: str, slot: int, path: str) -> str:
        """Return where a file belongs in dfx-mgr's tree of packages."""
        file = path.rpartition("/")[2]
        if path.endswith(".json"):
            file = "accel.json" if self._base else "shell.json"
        if not self._base:
            return f"xilinx/{name}/{file}"
        return f"xilinx/{self._base}/{name}/{name}_slot{slot}/{file}"

    def load(self, job: Job) -> int:
        """Load by name; returns the slot that the daemon took. Raises as the port says."""
        row = self._noticed(job.name)
        if row.check == "id_err":
            raise ProgramError(
                f"dfx-mgr says that {job.name} was built for another static design.",
                code="fpga_wrong_shell",
            )
        verb = "-loadByName" if self._is_modern() else "-load"
        said = programs.run([self._client, verb, job.name], self._timeout_s)
        taken = self._find(job.name)
        if taken is None or taken.slot < 0:
            raise ProgramError(f"dfx-mgr did not load {job.name}: {said[-300:]}")
        return taken.slot

    def unload(self, name: str, slot: int) -> None:
        """Unload by name, or by slot from an old daemon."""
        row = self._find(name)
        if row is None or row.slot < 0:
            return
        if self._is_modern():
            programs.run([self._client, "-unloadByName", name], self._timeout_s)
        else:
            programs.run([self._client, "-remove", str(slot)], self._timeout_s)

    def loaded(self) -> set[str] | None:
        """Return the names of what is loaded."""
        return {row.name for row in self._rows() if row.slot >= 0}

    def state(self) -> str:
        """Return `operating` if something is loaded, else `free`."""
        return "operating" if self.loaded() else "free"

    def describe(self) -> str:
        """Return the daemon's name."""
        return "dfx-mgrd"

    def _noticed(self, name: str) -> Row:
        deadline = time.monotonic() + NOTICE_S
        while (row := self._find(name)) is None:
            if time.monotonic() > deadline:
                raise ProgramError(
                    f"dfx-mgrd has not noticed {name} in its firmware folder.",
                    hint="Is fpga.firmware the parent of its firmware_location?",
                )
            time.sleep(_POLL_S)
        return row

    def _find(self, name: str) -> Row | None:
        return next((row for row in self._rows() if row.name == name), None)

    def _rows(self) -> list[Row]:
        return list(parse(self._list()))

    def _list(self) -> str:
        command = [self._client, "-listPackage", *(["-all"] if self._is_modern() else [])]
        return programs.run(command, programs.SHORT_S)

    def _is_modern(self) -> bool:
        if self._modern is None:
            # The old client answers -h with exit status 0 or 255.
            try:
                said = programs.run([self._client, "-h"], programs.SHORT_S)
            except ProgramError as error:
                said = str(error)
            self._modern = "-loadByName" in said
        return self._modern


def _slots_of(shell: Path) -> int:
    """Return `num_pl_slots` of a shell.json, 0 if there is none that can be read."""
    try:
        return int(json.loads(shell.read_bytes())["num_pl_slots"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def parse(text: str) -> Iterator[Row]:
    """Yield the rows of `-listPackage`, of either face; lines that are none are left out.

    Today's rows begin with a number and end with the accelerator; those of 2022 begin with the
    accelerator and end with the slot, followed by a comma where it is one of several.
    """
    for line in text.splitlines():
        counts = _COUNTS.search(line)
        if counts is None:
            continue
        total = int(counts[1].split("+")[-2])  # RPU+PL+AIE today, PL+AIE then
        before, after = line[: counts.start()].split(), line[counts.end() :].split()
        try:
            if before[0].isdigit() and len(after) == 3:  # ID type .. base pid (..) slot handle name
                yield Row(
                    after[2], before[-2], "FLAT" in before[1], int(after[0]), total, before[-1]
                )
            elif len(before) >= 4 and after:  # name type base base-type (..) slot
                slot = int(after[0].partition(",")[0])
                yield Row(before[0], before[2], "FLAT" in before[3], slot, total, "")
        except (IndexError, ValueError):
            continue
