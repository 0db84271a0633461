"""The ways to program an FPGA: what each must do, which there are, and a package's job for one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Protocol

from edgefleet_agent.accelerators.fpga.dfx_mgr import DfxMgr
from edgefleet_agent.accelerators.fpga.kernel import Overlays, VendorSysfs
from edgefleet_agent.accelerators.fpga.states import Job
from edgefleet_agent.accelerators.fpga.xrt import Xrt
from edgefleet_agent.config import FpgaOptions
from edgefleet_agent.ipc.control import ModelSpec
from edgefleet_shared.package import FileEntry


class Programmer(Protocol):
    """One way to program: a vendor's daemon, or an interface of the kernel."""

    name: str

    def why_not(self) -> str:
        """Return '' if it is here, else why not, as words after 'because'."""

    def cannot(self, job: Job) -> str:
        """Return '' if it can do this job, else why not."""

    def slots(self) -> int:
        """Return how many slots there are."""

    def place(self, name: str, slot: int, path: str) -> str:
        """Return where a file of a package belongs below the firmware folder; '' = not needed."""

    def load(self, job: Job) -> int:
        """Program a slot and return its number as the hardware has it.

        Raises:
            ProgramError: It failed; what the slot holds is unknown.
        """

    def unload(self, name: str, slot: int) -> None:
        """Take out what was loaded, if it is there and can be; raises as `load`."""

    def loaded(self) -> set[str] | None:
        """Return the names of what is loaded; None where nobody tells."""

    def state(self) -> str:
        """Return the state of the device in the port's words."""

    def describe(self) -> str:
        """Return what it is called, for people."""


WAYS: Final[Mapping[str, Callable[[FpgaOptions], Programmer]]] = {
    "dfx-mgr": DfxMgr, "xrt": Xrt, "overlay": Overlays, "sysfs": VendorSysfs,
}  # fmt: skip
"""Ways to program, the most able first."""


def name_of(spec: ModelSpec) -> str:
    """Return the name of a package in vendors' lists and of its overlay."""
    return f"ef{spec.digest.removeprefix('sha256:')[:16]}"


def job_for(way: Programmer, spec: ModelSpec, slot: int) -> Job:
    """Return what programming a slot with a package means for one way."""
    assert spec.fpga is not None
    name, slots = name_of(spec), spec.fpga.slots
    if not slots:
        return Job(slot, name, spec.fpga, "", "")
    files = slots[min(slot, len(slots) - 1)]
    overlay = way.place(name, slot, files.overlay) if files.overlay else ""
    return Job(slot, name, spec.fpga, way.place(name, slot, files.bitstream), overlay)


def places_of(
    way: Programmer, job: Job, by_path: Mapping[str, tuple[FileEntry, int]]
) -> dict[str, tuple[FileEntry, int]]:
    """Return where the files of the job belong; a daemon that chooses the slot gets all of them."""
    every = range(len(job.fpga.slots)) if way.name == "dfx-mgr" else [job.slot]
    found: dict[str, tuple[FileEntry, int]] = {}
    for number in every:
        slot = job.fpga.slots[number]
        for path in (slot.bitstream, slot.overlay, slot.description):
            if path and (place := way.place(job.name, number, path)):
                found[place] = by_path[path]
    return found
