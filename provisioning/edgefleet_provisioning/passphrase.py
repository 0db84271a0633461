"""Where a passphrase comes from: a file, or a person at a terminal. Never an argument."""

from __future__ import annotations

import getpass
import os
import sys
from pathlib import Path

from edgefleet_provisioning import keys
from edgefleet_provisioning.fleet_folder import FleetFolder, read
from edgefleet_shared.errors import InvalidInputError

ENVIRONMENT = "EDGEFLEET_PASSPHRASE_FILE"


def choose(file: Path | None, *, insecure: bool) -> bytes | None:
    """Return the passphrase of a new fleet; None if its keys stay unencrypted.

    Raises:
        InvalidInputError: None given and nobody to ask, too short, or typed differently twice.
    """
    if insecure and file:
        raise InvalidInputError(
            "--passphrase-file and --insecure-no-passphrase exclude each other.", code="usage"
        )
    if insecure:
        return None
    if file:
        return keys.check_passphrase(_from_file(file))
    if not sys.stdin.isatty():
        raise InvalidInputError(
            "The offline keys need a passphrase and there is no terminal to ask on.",
            code="passphrase_needed",
            hint="Give --passphrase-file FILE, or --insecure-no-passphrase for a throw-away fleet.",
        )
    first = keys.check_passphrase(_ask("Passphrase for the offline keys: "))
    if _ask("The same again: ") != first:
        raise InvalidInputError(
            "The two passphrases differ.", code="passphrase_wrong", hint="Nothing was written."
        )
    return first


def for_key(folder: FleetFolder, name: str, file: Path | None) -> bytes | None:
    """Return the passphrase that opens a stored key; None if it is not encrypted.

    Raises:
        InvalidInputError: It is needed, and there is neither file nor terminal.
    """
    if not keys.is_encrypted(folder.pem(name)):
        return None
    chosen = file or (Path(os.environ[ENVIRONMENT]) if os.environ.get(ENVIRONMENT) else None)
    if chosen:
        return _from_file(chosen)
    if not sys.stdin.isatty():
        raise InvalidInputError(
            f"The key {name} is encrypted and there is no terminal to ask for its passphrase.",
            code="passphrase_needed",
            hint=f"Give --passphrase-file FILE or set {ENVIRONMENT}.",
        )
    return _ask(f"Passphrase for {name}: ")


def _from_file(path: Path) -> bytes:
    missing = f"The passphrase file {path} does not exist."
    data = read(path, "passphrase file", missing, "Put the passphrase into it, on one line.")
    return data.removesuffix(b"\n").removesuffix(b"\r")


def _ask(prompt: str) -> bytes:
    return getpass.getpass(prompt).encode()
