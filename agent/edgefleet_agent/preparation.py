"""Forms of packages that this device has made for itself: a cache, bound to what they were made of.

Each form belongs to one package digest and variant, and to the software, processor and driver that
made it: under any other it does not exist. Its bytes are hashed at each use. Whatever is wrong with
it, the package itself is loaded instead, and the form is made again.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from edgefleet_agent import durable
from edgefleet_agent.ipc.control import PREPARED_FILES, PreparedFile, PreparedForm
from edgefleet_agent.journal import VersionRef
from edgefleet_agent.store import RESERVE, hash_fd
from edgefleet_shared import strict_json
from edgefleet_shared.errors import InvalidInputError

INDEX_BYTES = 1024 * 1024
KEPT = 64
"""Entries at most; what was looked at longest ago goes first."""


class Entry(msgspec.Struct, frozen=True):
    """What is known of one package here: its form, or (`refused`) why there is none.

    `turn` grows with each use.
    """

    package: str
    variant: str
    turn: int
    form: PreparedForm | None = None
    refused: str = ""


class Index(msgspec.Struct, frozen=True):
    """The cache's table of contents; `made_by` is software, machine and drivers."""

    format: Literal[1] = 1
    made_by: str = ""
    turn: int = 0
    entries: dict[str, Entry] = {}


class Prepared:
    """The cache; safe to use from any thread.

    Args:
        folder: `<state_dir>/prepared`.
        max_bytes: What all forms together may take; 0: none are made.
        made_by: Agent, runtimes, processor and drivers; what others have made is not there.
    """

    def __init__(self, folder: Path, max_bytes: int, made_by: str) -> None:
        self._folder = durable.make_folder(folder)
        self._path = folder / "index.json"
        self._max_bytes = max_bytes
        self._made_by = made_by
        self._lock = threading.Lock()
        durable.sweep(folder)
        self._index = self._read()
        self._sweep()

    def _read(self) -> Index:
        """Return the index; what cannot be read, or others have made, is not there: a cache."""
        with contextlib.suppress(InvalidInputError):
            if data := durable.read_bytes(self._path):
                index = strict_json.decode(
                    data, Index, max_bytes=INDEX_BYTES, what="index of prepared forms"
                )
                if index.made_by == self._made_by:
                    return index
        return Index(made_by=self._made_by)

    def lacks(self, version: VersionRef) -> bool:
        """Return whether nobody has tried to prepare this version here."""
        with self._lock:
            return self._max_bytes > 0 and _key(version) not in self._index.entries

    def has(self, version: VersionRef) -> bool:
        """Return whether there is a form of this version; its bytes are judged on `opened`."""
        with self._lock:
            entry = self._index.entries.get(_key(version))
        return entry is not None and entry.form is not None

    def refuse(self, version: VersionRef, code: str) -> None:
        """Remember that this version is not prepared, and why.

        Raises:
            OSError: The disk is full or broken.
        """
        self._put(version, None, code)

    def room(self, wanted: int, keep: Iterable[str]) -> int:
        """Make room among the forms that nobody needs; return the bytes that a form may take.

        Args:
            wanted: Bytes that would do; the forms used longest ago go until there are so many.
            keep: Package digests whose forms must stay.

        Raises:
            OSError: The disk is full or broken.
        """
        needed = set(keep)
        with self._lock:
            entries = dict(self._index.entries)
            for key, entry in sorted(entries.items(), key=lambda item: item[1].turn):
                if self._max_bytes - _used(entries.values()) >= wanted:
                    break
                if entry.package not in needed and entry.form:
                    del entries[key]
            if entries != self._index.entries:
                self._write(entries)
                self._sweep()
            free = shutil.disk_usage(self._folder).free - RESERVE
            return max(0, min(self._max_bytes - _used(entries.values()), free))

    @contextlib.contextmanager
    def targets(self) -> Iterator[list[tuple[int, Path]]]:
        """Give empty files to write a form into; what is not kept is removed."""
        made: list[tuple[int, Path]] = []
        try:
            for _ in range(PREPARED_FILES):
                fd, name = tempfile.mkstemp(prefix=".form.", dir=self._folder)
                made.append((fd, Path(name)))
            yield made
        finally:
            for fd, path in made:
                os.close(fd)
                path.unlink(missing_ok=True)

    def keep(self, version: VersionRef, maker: str, made: Sequence[tuple[int, Path]]) -> int:
        """Take a form that has been made and compared; return its bytes.

        Nobody writes to it any more: the process that made it has ended.

        Raises:
            OSError: The disk is full or broken; there is no form then.
        """
        files = []
        for fd, path in made:
            os.fchmod(fd, 0o400)
            os.fsync(fd)
            digest = hash_fd(fd)
            path.replace(self._file(digest))
            files.append(PreparedFile(digest, os.fstat(fd).st_size))
        durable.fsync_folder(self._folder)
        self._put(version, PreparedForm(maker, files), "")
        return sum(file.size for file in files)

    @contextlib.contextmanager
    def opened(self, version: VersionRef) -> Iterator[tuple[PreparedForm, list[int]] | None]:
        """Give a version's form and its descriptors, hashed through themselves; None without one.

        A form that has changed on disk is forgotten, so that it is made again.
        """
        with self._lock:
            entry = self._index.entries.get(_key(version))
        fds: list[int] = []
        try:
            if entry is None or entry.form is None:
                yield None
            elif self._open(entry.form, fds):
                yield entry.form, fds
            else:
                self.forget(version)
                yield None
        finally:
            for fd in fds:
                os.close(fd)

    def _open(self, form: PreparedForm, fds: list[int]) -> bool:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        for file in form.files:
            try:
                fds.append(os.open(self._file(file.digest), flags))
            except OSError:
                return False
            if os.fstat(fds[-1]).st_size != file.size or hash_fd(fds[-1]) != file.digest:
                return False
        return True

    def used(self, version: VersionRef) -> None:
        """Note that a version's form was used just now; not worth a write of its own."""
        with self._lock:
            key = _key(version)
            if entry := self._index.entries.get(key):
                turn = self._index.turn + 1
                entries = {
                    **self._index.entries,
                    key: msgspec.structs.replace(entry, turn=turn),
                }
                self._index = msgspec.structs.replace(self._index, turn=turn, entries=entries)

    def forget(self, version: VersionRef) -> None:
        """Throw a version's form away; whoever is idle makes it again."""
        self.forget_package(version.digest, version.variant)

    def forget_package(self, package: str, variant: str = "") -> None:
        """Throw away the forms of a package digest, or of one of its variants."""
        with self._lock, contextlib.suppress(OSError):
            entries = {
                key: entry
                for key, entry in self._index.entries.items()
                if entry.package != package or variant not in {"", entry.variant}
            }
            if entries != self._index.entries:
                self._write(entries)
                self._sweep()

    def _put(self, version: VersionRef, form: PreparedForm | None, refused: str) -> None:
        with self._lock:
            entry = Entry(version.digest, version.variant, self._index.turn + 1, form, refused)
            entries = {**self._index.entries, _key(version): entry}
            oldest = sorted(entries, key=lambda key: entries[key].turn)
            for key in oldest[:-KEPT]:
                del entries[key]
            self._write(entries)

    def _write(self, entries: dict[str, Entry]) -> None:
        turn = max((entry.turn for entry in entries.values()), default=self._index.turn)
        index = Index(made_by=self._made_by, turn=turn, entries=entries)
        durable.atomic_write(self._path, strict_json.encode(index))
        self._index = index

    def _sweep(self) -> None:
        """Remove files that the index does not name: power went before it did, or it has let go."""
        forms = [entry.form for entry in self._index.entries.values() if entry.form]
        named = {self._file(file.digest) for form in forms for file in form.files}
        for path in self._folder.iterdir():
            if path != self._path and path not in named and not path.name.startswith("."):
                path.unlink(missing_ok=True)

    def _file(self, digest: str) -> Path:
        return self._folder / digest.removeprefix("sha256:")


def _key(version: VersionRef) -> str:
    return f"{version.digest} {version.variant}"


def _used(entries: Iterable[Entry]) -> int:
    return sum(file.size for entry in entries if entry.form for file in entry.form.files)
