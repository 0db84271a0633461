"""What the kernel's FPGA manager says, in the words of the port `Accelerator`."""

from __future__ import annotations

from typing import Final, NamedTuple

from edgefleet_shared.errors import UnavailableError
from edgefleet_shared.fpga import Fpga

MANAGER_STATES: Final = {
    "unknown": "free",
    "power off": "free",
    "power up": "free",
    "reset": "free",
    "firmware request": "programming",
    "firmware request error": "error",
    "parse header": "programming",
    "parse header error": "error",
    "write init": "programming",
    "write init error": "error",
    "write": "programming",
    "write error": "error",
    "write complete": "programming",
    "write complete error": "error",
    "operating": "operating",
}
"""Every state of Linux's `fpga_mgr_states`, as /sys/class/fpga_manager/<fpga>/state spells it."""

WHY: Final = {
    "firmware request error": "the kernel did not find the bitstream in its firmware folder",
    "parse header error": "the driver cannot read the bitstream's header",
    "write init error": "the FPGA refused to begin: wrong device, or a partial bitstream for a "
    "static design that is not loaded",
    "write error": "the FPGA refused the bitstream's data",
    "write complete error": "the FPGA did not start: the bitstream's checksum or clocks are wrong",
}
"""What an error of the manager means, for a person."""


def of_manager(text: str) -> str:
    """Return the port's word for a manager's state; `error` for one that is not known."""
    return MANAGER_STATES.get(text, "error")


class ProgramError(UnavailableError):
    """The FPGA could not be programmed; what the slot holds now is unknown."""

    default_code = "fpga_program"


class Job(NamedTuple):
    """One act of programming.

    Attributes:
        slot: Its number.
        name: Of the package in vendors' lists and of the overlay; made of the model's digest.
        fpga: What the manifest says.
        bitstream: Where it lies, relative to the firmware folder.
        overlay: The same for its overlay, '' if there is none.
    """

    slot: int
    name: str
    fpga: Fpga
    bitstream: str
    overlay: str
