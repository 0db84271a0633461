"""Plays the kernel's side of an FPGA manager in a folder: a kernel-interface fake, and no FPGA.

It keeps sysfs, configfs and the firmware folder's reader: `sysfs/class/fpga_manager/fpga0`,
`configfs/device-tree/overlays`, `sysfs/class/uio` and `dev`. Writers block as in the kernel: each
attribute is held by a lease, so that `open` for writing waits until the manager has left its old
state. What it loads is a container made by `bitstream()`: a real header, then JSON that names the
core to start behind the register window. `orders.json` asks for delays and errors.

    python -m tests.fakes.fpga.kernel FOLDER
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import mmap
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from edgefleet_shared.fpga_headers import firmware_names

SYNC = b"\xff" * 32 + b"\x00\x00\x00\xbb\x11\x22\x00\x44" + b"\xff" * 8 + b"\xaa\x99\x55\x66"
POLL_S = 0.001
WAY = ("firmware request", "write init", "write", "write complete", "operating")


def bitstream(**what) -> bytes:
    """Return a bitstream that the fake loads: `window` names the device, `core` the command."""
    return SYNC + json.dumps(what).encode()


def attribute(path: Path, text: str) -> None:
    """Set an attribute as the kernel does: whole, at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text)
    temporary.replace(path)


class Doorbell:
    """A writable attribute: `rung` once somebody waits to write, `taken` once they have."""

    def __init__(self, path: Path) -> None:
        temporary = path.with_name(f".{path.name}.new")
        temporary.write_text("")
        self._fd = os.open(temporary, os.O_RDONLY | os.O_CLOEXEC)
        fcntl.fcntl(self._fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        temporary.rename(path)

    def rung(self) -> bool:
        """Whether a writer waits in `open`."""
        return fcntl.fcntl(self._fd, fcntl.F_GETLEASE) != fcntl.F_RDLCK

    def taken(self) -> str:
        """Let the writer in and return what it wrote, once it has closed."""
        fcntl.fcntl(self._fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        while True:
            with contextlib.suppress(BlockingIOError):
                fcntl.fcntl(self._fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
                break
            time.sleep(POLL_S)
        return os.pread(self._fd, 4096, 0).decode()

    def close(self) -> None:
        """Give the lease up."""
        os.close(self._fd)


class Kernel:
    """The state machine; `run` until a signal."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.manager = root / "sysfs/class/fpga_manager/fpga0"
        self.overlays = root / "configfs/device-tree/overlays"
        self.firmware = root / "firmware"
        self.cores: dict[str, subprocess.Popen] = {}  # overlay or 'sysfs' -> its core
        self.uio: dict[str, int] = {}
        self.bells: dict[str, Doorbell] = {}
        self.known: set[str] = set()
        for folder in (self.manager, self.overlays, self.firmware, root / "dev"):
            folder.mkdir(parents=True, exist_ok=True)
        attribute(self.manager / "name", "Fake FPGA Manager")
        attribute(self.manager / "state", "unknown")
        attribute(self.manager / "status", "")
        attribute(self.manager / "flags", "0")
        self.bells["firmware"] = Doorbell(self.manager / "firmware")

    def run(self) -> None:
        """Serve for ever."""
        (self.root / "ready").write_text(str(os.getpid()))
        while True:
            self.turn()
            time.sleep(POLL_S)

    def turn(self) -> None:
        """Look once at every door."""
        there = {path.name: path for path in self.overlays.iterdir()}
        self.known &= set(there)
        for path in there.values():
            if path.name not in self.known:
                self.known.add(path.name)
                self.bells[path.name] = Doorbell(path / "path")
                attribute(path / "status", "unapplied")
        for name, bell in list(self.bells.items()):
            if name != "firmware" and not (self.overlays / name).exists():
                self.bells.pop(name).close()
            elif bell.rung():
                self.state("firmware request")
                self.wanted(name, bell.taken())
        for name in [n for n in self.cores if n != "sysfs" and not (self.overlays / n).exists()]:
            self.power_down(name)

    def wanted(self, name: str, text: str) -> None:
        """Load what an overlay, or the attribute `firmware`, asks for."""
        if name == "firmware":
            self.power_down("sysfs")
            self.program("sysfs", self.firmware / text)
            return
        overlay = self.firmware / text
        names = list(firmware_names(overlay.read_bytes())) if overlay.exists() else []
        self.bells.pop(name).close()
        for entry in (self.overlays / name).iterdir():
            entry.unlink()
        self.program(name, self.firmware / names[0] if names else overlay)

    def program(self, name: str, path: Path) -> None:
        """Go through the manager's states, to the error that was ordered or to `operating`."""
        orders = self.orders()
        for state in WAY:
            time.sleep(orders.get("delay_s", 0.0))
            if orders.get("error") == f"{state} error" or (
                state == "firmware request" and not path.exists()
            ):
                attribute(self.manager / "status", "reconfig CRC error")
                self.state(f"{state} error")
                return
            if state == "operating":
                self.power_up(name, json.loads(path.read_bytes()[len(SYNC) :]))
            self.state(state)

    def orders(self) -> dict:
        """Read what the test has ordered."""
        path = self.root / "orders.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def state(self, text: str) -> None:
        """Set the manager's state, and keep the way it took for the test."""
        attribute(self.manager / "state", text)
        with (self.root / "states.log").open("a") as log:
            log.write(text + "\n")

    def power_up(self, name: str, what: dict) -> None:
        """Bring up the register window, and the core behind it."""
        number = next(n for n in range(64) if n not in self.uio.values())
        device, folder = self.root / "dev" / f"uio{number}", self.uio_folder(number)
        with device.open("wb") as file:
            file.truncate(mmap.PAGESIZE)
        attribute(folder / "maps/map0/size", hex(mmap.PAGESIZE))
        attribute(folder / "maps/map0/offset", "0x0")
        self.uio[name] = number
        if what.get("core"):
            core = subprocess.Popen([*what["core"], str(device)], stdout=subprocess.PIPE)
            core.stdout.readline()  # it has set its registers
            self.cores[name] = core
        else:
            self.cores[name] = subprocess.Popen(["sleep", "1000000"])
        attribute(folder / "name", what.get("window", name))

    def power_down(self, name: str) -> None:
        """Take core and window away."""
        if core := self.cores.pop(name, None):
            core.kill()
            core.wait()
        if (number := self.uio.pop(name, None)) is not None:
            (self.uio_folder(number) / "name").unlink()
            (self.root / "dev" / f"uio{number}").unlink()

    def uio_folder(self, number: int) -> Path:
        """Return the device's folder in sysfs."""
        return self.root / f"sysfs/class/uio/uio{number}"

    def end(self, *_) -> None:
        """Take everything down."""
        for name in list(self.cores):
            self.power_down(name)
        os._exit(0)


class KernelProcess:
    """The fake as a process beside the test; `cut_power` is what a power cut leaves."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.start()

    def start(self) -> None:
        """Boot, with a blank fabric."""
        (self.root / "ready").unlink(missing_ok=True)
        for path in (self.root / "configfs", self.root / "sysfs/class/uio", self.root / "dev"):
            subprocess.run(["rm", "-rf", str(path)], check=True)
        self.process = subprocess.Popen([sys.executable, "-m", __name__, str(self.root)])
        while not (self.root / "ready").exists():
            assert self.process.poll() is None
            time.sleep(0.005)

    def order(self, **orders) -> None:
        """Ask for `error` (a manager's state) or `delay_s` between states."""
        attribute(self.root / "orders.json", json.dumps(orders))

    def cut_power(self) -> None:
        """End, and boot again: the fabric is blank."""
        self.close()
        self.start()

    def windows(self) -> set[str]:
        """Return the names of the register windows that are there."""
        return {p.read_text() for p in (self.root / "sysfs/class/uio").glob("uio*/name")}

    def states(self) -> list[str]:
        """Return the way that the manager's state took."""
        return (self.root / "states.log").read_text().split("\n")[:-1]

    def options(self, **changed) -> dict:
        """Return the table `fpga` of agent.toml that leads here."""
        return {
            "sysfs": str(self.root / "sysfs"), "configfs": str(self.root / "configfs"),
            "firmware": str(self.root / "firmware"), "dev": str(self.root / "dev"),
            "board": "fake", "timeout_s": 5.0, **changed,
        }  # fmt: skip

    def close(self) -> None:
        """End."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(10)


if __name__ == "__main__":
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    kernel = Kernel(Path(sys.argv[1]))
    signal.signal(signal.SIGTERM, kernel.end)
    kernel.run()
