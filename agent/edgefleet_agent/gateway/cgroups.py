"""Workers in control groups (cgroup v2) of their own, where the system has delegated one to us.

The rlimits of a worker hold everywhere; a group counts what they cannot: memory that is really
used, with the page cache of the weights, over every thread and mapping. Kernel documentation:
admin-guide/cgroup-v2. By systemd it takes `Delegate=` with `DelegateSubgroup=` (254 and later):
with the main process in a group beside ours, no inner group ever holds a process.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from edgefleet_shared.manifest import Limits

CONTROLLERS = ("memory", "pids", "cpu")
RUNTIME_MB = 128
"""What a worker needs beside its model: interpreter and runtime, before anything is loaded."""
MAX_THREADS = 256
IDLE_WEIGHT, SERVING_WEIGHT = 1, 100
PREFIX = "worker-"


class Cgroups:
    """A folder of control groups, or the reason why there is none.

    Args:
        base: The delegated group, or None.
        controllers: Which controllers its children have.
        why_not: Why there is none.
    """

    def __init__(
        self, base: Path | None, controllers: Sequence[str] = (), why_not: str = ""
    ) -> None:
        self.base, self.controllers, self.why_not = base, tuple(controllers), why_not

    @classmethod
    def find(cls, configured: str, proc: Path = Path("/proc/self")) -> Cgroups:
        """Return the groups that this process may make.

        Args:
            configured: `auto` for what systemd has delegated, a folder of a cgroup2 file system, or
                '' for none.
            proc: Where this process's `cgroup` and `mountinfo` are read.
        """
        try:
            base = Path(configured) if configured not in {"", "auto"} else _delegated(proc)
            if not configured:
                return cls(None, why_not="inference.cgroup is empty")
            if base is None:
                return cls(None, why_not="no control group is delegated to this service")
            there = (base / "cgroup.controllers").read_text().split()
        except OSError as error:
            return cls(None, why_not=f"{error.filename}: {error.strerror}")
        held = (base / "cgroup.subtree_control").read_text().split()
        for name in [n for n in CONTROLLERS if n in there and n not in held]:
            with contextlib.suppress(OSError):
                _write(base / "cgroup.subtree_control", f"+{name}")
        held = (base / "cgroup.subtree_control").read_text().split()
        found = cls(base, [name for name in CONTROLLERS if name in held])
        if not found.controllers:
            names = ", ".join(CONTROLLERS)
            return cls(None, why_not=f"{base} has none of {names} for its children")
        found.sweep()
        return found

    @property
    def layer(self) -> str:
        """The word for a worker's list of layers, for example `cgroup memory+pids`; '' = none."""
        return f"cgroup {'+'.join(self.controllers)}" if self.base else ""

    def place(self, pid: int, limits: Limits, *, prove: bool) -> bool:
        """Put a process that has loaded nothing yet into a group of its own.

        Args:
            pid: The worker.
            limits: Of its package.
            prove: Whether it is a throw-away that must disturb nobody.

        Returns:
            Whether it is there; if not, its rlimits are all that holds it.
        """
        if self.base is None:
            return False
        group = self.base / f"{PREFIX}{pid}"
        settings = {
            "memory.max": str((limits.memory_mb + RUNTIME_MB) * 2**20),
            "memory.oom.group": "1",
            "pids.max": str(MAX_THREADS),
            "cpu.weight": str(IDLE_WEIGHT if prove else SERVING_WEIGHT),
        }
        try:
            group.mkdir(exist_ok=True)
            for name, value in settings.items():
                if name.partition(".")[0] in self.controllers:
                    _write(group / name, value)
            _write(group / "cgroup.procs", str(pid))
        except OSError:
            self.remove(pid)
            return False
        return True

    def out_of_memory(self, pid: int) -> bool:
        """Tell whether the kernel has killed a worker for its group's memory limit."""
        if self.base is None:
            return False
        try:
            lines = (self.base / f"{PREFIX}{pid}" / "memory.events").read_text().splitlines()
        except OSError:
            return False
        counts = dict(line.split() for line in lines)
        return counts.get("oom_kill", "0") != "0"

    def remove(self, pid: int) -> None:
        """Remove the group of a worker that has ended."""
        if self.base is not None:
            with contextlib.suppress(OSError):
                (self.base / f"{PREFIX}{pid}").rmdir()

    def sweep(self) -> None:
        """Remove what a gateway that was killed has left; a group with a process in it stays."""
        assert self.base is not None
        for group in self.base.glob(f"{PREFIX}*"):
            with contextlib.suppress(OSError):
                group.rmdir()


def _delegated(proc: Path) -> Path | None:
    """Return the group above our own, if systemd has delegated it."""
    own = next(
        (line[3:] for line in (proc / "cgroup").read_text().splitlines() if line[:3] == "0::"), ""
    )
    mount = next(
        (
            fields[4]
            for line in (proc / "mountinfo").read_text().splitlines()
            if (fields := line.split()) and "cgroup2" in fields[fields.index("-") :][:2]
        ),
        "",
    )
    if not own.strip("/") or not mount:
        return None
    above = Path(mount + own).parent
    for name in ("user.delegate", "trusted.delegate"):
        with contextlib.suppress(OSError):
            if os.getxattr(above, name) == b"1":
                return above
    return None


def _write(path: Path, value: str) -> None:
    """Write without creating: a file that the kernel does not have is an error."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)
