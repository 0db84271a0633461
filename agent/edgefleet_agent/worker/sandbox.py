"""What a worker gives up before it touches a model, and the limits it lives under.

Layers, each of which holds where another is missing: limits of the kernel, no new privileges, no
capabilities, Landlock, a seccomp filter and, where it may, a network namespace without a network.
RLIMIT_NPROC is not among them: it counts every thread of the user, so that a value which holds
here breaks workers elsewhere; the filter lets a worker make threads and no process.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import struct
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import edgefleet_agent
import edgefleet_shared
from edgefleet_agent.ipc import mapping
from edgefleet_agent.ipc.control import ModelSpec
from edgefleet_agent.ipc.frames import Order
from edgefleet_agent.worker import devices, landlock, seccomp

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_OOM_SCORE = 500  # between 0 and 1000: a worker goes long before agentd does
_NICE_LOADING = 19
_LOADS_TO_PREPARE = 4
_IOPRIO_SET: Final = {"x86_64": 251, "aarch64": 30}
_IOPRIO_IDLE: Final = 3 << 13

_CAPABILITIES_V3 = 0x20080522
_CLONE_NEWNET = 0x40000000

_PATHS = sysconfig.get_paths()
READABLE: Final = (
    *(_PATHS[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")),
    *(str(Path(str(package.__file__)).parent) for package in (edgefleet_agent, edgefleet_shared)),
    "/usr/lib", "/usr/lib64", "/usr/local/lib", "/lib", "/lib64", "/etc/ld.so.cache",
    "/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/sys/devices/system",
    "/dev/null", "/dev/zero", "/dev/urandom",
)  # fmt: skip
"""All that a worker may read beside its package: code that is public, and what the machine is."""

_libc = ctypes.CDLL(None, use_errno=True)


def prctl(option: int, value: int) -> None:
    """Set an option of this process by prctl.

    Raises:
        OSError: The kernel refuses.
    """
    if _libc.prctl(option, value, 0, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def become_subreaper() -> None:
    """Make this process the parent of every orphan below it."""
    prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when `parent` dies; exit at once if it has died."""
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def close_others(keep: Iterable[int]) -> None:
    """Close every descriptor but 0, 1, 2 and those to keep."""
    below = 3
    for fd in sorted(set(keep) - {0, 1, 2}):
        os.closerange(below, fd)
        below = fd + 1
    os.closerange(below, resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def give_up_rights(descriptors: int, spec: ModelSpec) -> None:
    """Forbid new privileges and core dumps, allow few descriptors, volunteer for the OOM killer."""
    prctl(_PR_SET_NO_NEW_PRIVS, 1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    more = devices.DESCRIPTORS if spec.accelerator in devices.KINDS else 48
    _lower(resource.RLIMIT_NOFILE, descriptors + more)
    path = Path("/proc/self/oom_score_adj")
    if int(path.read_text()) < _OOM_SCORE:
        path.write_text(str(_OOM_SCORE))


def confine(
    files: Sequence[int], spec: ModelSpec, *, fatal: bool, writable: Sequence[int] = ()
) -> list[str]:
    """Shut this process in, for ever; the kernel decides how far.

    Args:
        files: Descriptors of the package, which may be opened again through /proc/self/fd.
        spec: What will be loaded; one for an accelerator gets its device files (`devices`).
        fatal: What nothing but an attack does ends the process, instead of failing.
        writable: Descriptors that may be opened again to be written, where Landlock sees to it
            that nothing else can.

    Returns:
        The layers that hold, by name; `control.missing_layers` tells what is not among them.
    """
    sys.dont_write_bytecode = True
    layers = ["rlimits", "no_new_privs"]
    if not _libc.unshare(_CLONE_NEWNET):  # only with privilege, which a device's agent may lack
        layers.append("netns")
    held = 0
    try:
        readable = [*READABLE, *devices.readable(spec)]
        if held := landlock.restrict(readable, files, writable, devices.writable(spec)):
            layers.append(f"landlock {held}")
    except OSError as error:
        sys.stderr.write(f"{error}\n")
    if drop_capabilities():
        layers.append("no_capabilities")
    driven = spec.accelerator in devices.KINDS
    writing = bool(writable) and held > 0
    if seccomp.install(fatal=fatal and not driven, writing=writing, devices=driven):
        layers.append("seccomp")
    return layers


def drop_capabilities() -> bool:
    """Give up every capability; return whether none is left. For root this is most of root."""
    head, none = struct.pack("<Ii", _CAPABILITIES_V3, 0), bytes(24)
    return not _libc.capset(head, none)


def limit(order: Order) -> None:
    """Set the package's limits: memory above what the process has now, file size, CPU to prove.

    Applications' memory, which a serving worker maps, comes on top: it is not the model's.
    """
    limits = order.spec.limits
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    held = pages * resource.getpagesize()
    mapped = 0 if order.prove else mapping.MAPPED_MAX
    # A driver reserves more addresses than there is memory; what it writes to is limited then.
    driven = order.spec.accelerator in devices.KINDS
    which = resource.RLIMIT_DATA if driven else resource.RLIMIT_AS
    _lower(which, held + limits.memory_mb * 2**20 + mapped)
    _lower(resource.RLIMIT_FSIZE, order.prepare_bytes or limits.disk_mb * 2**20)
    if order.prove:
        loads = _LOADS_TO_PREPARE if order.prepare_bytes else 1
        # The kernel says SIGXCPU at the soft limit; SIGKILL at the hard one says nothing.
        _lower(resource.RLIMIT_CPU, max(1, limits.load_s) * max(1, order.threads) * loads, 2)


def _lower(which: int, wanted: int, above: int = 0) -> None:
    """Set a soft limit, and a hard one so much above it, neither over what there was."""
    _, hard = resource.getrlimit(which)
    soft, top = wanted, wanted + above
    if hard != resource.RLIM_INFINITY:
        soft, top = min(soft, hard), min(top, hard)
    resource.setrlimit(which, (soft, top))


def lower_this_thread() -> None:
    """Give the calling thread a low priority; threads made before it keep theirs.

    Not SCHED_IDLE: on a machine that is busy with inference it would load for minutes.
    """
    os.nice(_NICE_LOADING)  # on Linux a thread's own


def idle() -> None:
    """Give the calling thread, and those it will make, what processor and disk have to spare."""
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    if number := _IOPRIO_SET.get(os.uname().machine):
        _libc.syscall(number, 1, 0, _IOPRIO_IDLE)


def anonymous_kb() -> int:
    """Return the kilobytes that this process holds in memory and that belong to no file."""
    resident, shared = Path("/proc/self/statm").read_text().split()[1:3]
    return (int(resident) - int(shared)) * resource.getpagesize() // 1024


def private_kb() -> int:
    """Return the kilobytes that ending this process would free.

    Not what it shares, nor what a file holds too, such as mapped weights: that counts as available
    already (`admission.available_kb`).
    """
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty:"))
