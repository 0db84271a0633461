"""Brings verified files into the kernel's firmware folder, and takes nobody else's name there."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Final

from edgefleet_agent import durable
from edgefleet_agent.accelerators.fpga.states import ProgramError
from edgefleet_shared import fpga_headers as headers
from edgefleet_shared.errors import TrustError
from edgefleet_shared.package import FileEntry, Fpga

CHUNK: Final = 1024 * 1024
READABLE: Final = 0o644  # as everything in /lib/firmware


def lint(fpga: Fpga, by_path: Mapping[str, tuple[FileEntry, int]]) -> None:
    """Look at the headers of every slot's bitstream and overlay.

    Args:
        fpga: What the manifest says.
        by_path: Path in the package to the file and its verified descriptor.

    Raises:
        IncompatibleError: One of them is not what it says.
    """
    for slot in fpga.slots:
        entry, fd = by_path[slot.bitstream]
        head = os.pread(fd, headers.HEAD_BYTES, 0)
        headers.check_bitstream(entry.path, head, entry.size, fpga.uuid)
        if slot.overlay:
            entry, fd = by_path[slot.overlay]
            data = os.pread(fd, min(entry.size, headers.MAX_OVERLAY + 1), 0)
            headers.check_overlay(entry.path, data, slot.bitstream.rpartition("/")[2])


def check_free(root: Path, names: Iterable[str], ours: Container[str]) -> None:
    """Check that no file would be replaced that is not ours.

    Raises:
        ProgramError: One would (code `fpga_firmware_taken`).
    """
    for name in names:
        if (root / name).exists() and name not in ours:
            raise ProgramError(
                f"{root / name} is there already and is not of this agent.",
                code="fpga_firmware_taken",
                hint="Remove it, or give the bitstream another file name.",
            )


def place(root: Path, files: Mapping[str, tuple[FileEntry, int]]) -> None:
    """Copy files below the firmware folder, each whole or not at all, hashing what is copied.

    Args:
        root: The firmware folder.
        files: Path below it to the file and its descriptor; written down as ours before.

    Raises:
        TrustError: The bytes are no longer those that were signed.
        ProgramError: The folder cannot be written.
    """
    try:
        for name, (entry, fd) in files.items():
            target = root / name
            durable.make_folder(target.parent, 0o755)
            _copy(target, entry, fd)
    except OSError as error:
        raise ProgramError(
            f"{error.filename or root} cannot be written: {error.strerror or error}.",
            code="fpga_firmware_folder",
            hint="agentd needs write access to fpga.firmware.",
        ) from error


def remove(root: Path, names: list[str]) -> None:
    """Take files away that we placed, and the folders that are empty then."""
    for name in names:
        path = root / name
        path.unlink(missing_ok=True)
        for folder in path.parents:
            if folder == root or root not in folder.parents:
                break
            try:
                folder.rmdir()
            except OSError:
                break


def _copy(target: Path, entry: FileEntry, fd: int) -> None:
    for stale in target.parent.glob(f".{target.name}.????????"):  # of a copy that power ended
        stale.unlink(missing_ok=True)
    temporary, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        hasher, offset = hashlib.sha256(), 0
        with os.fdopen(temporary, "wb") as file:
            while chunk := os.pread(fd, CHUNK, offset):
                hasher.update(chunk)
                file.write(chunk)
                offset += len(chunk)
            file.flush()
            os.fchmod(temporary, READABLE)
            os.fsync(temporary)
        _check(entry, f"sha256:{hasher.hexdigest()}")
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    durable.fsync_folder(target.parent)


def _check(entry: FileEntry, digest: str) -> None:
    if digest != entry.digest:
        raise TrustError(
            f"{entry.path!r} no longer has the bytes that were signed.",
            code="blob_corrupt",
            hint="It is fetched again from the start.",
        )
