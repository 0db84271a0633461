"""The open files that a worker is given: the bytes that were signed, and nobody's but the store's.

A worker gets no path. agentd opened each file, hashed it through the descriptor and handed that on;
what is checked here is that it is still what was handed on.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Sequence

from edgefleet_agent.ipc.control import ModelSpec, PreparedFile, PreparedForm
from edgefleet_agent.store import hash_fd
from edgefleet_shared.errors import TrustError
from edgefleet_shared.package import FileEntry


def check(spec: ModelSpec, files: Sequence[int], *, rehash: bool) -> None:
    """Check every descriptor of a package.

    Args:
        spec: What shall be loaded.
        files: Descriptors in the order of `spec.files`.
        rehash: Hash the bytes again. agentd has done so just before it asked for a load; nobody
            has where the gateway starts a worker anew by itself, days later.

    Raises:
        TrustError: One of them is not the file that was signed (code `blob_corrupt`).
    """
    for entry, fd in zip(spec.files, files, strict=True):
        if why := _wrong(entry, fd):
            raise _corrupt(entry, why)
        if rehash and hash_fd(fd) != entry.digest:
            raise _corrupt(entry, "no longer has the bytes that were signed")


def check_prepared(form: PreparedForm, files: Sequence[int], *, rehash: bool) -> None:
    """Check the descriptors of a prepared form, as `check` does those of a package.

    Raises:
        TrustError: One of them is not what this device made (code `blob_corrupt`).
    """
    for entry, fd in zip(form.files, files, strict=True):
        if why := _wrong(entry, fd):
            raise TrustError(f"A file of the prepared form {why}.", code="blob_corrupt")
        if rehash and hash_fd(fd) != entry.digest:
            raise TrustError("The prepared form has changed on disk.", code="blob_corrupt")


def _wrong(entry: FileEntry | PreparedFile, fd: int) -> str:
    """Return what is wrong with a descriptor, or ''."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        return "is no file"
    if status.st_nlink > 1:  # 0: the store has let go of it since
        return "has another name too, by which somebody may write to it"
    if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE:
        return "is open for writing"
    return "" if status.st_size == entry.size else f"has {status.st_size} bytes"


def _corrupt(entry: FileEntry, why: str) -> TrustError:
    return TrustError(
        f"The file {entry.path!r} of the package {why}.",
        code="blob_corrupt",
        hint="It is fetched again from the start.",
    )
