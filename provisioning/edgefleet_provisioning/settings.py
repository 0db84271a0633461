"""Which fleet manager to speak to and as whom: options, then environment, then a folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from edgefleet_provisioning import logins
from edgefleet_provisioning.fleet_folder import ClientConfig, FleetFolder, read_client
from edgefleet_shared.errors import InvalidInputError

SERVER, TOKEN, FLEET = "EDGEFLEET_SERVER", "EDGEFLEET_TOKEN", "EDGEFLEET_FLEET"


class Connection(NamedTuple):
    """The fleet manager's base URL and the API token, '' for none."""

    server: str
    token: str


def find_folder(fleet: Path | None) -> FleetFolder | None:
    """Return the fleet folder: `--fleet`, EDGEFLEET_FLEET, or the working folder if it is one.

    Raises:
        InvalidInputError: The folder that was named is none.
    """
    if fleet:
        return FleetFolder.open(fleet)
    if os.environ.get(FLEET):
        return FleetFolder.open(Path(os.environ[FLEET]))
    return FleetFolder.open(Path.cwd()) if (Path.cwd() / "fleet.json").exists() else None


def need_folder(fleet: Path | None) -> FleetFolder:
    """Return the fleet folder.

    Raises:
        InvalidInputError: There is none.
    """
    folder = find_folder(fleet)
    if folder is None:
        raise InvalidInputError(
            "This command signs, so it needs the fleet folder with its offline keys.",
            code="no_fleet",
            hint=f"Give --fleet DIR or set {FLEET}; `edgefleet init` makes one.",
        )
    return folder


def connection(server: str | None, token: str | None, fleet: Path | None) -> Connection:
    """Return where to connect.

    Raises:
        InvalidInputError: No address is known, or the one given is not an http(s) URL.
    """
    folder = find_folder(fleet)
    stored = folder.client() if folder else _here()
    url = server or os.environ.get(SERVER) or stored.server
    if not url:
        raise InvalidInputError(
            "It is not known where the fleet manager is.",
            code="no_server",
            hint=f"Give --server URL, set {SERVER}, or give --fleet DIR.",
        )
    url = check_server(url).rstrip("/")
    return Connection(url, token or os.environ.get(TOKEN) or logins.find(url) or stored.token)


def check_server(server: str) -> str:
    """Return a fleet manager's base URL.

    Raises:
        InvalidInputError: It is not an http(s) URL with a host.
    """
    try:
        parts = urlsplit(server)
        fits = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port out of range, a bracket left open
        fits = False
    if not fits:
        raise InvalidInputError(
            f"{server[:200]!r} is not the address of a server.",
            code="invalid_address",
            hint="An address looks like http://127.0.0.1:8080.",
        )
    return server


def _here() -> ClientConfig:
    return read_client(Path.cwd() / "client.toml")
