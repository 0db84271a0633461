"""Programming by AMD's XRT: an xclbin through `xrt-smi` or its older name `xbutil`."""

from __future__ import annotations

from pathlib import Path

from edgefleet_agent.accelerators.fpga import programs
from edgefleet_agent.accelerators.fpga.states import Job, ProgramError
from edgefleet_agent.config import FpgaOptions


class Xrt:
    """A card or an edge device with XRT's driver; one slot, which nothing unloads."""

    name = "xrt"

    def __init__(self, options: FpgaOptions) -> None:
        self._tool = programs.find(["xrt-smi", "xbutil"] if not options.xrt else [options.xrt])
        self._device = options.xrt_device
        self._firmware = Path(options.firmware)
        self._timeout_s = options.timeout_s

    def why_not(self) -> str:
        """Return '' if XRT sees a device."""
        if not self._tool:
            return "no xrt-smi or xbutil on PATH"
        try:
            said = programs.run([self._tool, "examine"], programs.SHORT_S)
        except ProgramError as error:
            return f"XRT sees no device ({error})"
        return "XRT sees no device" if "0 devices found" in said else ""

    def cannot(self, job: Job) -> str:
        """Return '' if it is an xclbin."""
        return "" if job.bitstream.endswith(".xclbin") else "XRT takes .xclbin alone"

    def slots(self) -> int:
        """Return 1."""
        return 1

    def place(self, name: str, slot: int, path: str) -> str:
        """Return where a file belongs: XRT takes a path of any file."""
        del slot
        return f"edgefleet/{name}/{path.rpartition('/')[2]}" if path.endswith(".xclbin") else ""

    def load(self, job: Job) -> int:
        """Program the device; raises as the port says."""
        device = ["--device", self._device] if self._device else []
        bitstream = str(self._firmware / job.bitstream)
        programs.run([self._tool, "program", *device, "--user", bitstream], self._timeout_s)
        return job.slot

    def unload(self, name: str, slot: int) -> None:
        """Do nothing: XRT keeps an xclbin until the next."""

    def loaded(self) -> set[str] | None:
        """Return None: its lists name UUIDs and not packages."""
        return None

    def state(self) -> str:
        """Return `operating`: XRT keeps what it was given until the next, or a power cut."""
        return "operating"

    def describe(self) -> str:
        """Return the tool's name."""
        return self._tool.rpartition("/")[2]
