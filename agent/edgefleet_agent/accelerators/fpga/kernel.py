"""Programming by the kernel itself: a device-tree overlay through configfs, or a vendor's sysfs.

Neither is in mainline Linux; AMD's, Intel's and others' kernels carry them. Mainline has the
manager's `state` and `status`, which both ways read.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Final

from edgefleet_agent.accelerators.fpga.states import WHY, Job, ProgramError, of_manager
from edgefleet_agent.config import FpgaOptions

_POLL_S: Final = 0.01
_APPEARS_S: Final = 1.0


class Manager:
    """One /sys/class/fpga_manager/<fpga>."""

    def __init__(self, options: FpgaOptions) -> None:
        self._timeout_s = options.timeout_s
        classes = Path(options.sysfs, "class/fpga_manager")
        names = sorted(path.name for path in classes.iterdir()) if classes.is_dir() else []
        wanted = options.manager or (names[0] if names else "")
        self.folder = classes / wanted if wanted in names else None

    @property
    def name(self) -> str:
        """The manager's own name, for people."""
        return _read(self.folder / "name") if self.folder else ""

    def state(self) -> str:
        """Return the kernel's word for the state; '' without a manager."""
        return _read(self.folder / "state") if self.folder else ""

    def settle(self, what: str) -> None:
        """Wait until the FPGA operates.

        Raises:
            ProgramError: It ended in an error, or did not end in time.
        """
        if self.folder is None:
            return
        deadline = time.monotonic() + self._timeout_s
        while (state := self.state()) != "operating":
            if of_manager(state) == "error" or time.monotonic() > deadline:
                status = _read(self.folder / "status").replace("\n", ", ")
                why = WHY.get(state, f"it was not operating after {self._timeout_s:g} s")
                raise ProgramError(
                    f"{what}: the FPGA manager is in state {state!r}: {why}"
                    f"{f' ({status})' if status else ''}."
                )
            time.sleep(_POLL_S)


class Overlays:
    """Applies a device-tree overlay, on which the kernel loads the bitstream that it names."""

    name = "overlay"

    def __init__(self, options: FpgaOptions) -> None:
        self._folder = Path(options.configfs, "device-tree/overlays")
        self._manager = Manager(options)
        self._slots = options.slots

    def why_not(self) -> str:
        """Return '' if the kernel has overlays in configfs, and a manager."""
        if not self._folder.is_dir():
            return "no device-tree/overlays in configfs"
        return "" if self._manager.folder else "no fpga_manager"

    def cannot(self, job: Job) -> str:
        """Return '' if the job has an overlay."""
        return "" if job.overlay else "the package has no overlay"

    def slots(self) -> int:
        """Return how many slots the static design has, as configured."""
        return self._slots

    def place(self, name: str, slot: int, path: str) -> str:
        """Return where a file belongs: overlays name firmware by its file name alone."""
        del name, slot
        return "" if path.endswith(".json") else path.rpartition("/")[2]

    def load(self, job: Job) -> int:
        """Apply the overlay; raises as the port says."""
        self.unload(job.name, job.slot)
        try:
            self._apply(job)
        except ProgramError:
            with contextlib.suppress(OSError):
                self.unload(job.name, job.slot)
            raise
        return job.slot

    def _apply(self, job: Job) -> None:
        overlay = self._folder / _overlay(job.name, job.slot)
        try:
            overlay.mkdir()
            _write(overlay / "path", job.overlay)
        except OSError as error:
            self._manager.settle(job.name)  # its reason, where it has one, says more
            raise ProgramError(
                f"The overlay of {job.name} is refused: {error.strerror or error}."
            ) from error
        self._manager.settle(job.name)
        if (found := _read(overlay / "status")) not in {"applied", ""}:
            raise ProgramError(f"The overlay of {job.name} is {found!r} and not applied.")

    def unload(self, name: str, slot: int) -> None:
        """Remove the overlay, and with it the devices; the fabric keeps what it holds."""
        overlay = self._folder / _overlay(name, slot)
        if not overlay.is_dir():
            return
        try:
            overlay.rmdir()
        except OSError as error:
            raise ProgramError(
                f"The overlay {overlay.name} cannot be removed: {error.strerror or error}."
            ) from error

    def loaded(self) -> set[str] | None:
        """Return the names of what is applied."""
        return {path.name.partition(".")[0] for path in self._folder.iterdir()}

    def state(self) -> str:
        """Return the manager's state in the port's words."""
        return of_manager(self._manager.state())

    def describe(self) -> str:
        """Return the manager's name."""
        return self._manager.name


class VendorSysfs:
    """Writes `flags` and `firmware` of the FPGA manager, as AMD's kernels have them."""

    name = "sysfs"

    def __init__(self, options: FpgaOptions) -> None:
        self._manager = Manager(options)
        self._slots = options.slots

    def why_not(self) -> str:
        """Return '' if the manager can be written to."""
        if self._manager.folder is None:
            return "no fpga_manager"
        if not (self._manager.folder / "firmware").exists():
            return "the fpga_manager has no attribute 'firmware'"
        return ""

    def cannot(self, job: Job) -> str:
        """Return '': every bitstream can be written."""
        del job
        return ""

    def slots(self) -> int:
        """Return how many slots the static design has, as configured."""
        return self._slots

    def place(self, name: str, slot: int, path: str) -> str:
        """Return where a file belongs; overlays have no use here."""
        del name, slot
        return path.rpartition("/")[2] if not path.endswith((".json", ".dtbo")) else ""

    def load(self, job: Job) -> int:
        """Write the bitstream; raises as the port says."""
        folder = self._manager.folder
        assert folder is not None
        try:
            _write(folder / "flags", "1" if job.fpga.partial else "0")
            _write(folder / "firmware", job.bitstream)
        except OSError as error:
            self._manager.settle(job.name)
            raise ProgramError(
                f"The FPGA manager refuses {job.name}: {error.strerror or error}."
            ) from error
        self._manager.settle(job.name)
        return job.slot

    def unload(self, name: str, slot: int) -> None:
        """Do nothing: this interface cannot unload, what comes next overwrites."""

    def loaded(self) -> set[str] | None:
        """Return None: this interface does not tell."""
        return None

    def state(self) -> str:
        """Return the manager's state in the port's words."""
        return of_manager(self._manager.state())

    def describe(self) -> str:
        """Return the manager's name."""
        return self._manager.name


def _write(path: Path, text: str) -> None:
    """Write an attribute; it is the kernel that makes it, at once with its folder."""
    deadline = time.monotonic() + _APPEARS_S
    while True:
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            break
        except FileNotFoundError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_POLL_S)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _overlay(name: str, slot: int) -> str:
    return f"{name}.{slot}"


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
