"""A seccomp filter: system calls that no model needs fail, or end a process that is thrown away.

Forty lines of BPF of our own: the bindings that exist need libseccomp on the device, and what must
be said is a list of numbers and nine rules. Where a library may only be probing, the answer is an
error number; what nothing but an attack does ends the proving process, so that a model which
swallows the error is refused all the same. A serving worker gets errors alone: it is not worth a
request. What is refused appears in the kernel's audit log (SECCOMP_FILTER_FLAG_LOG).
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from typing import Final

from edgefleet_agent.worker import syscalls

_SET_MODE_FILTER, _FLAG_LOG, _FLAG_TSYNC = 1, 2, 1
_SYS_SECCOMP: Final = {"x86_64": 317, "aarch64": 277}

_LOAD: Final = 0x20  # A = 32 bits of struct seccomp_data at k
_AND: Final = 0x54
_JUMP_EQ, _JUMP_GT, _JUMP_ANY, _RETURN = 0x15, 0x25, 0x45, 0x06
_NUMBER, _ARCH = 0, 4
_KILL: Final = 0x80000000
_ALLOW: Final = 0x7FFF0000
_ERRNO: Final = 0x00050000

CLONE_THREAD: Final = 0x10000
_TMPFILE: Final = 0o20000000  # os.O_TMPFILE without the O_DIRECTORY that it implies
_WRITING: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | _TMPFILE
_CREATING: Final = os.O_CREAT | os.O_TRUNC | os.O_APPEND | _TMPFILE
_OF_DRIVERS: Final = frozenset({"memfd_create", "ftruncate", "fallocate"})
"""Calls by which libraries of drivers share memory with the kernel; without a name on a disk."""
_HARMLESS_FAMILIES: Final = (1, 16)  # AF_UNIX, AF_NETLINK: what a C library asks on its way
_PRCTL_DENIED: Final = (1, 4, 8, 28, 35, 47)
"""PDEATHSIG, DUMPABLE, KEEPCAPS, SECUREBITS, MM and CAP_AMBIENT stay as they are."""
_IOCTL_DENIED: Final = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX: typing into somebody's terminal

Instruction = tuple[int, int, int, int]
"""Operation, how many to skip if true and if false, and a constant."""


def program(
    arch: syscalls.Architecture,
    pid: int,
    *,
    fatal: bool,
    writing: bool = False,
    devices: bool = False,
) -> list[Instruction]:
    """Return the filter of what is refused and logged.

    Args:
        arch: Numbers of this machine.
        pid: The process; it may signal itself.
        fatal: End the process for what nothing but an attack does, instead of an error.
        writing: Leave it to Landlock which files may be opened to be written.
        devices: What exists may be opened for writing, and memory of its own made a file: what of
            the disk that is, Landlock says.
    """
    worst = _KILL if fatal else _ERRNO | errno.EPERM
    rules: list[Instruction] = []
    for table, answer in (
        (syscalls.NETWORK, worst),
        (syscalls.PROGRAMS, worst),
        (syscalls.KERNEL, _ERRNO | errno.EPERM),
        (syscalls.FILES, _ERRNO | errno.EACCES),
    ):
        for name in syscalls.names(table):
            if devices and name in _OF_DRIVERS:
                continue
            rules += _rule(arch, name, [(_RETURN, 0, 0, answer)])
    for name, body in _judged(pid, worst, _CREATING if devices else _WRITING).items():
        if writing and name in {"open", "openat"}:
            continue
        rules += _rule(arch, name, body)
    return _framed(arch, rules)


def quiet_program(arch: syscalls.Architecture) -> list[Instruction]:
    """Return the filter of calls whose flags lie where no filter can look: they do not exist.

    The C library then takes the older call; as it does so for every thread, nothing is logged.
    """
    unknown = [(_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]
    return _framed(arch, [i for name in ("clone3", "openat2") for i in _rule(arch, name, unknown)])


def _framed(arch: syscalls.Architecture, rules: list[Instruction]) -> list[Instruction]:
    """Return rules between a check of the architecture and leave for what they do not name."""
    unknown = (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)
    return [
        (_LOAD, 0, 0, _ARCH), (_JUMP_EQ, 1, 0, arch.audit), (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER), (_JUMP_GT, 0, 1, syscalls.LAST), unknown,
        *rules, (_RETURN, 0, 0, _ALLOW),
    ]  # fmt: skip


def _rule(arch: syscalls.Architecture, name: str, body: list[Instruction]) -> list[Instruction]:
    """Return what is done with one call; `body` must end in a return on every way."""
    number = arch.numbers.get(name)
    return [] if number is None else [(_JUMP_EQ, 0, len(body), number), *body]


def _judged(pid: int, worst: int, writing: int) -> dict[str, list[Instruction]]:
    """Return the rules of the calls whose arguments decide."""
    denied = _ERRNO | errno.EPERM
    reading_limits = [
        (_LOAD, 0, 0, _low(2)), (_JUMP_EQ, 0, 3, 0), (_LOAD, 0, 0, _low(2) + 4),
        (_JUMP_EQ, 0, 1, 0), (_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, denied),
    ]  # fmt: skip
    threads = [(_LOAD, 0, 0, _low(0)), (_JUMP_ANY, 0, 1, CLONE_THREAD)]
    return {
        "open": _without(writing, 1),
        "openat": _without(writing, 2),
        "clone": [*threads, (_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, denied)],
        "socket": _unless(0, _HARMLESS_FAMILIES, worst, denied),
        "kill": _unless(0, (pid,), denied, _ALLOW),
        "tgkill": _unless(0, (pid,), denied, _ALLOW),
        "prctl": _unless(0, _PRCTL_DENIED, _ALLOW, denied),
        "ioctl": _unless(1, _IOCTL_DENIED, _ALLOW, denied),
        "prlimit64": reading_limits,  # root could raise its own again
    }


def _without(flags: int, argument: int) -> list[Instruction]:
    """Allow an open that has none of the flags."""
    return [
        (_LOAD, 0, 0, _low(argument)), (_AND, 0, 0, flags), (_JUMP_EQ, 0, 1, 0),
        (_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _ERRNO | errno.EACCES),
    ]  # fmt: skip


def _unless(argument: int, values: tuple[int, ...], rest: int, those: int) -> list[Instruction]:
    """Answer `those` if an argument is one of the values, and `rest` otherwise."""
    checks = [(_JUMP_EQ, len(values) - i, 0, value) for i, value in enumerate(values)]
    return [(_LOAD, 0, 0, _low(argument)), *checks, (_RETURN, 0, 0, rest), (_RETURN, 0, 0, those)]


def _low(argument: int) -> int:
    """Return where the lower half of an argument lies; both architectures are little-endian."""
    return 16 + 8 * argument


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def install(*, fatal: bool, writing: bool = False, devices: bool = False) -> bool:
    """Put the filters over this process; it needs `no_new_privs`, or privilege. As `program`.

    Returns:
        Whether it holds; False on an architecture that is not known, or a kernel without seccomp.
    """
    machine = os.uname().machine
    arch = syscalls.architecture()
    if arch is None:
        return False
    both = _FLAG_TSYNC | _FLAG_LOG
    number, libc = _SYS_SECCOMP[machine], ctypes.CDLL(None, use_errno=True)
    for code, flags in (
        (quiet_program(arch), _FLAG_TSYNC),
        (program(arch, os.getpid(), fatal=fatal, writing=writing, devices=devices), both),
    ):
        data = b"".join(struct.pack("<HBBI", *instruction) for instruction in code)
        wanted = _Program(len(code), data)
        if libc.syscall(number, _SET_MODE_FILTER, flags, ctypes.byref(wanted)):
            return False
    return True
