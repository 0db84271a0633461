"""A copy of the offline side for a stick in a safe: one encrypted file, read back before it counts.

JSON holding scrypt's parameters and one AES-256-GCM ciphertext; the parameters are authenticated.
Inside: `fleet.json`, the first root and every file of `offline/keys`, those keys still under their
own passphrases. Keys on tokens and in key services have only their public halves here.
"""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Literal

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from edgefleet_provisioning.durable import PRIVATE, Content, write_file, write_tree
from edgefleet_provisioning.fleet_folder import FleetFolder, read
from edgefleet_shared import strict_json
from edgefleet_shared.errors import InvalidInputError

MAX_BYTES = 16 * 1024 * 1024
SCRYPT_N, SCRYPT_R, SCRYPT_P = 2**17, 8, 1  # 128 MiB of memory a guess


class _Header(msgspec.Struct, frozen=True):
    v: Literal[1]
    kind: Literal["edgefleet-offline-backup"]
    fleet: str
    n: int
    r: int
    p: int
    salt: str
    nonce: str


class _Backup(msgspec.Struct, frozen=True):
    header: _Header
    ciphertext: str


def contents(folder: FleetFolder) -> dict[str, bytes]:
    """Return what a backup of a fleet folder holds, path to bytes."""
    paths = [
        folder.path / "fleet.json",
        folder.path / "offline" / "metadata" / "1.root.json",
        *sorted(path for path in folder.keys.iterdir() if path.suffix in {".pem", ".json"}),
    ]
    return {
        str(path.relative_to(folder.path)): read(path, "file", f"{path} is missing.")
        for path in paths
    }


def seal(fleet: str, files: dict[str, bytes], passphrase: bytes) -> bytes:
    """Return the backup of these files."""
    header = _Header(
        1, "edgefleet-offline-backup", fleet, SCRYPT_N, SCRYPT_R, SCRYPT_P,
        _text(os.urandom(16)), _text(os.urandom(12)),
    )  # fmt: skip
    plain = strict_json.encode({name: _text(data) for name, data in sorted(files.items())})
    ciphertext = _cipher(header, passphrase).encrypt(
        base64.b64decode(header.nonce), plain, strict_json.encode(header)
    )
    return strict_json.encode(_Backup(header, _text(ciphertext))) + b"\n"


def unseal(data: bytes, passphrase: bytes) -> dict[str, bytes]:
    """Return the files of a backup.

    Raises:
        InvalidInputError: Not a backup, damaged, or the passphrase is another one.
    """
    backup = strict_json.decode(data, _Backup, max_bytes=MAX_BYTES, what="backup")
    header = backup.header
    if (header.n, header.r, header.p) != (SCRYPT_N, SCRYPT_R, SCRYPT_P):
        raise InvalidInputError("The backup's parameters are not ours.", code="backup_damaged")
    try:
        plain = _cipher(header, passphrase).decrypt(
            base64.b64decode(header.nonce),
            base64.b64decode(backup.ciphertext, validate=True),
            strict_json.encode(header),
        )
    except (InvalidTag, ValueError) as error:
        raise InvalidInputError(
            "The backup does not open: its passphrase is another one, or it is damaged.",
            code="backup_damaged",
            hint="Nothing was written. Try the other stick.",
        ) from error
    names = strict_json.decode(plain, dict[str, str], max_bytes=MAX_BYTES, what="backup")
    return {name: base64.b64decode(text) for name, text in names.items()}


def write(path: Path, folder: FleetFolder, passphrase: bytes) -> list[str]:
    """Write a backup, read it back from the disk and compare; return the names in it.

    Raises:
        InvalidInputError: It cannot be written, or what comes back is not what was written.
    """
    files = contents(folder)
    write_file(path, seal(folder.file.fleet, files, passphrase), PRIVATE)
    if unseal(_from_disk(path), passphrase) != files:
        raise InvalidInputError(
            f"{path} does not hold what was written.",
            code="backup_damaged",
            hint="Take another stick.",
        )
    return sorted(files)


def restore(path: Path, target: Path, passphrase: bytes) -> list[str]:
    """Make a new fleet folder of a backup: its offline side; return the names.

    Raises:
        InvalidInputError: The backup does not open, or the folder exists.
    """
    files = unseal(
        read(path, "backup", f"{path} is missing.", "Give the backup's file."), passphrase
    )
    for name in files:
        parts = Path(name).parts
        if Path(name).is_absolute() or ".." in parts:
            raise InvalidInputError(f"The backup names {name[:80]!r}.", code="backup_damaged")
    private = {
        n: Content(d, PRIVATE) if n.endswith(".pem") else Content(d) for n, d in files.items()
    }
    write_tree(target, private)
    return sorted(files)


def _from_disk(path: Path) -> bytes:
    """Read a file past the kernel's memory of it."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return file.read()


def _cipher(header: _Header, passphrase: bytes) -> AESGCM:
    salt = base64.b64decode(header.salt)
    return AESGCM(Scrypt(salt, 32, n=header.n, r=header.r, p=header.p).derive(passphrase))


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
