"""Landlock: the worker may read what it was allowed to, write nothing, and reach no port.

By ctypes, because the C library has no wrappers and three system calls need no dependency. The
numbers are the same on every architecture. Holds for root too.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Final

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION: Final = 1  # flag of _CREATE_RULESET: only tell the ABI's version
_PATH_BENEATH: Final = 1

_WRITE_FILE: Final = 1 << 1
READ_FILE: Final = 1 << 2
READ_DIR: Final = 1 << 3
_TRUNCATE: Final = 1 << 14  # from version 3
_FS_BITS: Final = {1: 13, 2: 14, 3: 15, 5: 16}  # ABI version to how many rights it knows
_IOCTL: Final = 1 << 15  # on a device file, from version 5; before that nobody rules it
_NET_TCP: Final = 0b11  # bind and connect, from version 4
_SCOPES: Final = 0b11  # abstract Unix sockets and signals to outside, from version 6

_libc = ctypes.CDLL(None, use_errno=True)


def abi() -> int:
    """Return the version of Landlock's ABI; 0 where the kernel has none or it is off."""
    return max(0, int(_libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION)))


def restrict(
    readable: Iterable[str | Path],
    files: Iterable[int],
    writable: Iterable[int] = (),
    devices: Iterable[str | Path] = (),
) -> int:
    """Restrict the calling thread and what it will start, for ever.

    Args:
        readable: Folders and files that may be read; those that are not there are left out.
        files: Open files that may be opened again through /proc/self/fd.
        writable: Open files that may be opened again to be written, and nothing else.
        devices: Device files, or folders of them, that may be written to and asked by ioctl.

    Returns:
        The version of the ABI that holds now; 0 if there is none.

    Raises:
        OSError: The kernel has Landlock and refuses.
    """
    version = abi()
    if not version:
        return 0
    rights = max(count for since, count in _FS_BITS.items() if since <= version)
    attributes = struct.pack(
        "<QQQ",
        (1 << rights) - 1,
        _NET_TCP if version >= 4 else 0,
        _SCOPES if version >= 6 else 0,
    )[: 8 * (1 + (version >= 4) + (version >= 6))]
    ruleset = _call(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    try:
        for file in files:
            _allow(ruleset, file, READ_FILE)
        for file in writable:
            _allow(ruleset, file, READ_FILE | _WRITE_FILE | (_TRUNCATE if version >= 3 else 0))
        for path in readable:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                _allow_path(ruleset, Path(path))
        for path in devices:
            extra = _WRITE_FILE | (_IOCTL if version >= 5 else 0)
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                _allow_path(ruleset, Path(path), extra)
        _call(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)
    return version


def _allow_path(ruleset: int, path: Path, extra: int = 0) -> None:
    rights = extra | (READ_FILE | READ_DIR if path.is_dir() else READ_FILE)
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        _allow(ruleset, fd, rights)
    finally:
        os.close(fd)


def _allow(ruleset: int, fd: int, rights: int) -> None:
    _call(_ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("<Qi", rights, fd), 0)


def _call(number: int, *arguments: object) -> int:
    result = int(_libc.syscall(number, *arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"Landlock refuses: {os.strerror(code)}")
    return result
