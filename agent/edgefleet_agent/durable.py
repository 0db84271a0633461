"""Files that survive a power cut: whole old content or whole new content, never a part."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from edgefleet_shared.errors import InvalidInputError


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_folder(folder: Path, mode: int = 0o700) -> Path:
    """Create a folder and its parents, durably, and return it."""
    missing = [folder, *folder.parents]
    missing = [path for path in missing if not path.exists()]
    for path in reversed(missing):
        path.mkdir(mode=mode, exist_ok=True)
        fsync_folder(path.parent)
    return folder


def atomic_write(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace a file's content, all or nothing.

    Raises:
        OSError: The disk is full or broken; the old content stands, nothing is left beside it.
    """
    fd, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(fd, mode)
            os.fsync(fd)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def read_bytes(path: Path) -> bytes | None:
    """Return a file's content, or None where there is no such file.

    Raises:
        InvalidInputError: It is there and cannot be read (code `unreadable`).
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InvalidInputError(
            f"{path} cannot be read: {error.strerror or error}.",
            code="unreadable",
            hint="Check the file's owner and mode, and the disk.",
        ) from error


def sweep(folder: Path) -> None:
    """Remove what writes that never ended have left in a folder."""
    for path in folder.glob(".*.????????"):
        path.unlink(missing_ok=True)
