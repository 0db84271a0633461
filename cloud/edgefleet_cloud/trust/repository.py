"""The metadata folder: a plain TUF repository that is whole whenever the process may die."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edgefleet_cloud import durable
from edgefleet_cloud.errors import NotFoundError
from edgefleet_cloud.trust import chain
from edgefleet_shared import bundle
from edgefleet_shared.errors import EdgeFleetError, InvalidInputError, UnavailableError

PENDING = ".pending"


class MetadataFolder:
    """Files of one TUF repository.

    A step that changes several files is first written whole into `.pending`; once that is on disk
    the step happens, now or at the next start.

    Args:
        path: The folder.

    Raises:
        InvalidInputError: It cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            if (path / PENDING).exists():
                self._apply(bundle.decode((path / PENDING).read_bytes()))
        except (OSError, EdgeFleetError) as error:
            raise InvalidInputError(
                f"The unfinished step {path / PENDING} cannot be finished: {error}.",
                code="configuration",
                hint="Look at the disk. Restore the folder if the file is damaged.",
            ) from error

    def names(self) -> list[str]:
        """Return the names of all metadata files, sorted."""
        return sorted(p.name for p in self._path.iterdir() if _is_metadata(p.name))

    def all(self) -> dict[str, bytes]:
        """Return every file.

        Raises:
            InvalidInputError: The folder cannot be read.
        """
        try:
            return {name: (self._path / name).read_bytes() for name in self.names()}
        except OSError as error:
            raise InvalidInputError(
                f"The metadata folder {self._path} cannot be read: {error.strerror}.",
                code="configuration",
                hint="`edgefleet init` makes one; metadata_dir in cloud.toml says where it is.",
            ) from error

    def read(self, name: str) -> bytes:
        """Return one file.

        Raises:
            NotFoundError: There is none of this name.
        """
        if _is_metadata(name):
            try:
                return (self._path / name).read_bytes()
            except FileNotFoundError:
                pass
        raise NotFoundError(
            f"There is no metadata file {name[:100]!r}.", hint="GET /v1/trust/metadata lists them."
        )

    def publish(self, files: Mapping[str, bytes]) -> None:
        """Add files; all of them are visible after, or none if this raises.

        Raises:
            UnavailableError: They cannot be written.
        """
        try:
            self._write(PENDING, bundle.encode(files))
        except OSError as error:
            raise UnavailableError(
                f"The metadata cannot be stored: {error.strerror}.",
                code="storage",
                hint="Look at the server's disk, then send it again.",
            ) from error
        self._apply(files)

    def _apply(self, files: Mapping[str, bytes]) -> None:
        # The timestamp makes the others current, so it comes last.
        for name in sorted(files, key=lambda name: name == chain.TIMESTAMP_FILE):
            self._write(name, files[name])
        (self._path / PENDING).unlink()
        durable.sync_folder(self._path)

    def _write(self, name: str, data: bytes) -> None:
        durable.write(self._path / name, data)


def _is_metadata(name: str) -> bool:
    return name == chain.TIMESTAMP_FILE or chain.split_name(name) is not None
