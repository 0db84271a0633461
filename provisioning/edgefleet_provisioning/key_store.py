"""The offline keys of a fleet folder: public halves at hand, private ones in files or elsewhere."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from securesystemslib.signer import Key

from edgefleet_provisioning import keys
from edgefleet_provisioning.durable import PRIVATE, write_file
from edgefleet_provisioning.fleet_folder import MAX_BYTES, FleetFolder, read
from edgefleet_provisioning.keys import NamedKey
from edgefleet_shared import strict_json
from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.identifiers import check_name
from edgefleet_shared.package import publisher_role

OFFLINE_ROLES = ("root", "targets", "publisher")
ONLINE_ROLES = ("snapshot", "timestamp", "director", "audit")
"""Roles whose keys are made, and stay, on the server."""
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,79}")


class StoredKey(NamedTuple):
    """A key of the folder.

    Attributes:
        name: Its file's name, for example `root-1`.
        role: `root`, `targets`, `publisher` (of any family) or `publisher/<family>`.
        key: The public half.
        uri: Where the private half is if not in a file here, for example `hsm:2?label=ops`.
        at_hand: Whether the private half can be asked for: its file is here, or it has a URI.
    """

    name: str
    role: str
    key: Key
    uri: str
    at_hand: bool

    @property
    def keyid(self) -> str:
        """The key's id in TUF metadata."""
        return str(self.key.keyid)

    @property
    def where(self) -> str:
        """file, hsm, kms, or `elsewhere` for a key of which only the public half is here."""
        scheme = self.uri.partition(":")[0]
        if not scheme or scheme == "file2":
            return "file" if self.at_hand else "elsewhere"
        return "kms" if scheme.endswith("kms") else scheme

    @property
    def algorithm(self) -> str:
        """The signature scheme, as TUF metadata calls it."""
        return str(self.key.scheme)


class KeyStore:
    """Reads and adds keys.

    Args:
        folder: The fleet folder.

    Raises:
        InvalidInputError: A public key cannot be read.
    """

    def __init__(self, folder: FleetFolder) -> None:
        self._folder = folder
        self._keys = {
            path.name.removesuffix(".pub.json"): self._read(path.name.removesuffix(".pub.json"))
            for path in sorted(folder.keys.glob("*.pub.json"))
        }

    def all(self) -> list[StoredKey]:
        """Return every key, by name."""
        return [self._keys[name] for name in sorted(self._keys)]

    def find(self, name: str) -> StoredKey:
        """Return a key by its name, its key id, or the first eight or more characters of that.

        Raises:
            InvalidInputError: There is none.
        """
        if name in self._keys:
            return self._keys[name]
        found = [k for k in self.all() if len(name) >= 8 and k.keyid.startswith(name)]
        if len(found) != 1:
            raise InvalidInputError(
                f"There is no key {name[:80]!r} in {self._folder.keys}.",
                code="no_key",
                hint="`edgefleet keys list` shows what there is.",
            )
        return found[0]

    def named(self, keyid: str) -> str:
        """Return what people call a key: its name here, else the beginning of its id."""
        return next((key.name for key in self.all() if key.keyid == keyid), keyid[:12])

    def for_ids(self, keyids: frozenset[str] | set[str]) -> list[StoredKey]:
        """Return the keys with these ids whose private half can be asked for; files first."""
        found = [key for key in self.all() if key.keyid in keyids and key.at_hand]
        return sorted(found, key=lambda key: (key.where != "file", key.name))

    def next_name(self, role: str) -> str:
        """Return the next free name of a role, for example `root-4` or `publisher-digits-1`."""
        stem, number = role.replace("/", "-"), 1
        taken = {*self._keys, *(path.stem for path in self._folder.keys.glob("*.pem"))}
        while f"{stem}-{number}" in taken:
            number += 1
        return f"{stem}-{number}"

    def check_free(self, name: str) -> str:
        """Return a name that no key has.

        Raises:
            InvalidInputError: It is taken, or is none.
        """
        if not NAME.fullmatch(name):
            raise InvalidInputError(f"{name[:80]!r} is not a name of a key.", code="invalid_name")
        if name in self._keys or (self._folder.keys / f"{name}.pem").exists():
            raise InvalidInputError(
                f"There is a key {name} already.",
                code="key_exists",
                hint="A key never changes: take another name.",
            )
        return name

    def add(self, key: NamedKey, passphrase: bytes | None) -> StoredKey:
        """Store a new key, its private half under a passphrase, if one is given.

        Raises:
            InvalidInputError: The name is taken, or the folder cannot be written.
        """
        name = self.check_free(key.name)
        pem = keys.encode_private(key.signer, passphrase)
        write_file(self._folder.keys / f"{name}.pem", pem, PRIVATE)
        return self._publish(name, key.role, key.signer.public_key, "")

    def add_public(self, name: str, role: str, key: Key, uri: str) -> StoredKey:
        """Store the public half of a key whose private half is at `uri`; '': with somebody else.

        Raises:
            InvalidInputError: The name is taken, or the folder cannot be written.
        """
        return self._publish(self.check_free(name), role, keys.check_key_id(key), uri)

    def _publish(self, name: str, role: str, key: Key, uri: str) -> StoredKey:
        path = self._folder.keys / f"{name}.pub.json"
        write_file(path, keys.encode_public(key, role, uri))
        self._keys[name] = self._read(name)
        return self._keys[name]

    def _read(self, name: str) -> StoredKey:
        path = self._folder.keys / f"{name}.pub.json"
        data = read(path, "public key", f"{path} is missing.")
        fields = strict_json.decode(
            data, dict[str, Any], max_bytes=MAX_BYTES, what=f"public key {path.name}"
        )
        key, role, uri = decode_public(fields, path.name)
        pem = self._folder.keys / f"{name}.pem"
        return StoredKey(name, role, key, uri, bool(uri) or pem.exists())


def decode_public(fields: dict[str, Any], what: str) -> tuple[Key, str, str]:
    """Return key, role and URI of a `.pub.json`.

    Raises:
        InvalidInputError: It is none.
        TrustError: Its key id is another key's.
    """
    try:
        rest = {k: v for k, v in fields.items() if k not in {"keyid", "role", "uri"}}
        key = Key.from_dict(str(fields["keyid"]), rest)
    except (KeyError, ValueError, TypeError) as error:
        raise InvalidInputError(
            f"{what} is not a public key: {error}.",
            code="bad_key",
            hint="Expected is what `edgefleet init` and `edgefleet keys add` write.",
        ) from error
    return keys.check_key_id(key), str(fields.get("role", "")), str(fields.get("uri", ""))


def check_role(role: str, family: str | None) -> str:
    """Return the role of a new offline key, for example `publisher/digits`.

    Raises:
        InvalidInputError: Not a role whose keys are kept here, or a publisher without family.
    """
    if role not in OFFLINE_ROLES:
        raise InvalidInputError(
            f"{role[:80]!r} is not a role with keys of its own.",
            code="invalid_role",
            hint=f"Those are {', '.join(OFFLINE_ROLES)}, and {', '.join(ONLINE_ROLES)}.",
        )
    if (role == "publisher") != (family is not None):
        raise InvalidInputError(
            "A publisher's key is for one family, and no other key is.",
            code="usage",
            hint="Give --family NAME with publisher, and only there.",
        )
    return publisher_role(check_name(family, "model family")) if family else role
