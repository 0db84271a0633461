"""Where a passphrase comes from: a file, or a person at a terminal. Never an argument."""

from __future__ import annotations

import getpass
import os
import sys
from pathlib import Path

from securesystemslib.signer import CryptoSigner, Signer

from edgefleet_provisioning import keys, signers
from edgefleet_provisioning.fleet_folder import FleetFolder, read
from edgefleet_provisioning.key_store import StoredKey
from edgefleet_shared.errors import InvalidInputError, TrustError

ENVIRONMENT = "EDGEFLEET_PASSPHRASE_FILE"
PIN_ENVIRONMENT = "EDGEFLEET_PIN_FILE"


def choose(file: Path | None, *, insecure: bool) -> bytes | None:
    """Return the passphrase of a new fleet; None if its keys stay unencrypted.

    Without a file it is in that of EDGEFLEET_PASSPHRASE_FILE, or a person types it.

    Raises:
        InvalidInputError: None given and nobody to ask, too short, or typed differently twice.
    """
    if insecure and file:
        raise InvalidInputError(
            "--passphrase-file and --insecure-no-passphrase exclude each other.", code="usage"
        )
    if insecure:
        return None
    if chosen := _file(file):
        return keys.check_passphrase(_from_file(chosen))
    if not sys.stdin.isatty():
        raise InvalidInputError(
            "The offline keys need a passphrase and there is no terminal to ask on.",
            code="passphrase_needed",
            hint=f"Give --passphrase-file FILE, set {ENVIRONMENT}, or give"
            " --insecure-no-passphrase for a throw-away fleet.",
        )
    first = keys.check_passphrase(_ask("Passphrase for the offline keys: "))
    if _ask("The same again: ") != first:
        raise InvalidInputError(
            "The two passphrases differ.", code="passphrase_wrong", hint="Nothing was written."
        )
    return first


class Keyring:
    """Opens the private keys of a fleet folder, asking for what they need, once where it can.

    Args:
        folder: The fleet folder.
        file: A file that holds the passphrase; None: EDGEFLEET_PASSPHRASE_FILE, or a person.
    """

    def __init__(self, folder: FleetFolder, file: Path | None) -> None:
        self._folder, self._file = folder, file
        self._typed: bytes | None = None
        self._pin: str | None = None

    def signer(self, key: StoredKey) -> Signer:
        """Return the signer of a stored key.

        Raises:
            InvalidInputError: Its private half, passphrase or library is missing or wrong.
            TrustError: The private half is another key's (code `wrong_key`).
        """
        if key.uri:
            return signers.open_uri(key.uri, key.key, self.secret)
        signer = self._from_file(key)
        if signer.public_key.keyid != key.keyid:
            raise TrustError(
                f"{key.name}.pem is not the private half of {key.name}.pub.json.",
                code="wrong_key",
                hint="`edgefleet keys list` names the keys of every role.",
            )
        return signer

    def _from_file(self, key: StoredKey) -> CryptoSigner:
        pem = self._folder.pem(key.name)
        if self._typed is not None:  # the passphrase of one key often is that of all
            try:
                return keys.decode_private(pem, self._typed, key.name)
            except InvalidInputError:
                self._typed = None
        self._typed = for_key(self._folder, key.name, self._file)
        return keys.decode_private(pem, self._typed, key.name)

    def secret(self, what: str) -> str:
        """Return what `signers` ask for: a token's PIN, or the passphrase of a key file."""
        if what != "pin":
            return _secret(what, self._file).decode()
        if self._pin is None:
            chosen = os.environ.get(PIN_ENVIRONMENT)
            if not chosen and not sys.stdin.isatty():
                raise InvalidInputError(
                    "The token needs its PIN and there is no terminal to ask on.",
                    code="passphrase_needed",
                    hint=f"Set {PIN_ENVIRONMENT} to a file that holds it.",
                )
            found = _from_file(Path(chosen)) if chosen else _ask("PIN of the token: ")
            self._pin = found.decode()
        return self._pin


def for_new(folder: FleetFolder, file: Path | None) -> bytes | None:
    """Return the passphrase of a new key: None in a fleet whose keys have none.

    Raises:
        InvalidInputError: It is needed, and there is neither file nor terminal; or it is too short.
    """
    stored = sorted(folder.keys.glob("*.pem"))
    if file is None and stored and not keys.is_encrypted(stored[0].read_bytes()):
        return None
    return choose(file, insecure=False)


def for_backup(file: Path | None) -> bytes:
    """Return the passphrase of a new backup.

    Raises:
        InvalidInputError: There is neither file nor terminal; or it is too short.
    """
    found = choose(file, insecure=False)
    assert found is not None
    return found


def of_backup(backup: Path, file: Path | None) -> bytes:
    """Return the passphrase of a backup that there is.

    Raises:
        InvalidInputError: There is neither file nor terminal.
    """
    return _secret(str(backup), file)


def for_key(folder: FleetFolder, name: str, file: Path | None) -> bytes | None:
    """Return the passphrase that opens a stored key; None if it is not encrypted.

    Raises:
        InvalidInputError: It is needed, and there is neither file nor terminal.
    """
    if not keys.is_encrypted(folder.pem(name)):
        return None
    return _secret(name, file)


def _secret(name: str, file: Path | None) -> bytes:
    if chosen := _file(file):
        return _from_file(chosen)
    if not sys.stdin.isatty():
        raise InvalidInputError(
            f"{name} is encrypted and there is no terminal to ask for its passphrase.",
            code="passphrase_needed",
            hint=f"Give --passphrase-file FILE or set {ENVIRONMENT}.",
        )
    return _ask(f"Passphrase for {name}: ")


def _file(given: Path | None) -> Path | None:
    named = os.environ.get(ENVIRONMENT)
    return given or (Path(named) if named else None)


def _from_file(path: Path) -> bytes:
    missing = f"The passphrase file {path} does not exist."
    data = read(path, "passphrase file", missing, "Put the passphrase into it, on one line.")
    return data.removesuffix(b"\n").removesuffix(b"\r")


def _ask(prompt: str) -> bytes:
    return getpass.getpass(prompt).encode()
