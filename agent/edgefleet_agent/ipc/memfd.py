"""Memory that two processes share by a descriptor: made, sealed, and checked before it is trusted.

Reading a mapping past the end of its file raises SIGBUS, which ends the reader. A memfd whose size
is sealed for ever cannot shrink under a reader; that is what `check` demands of a stranger's.
"""

from __future__ import annotations

import fcntl
import os
import stat
from typing import Final

from edgefleet_shared.errors import InvalidInputError

SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_BLOCK: Final = 512  # what st_blocks counts in


def create(name: str, size: int) -> int:
    """Return the descriptor of `size` bytes of zeros whose size can never change.

    The pages are there already: who writes first does not find that memory has run out.

    Raises:
        OSError: There is no memory, or no descriptor.
    """
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.posix_fallocate(fd, 0, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


def read_only(fd: int) -> int:
    """Return another descriptor of the same memory, through which nobody can write.

    Raises:
        OSError: There is no /proc, or no descriptor.
    """
    return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)


def check(fd: int, size: int, *, writable: bool) -> None:
    """See to it that `fd` can be mapped, `size` bytes of it, without fear of SIGBUS.

    Raises:
        InvalidInputError: It is no memfd, is not sealed, has another size, is not allocated, or
            cannot be written although it has to be (code `bad_descriptor`).
    """
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        mode = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
        found, system = os.fstat(fd), os.fstatvfs(fd)
    except OSError as error:
        raise _bad("It is no memfd.") from error
    if seals & SEALS != SEALS:
        raise _bad("It is not sealed: F_SEAL_SHRINK, F_SEAL_GROW and F_SEAL_SEAL must be set.")
    if not stat.S_ISREG(found.st_mode) or found.st_size != size:
        raise _bad(f"It has {found.st_size} bytes, and was announced with {size}.")
    if system.f_bsize != os.sysconf("SC_PAGESIZE"):
        raise _bad("Its pages are huge ones, which may be missing when they are touched.")
    if found.st_blocks * _BLOCK < size:
        raise _bad("It is not allocated: use posix_fallocate before it is sealed.")
    if mode == os.O_WRONLY or (writable and mode != os.O_RDWR):
        raise _bad("It is not open for what it is announced for.")


def _bad(why: str) -> InvalidInputError:
    return InvalidInputError(f"The descriptor is refused. {why}", code="bad_descriptor")
