"""The fleet folder as its owner sees it: keys, trusted root, and how to reach the server."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Literal, NamedTuple, Self

import msgspec

from edgefleet_shared import strict_json
from edgefleet_shared.errors import InvalidInputError

MAX_BYTES = 64 * 1024


class FleetFile(msgspec.Struct, frozen=True):
    """`fleet.json`."""

    v: Literal[1]
    fleet: str
    created: str
    root_threshold: int
    targets_threshold: int


class ClientConfig(NamedTuple):
    """`client.toml`: the fleet manager's address and an API token; '' where not given."""

    server: str = ""
    token: str = ""


class FleetFolder:
    """A folder that `edgefleet init` made; only its offline side and `fleet.json` are read.

    Args:
        path: The folder.
        file: Its `fleet.json`.
    """

    def __init__(self, path: Path, file: FleetFile) -> None:
        self.path = path
        self.file = file

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a fleet folder.

        Raises:
            InvalidInputError: It is none.
        """
        data = read(path / "fleet.json", "fleet folder", f"{path} is not a fleet folder.")
        what = "fleet.json"
        return cls(path, strict_json.decode(data, FleetFile, max_bytes=MAX_BYTES, what=what))

    @property
    def trust_cache(self) -> Path:
        """Where verified metadata is kept, so that an older catalog is recognised as such."""
        return self.path / "offline" / "trust"

    def root(self) -> bytes:
        """Return the first root, the anchor of all trust.

        Raises:
            InvalidInputError: It is missing.
        """
        path = self.path / "offline" / "metadata" / "1.root.json"
        return read(path, "trusted root", f"The trusted root {path} is missing.")

    @property
    def keys(self) -> Path:
        """Where the offline keys lie."""
        return self.path / "offline" / "keys"

    def pem(self, name: str) -> bytes:
        """Return a private key as it is stored.

        Raises:
            InvalidInputError: It is not here.
        """
        path = self.keys / f"{name}.pem"
        return read(path, "key", f"The private key {path} is missing.")

    def client(self) -> ClientConfig:
        """Return the configuration of `edgefleet` itself; empty if there is none."""
        return read_client(self.path / "offline" / "client.toml")


def read_client(path: Path) -> ClientConfig:
    """Read a `client.toml`; a missing one is empty.

    Raises:
        InvalidInputError: It cannot be read.
    """
    if not path.exists():
        return ClientConfig()
    try:
        found = tomllib.loads(path.read_text())
        return ClientConfig(str(found.get("server", "")), str(found.get("token", "")))
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"{path} cannot be read: {error}.", code="bad_config") from error


def read(
    path: Path, what: str, missing: str, hint: str = "`edgefleet init` makes a fleet folder."
) -> bytes:
    """Return a file's bytes.

    Args:
        path: The file.
        what: What it is, for the message.
        missing: The message if there is no such file.
        hint: What to do then.

    Raises:
        InvalidInputError: There is no such file, or it cannot be read.
    """
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InvalidInputError(missing, code="missing_file", hint=hint) from error
    except OSError as error:
        raise InvalidInputError(
            f"The {what} {path} cannot be read: {error.strerror}.", code="not_readable"
        ) from error
