"""`edgefleet keys list`: every key, where it lies, what it signs and until when."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Annotated, Any

import typer

from edgefleet_provisioning.catalog import Catalog
from edgefleet_provisioning.commands.session import Session, reading
from edgefleet_provisioning.key_store import KeyStore, StoredKey
from edgefleet_provisioning.settings import need_folder
from edgefleet_shared.times import format_time

COLUMNS = ("name", "role", "key id", "algorithm", "where", "signs", "until")


class _Trust:
    """Which roles a key signs, and when each role's metadata expires."""

    def __init__(self, catalog: Catalog) -> None:
        top = catalog.top()
        targets = top.targets.signed
        delegated = (targets.delegations.roles if targets.delegations else None) or {}
        self.grants = {**top.root.signed.roles, **delegated}
        self.ends: dict[str, datetime] = {
            "root": top.root.signed.expires,
            "targets": targets.expires,
            "snapshot": top.snapshot.signed.expires,
            "timestamp": top.timestamp.signed.expires,
        }
        for role in delegated:
            kind, _, model = role.partition("/")
            publisher = kind == "publisher"
            self.ends[role] = (
                catalog.publisher(model).signed.expires if publisher else targets.expires
            )

    def roles(self, keyid: str) -> list[str]:
        return [role for role, grant in self.grants.items() if keyid in grant.keyids]

    def until(self, roles: list[str]) -> str | None:
        ends = [self.ends[role] for role in roles if role in self.ends]
        return format_time(min(ends)) if ends else None


@reading
def list_(
    session: Session,
    offline: Annotated[
        bool, typer.Option("--offline", help="Do not ask the server what it knows.")
    ] = False,
) -> None:
    """List the keys of the fleet, offline and online."""
    folder = need_folder(session.fleet)
    store = KeyStore(folder)
    if offline:
        found = [document(key) for key in store.all()]
    else:
        catalog = Catalog(session.api, folder.root(), folder.trust_cache, even_expired=True)
        found = list(_known(session, store, _Trust(catalog)))
    rows = [
        (
            key["name"], key["role"], key["keyid"][:12], key["algorithm"], key["where"],
            "?" if key["signs"] is None else " ".join(key["signs"]), key["until"],
        )
        for key in found
    ]  # fmt: skip
    session.output.table(found, COLUMNS, rows)


def document(key: StoredKey) -> dict[str, Any]:
    """Return a key of the folder as --json shows it; what the server knows is not known."""
    return {
        "name": key.name,
        "role": key.role,
        "keyid": key.keyid,
        "algorithm": key.algorithm,
        "where": key.where,
        "uri": key.uri,
        "signs": None,
        "until": None,
    }


def _known(session: Session, store: KeyStore, trust: _Trust) -> Iterator[dict[str, Any]]:
    for key in store.all():
        roles = trust.roles(key.keyid)
        yield {**document(key), "signs": roles, "until": trust.until(roles)}
    here = {key.keyid for key in store.all()}
    for online in session.api.get("/v1/trust/keys")["keys"]:
        roles = trust.roles(online["keyid"])
        here.add(online["keyid"])
        yield {
            "name": online["file"],
            "role": online["role"],
            "keyid": online["keyid"],
            "algorithm": online["key"]["scheme"],
            "where": "server",
            "uri": "",
            "signs": roles,
            "until": trust.until(roles),
        }
    for role, grant in trust.grants.items():
        for keyid in grant.keyids:
            if keyid not in here:
                yield {
                    "name": None,
                    "role": role,
                    "keyid": keyid,
                    "algorithm": None,
                    "where": "unknown",
                    "uri": "",
                    "signs": [role],
                    "until": trust.until([role]),
                }
