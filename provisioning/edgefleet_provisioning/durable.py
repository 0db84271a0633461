"""Files written as if power will fail: whole or not at all, and private from the first byte."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from edgefleet_shared.errors import InvalidInputError

PRIVATE, PUBLIC = 0o600, 0o644


class Content(NamedTuple):
    """What a file holds, and its mode."""

    data: bytes
    mode: int = PUBLIC


def write_tree(folder: Path, files: Mapping[str, Content]) -> None:
    """Make a folder of files, all or nothing; every folder has mode 0700.

    Args:
        folder: Must not exist; its parents are made.
        files: Relative path to content; a path that ends in `/` is an empty folder.

    Raises:
        InvalidInputError: The folder exists, or cannot be written.
    """
    if os.path.lexists(folder):
        raise InvalidInputError(
            f"{folder} exists already.",
            code="exists",
            hint="Choose another folder; nothing was changed.",
        )
    partial = folder.parent / f".{folder.name}.{secrets.token_hex(4)}.partial"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir(mode=0o700)
        for name, content in files.items():
            path = partial / name
            _make_parents(path if name.endswith("/") else path.parent, partial)
            if not name.endswith("/"):
                _write_new(path, content)
        for path in (*(p for p in partial.rglob("*") if p.is_dir()), partial):
            sync_folder(path)
        partial.rename(folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise InvalidInputError(
            f"{folder} cannot be written: {error.strerror}.", code="not_writable"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_file(path: Path, data: bytes, mode: int = PUBLIC) -> None:
    """Write or replace one file, whole or not at all.

    Raises:
        InvalidInputError: It cannot be written.
    """
    partial = path.parent / f".{path.name}.{secrets.token_hex(4)}.partial"
    try:
        _write_new(partial, Content(data, mode))
        partial.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise InvalidInputError(
            f"{path} cannot be written: {error.strerror}.", code="not_writable"
        ) from error


def sync_folder(path: Path) -> None:
    """Make the names in a folder survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_parents(path: Path, top: Path) -> None:
    for folder in (*reversed(path.relative_to(top).parents), path.relative_to(top)):
        (top / folder).mkdir(mode=0o700, exist_ok=True)


def _write_new(path: Path, content: Content) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, content.mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content.data)
        file.flush()
        os.fsync(file.fileno())
