"""`edgefleet trust`: who may sign what, until when, and letting somebody publish one more model."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from tuf.api.metadata import Metadata, Targets

from edgefleet_provisioning import expiry
from edgefleet_provisioning.catalog import Catalog, TopRoles
from edgefleet_provisioning.commands import ceremony, completion, signing
from edgefleet_provisioning.commands.session import PassphraseOption, Session, connected, reading
from edgefleet_provisioning.key_store import KeyStore
from edgefleet_provisioning.passphrase import Keyring
from edgefleet_provisioning.settings import need_folder
from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.identifiers import check_name
from edgefleet_shared.package import publisher_role
from edgefleet_shared.times import format_time

SHARED_KEY = "publisher-1"

app = typer.Typer(help="Look at the fleet's trust, and extend it.", no_args_is_help=True)
app.command("sign")(ceremony.sign)
app.command("publish")(ceremony.publish)
app.command("rotate-root")(ceremony.rotate_root)


@app.command("show")
@reading
def show(session: Session) -> None:
    """Show every role: version, threshold, expiry and keys, verified from the offline root."""
    folder = need_folder(session.fleet)
    catalog = Catalog(session.api, folder.root(), folder.trust_cache, even_expired=True)
    roles = [*_top(catalog.top()), *_delegated(catalog)]
    store = KeyStore(folder)
    rows = [
        (
            role["role"],
            role["version"],
            f"{role['threshold']} of {len(role['keys'])}",
            role["expires"],
            " ".join(map(store.named, role["keys"])),
        )
        for role in roles
    ]
    session.output.table(roles, ("role", "version", "threshold", "expires", "keys"), rows)


@app.command("delegate")
@connected
def delegate(
    session: Session,
    family: Annotated[str, typer.Argument(help="Model name that may be published from now on.")],
    key: Annotated[
        str | None,
        typer.Option(
            help="The publisher's key; default: the one that is shared, publisher-1.",
            show_default=False,
            autocompletion=completion.keys,
        ),
    ] = None,
    prepare: signing.PrepareOption = None,
    passphrase_file: PassphraseOption = None,
    yes: signing.YesOption = False,
) -> None:
    """Let a publisher's key release one more model, or one beside those that do."""
    check_name(family, "model family")
    desk = signing.open_desk(session)
    stored = desk.store.find(key or SHARED_KEY)
    if stored.role not in {"publisher", publisher_role(family)}:
        raise InvalidInputError(
            f"{stored.name} is a key for {stored.role}.",
            code="invalid_role",
            hint=f"`edgefleet keys add publisher --family {family}` makes one.",
        )
    changes = desk.changes()
    changes.delegate(family, stored.key)
    title = f"{stored.name} may publish {family}"
    keyring = Keyring(desk.folder, passphrase_file)
    signing.settle(session, desk, changes, title, keyring, prepare=prepare, yes=yes)


@app.command("renew")
@connected
def renew(
    session: Session,
    roles: Annotated[
        list[str], typer.Argument(metavar="ROLE...", help="root, targets or publisher/<model>.")
    ],
    prepare: signing.PrepareOption = None,
    passphrase_file: PassphraseOption = None,
    yes: signing.YesOption = False,
) -> None:
    """Sign roles anew before they expire, or after: the same content, a new life."""
    desk = signing.open_desk(session)
    changes = desk.changes()
    for role in roles:
        changes.renew(role)
    keyring = Keyring(desk.folder, passphrase_file)
    title = f"{', '.join(roles)} signed anew"
    signing.settle(session, desk, changes, title, keyring, prepare=prepare, yes=yes)


@app.command("expire-soon")
@reading
def expire_soon(
    session: Session,
    days: Annotated[
        int | None,
        typer.Option(min=0, help="Default: a third of each role's life.", show_default=False),
    ] = None,
) -> None:
    """List what expires soon; exit code 1 if anything does, for cron."""
    folder = need_folder(session.fleet)
    catalog = Catalog(session.api, folder.root(), folder.trust_cache, even_expired=True)
    found = expiry.soon(_ends(catalog), datetime.now(UTC), days)
    document = [
        {"role": f.role, "expires": format_time(f.expires), "days": f.days, "renew": f.renew}
        for f in found
    ]
    rows = [(f.role, format_time(f.expires), f.days, f.renew) for f in found]
    session.output.table(document, ("role", "expires", "days", "renew it by"), rows)
    if found:
        raise typer.Exit(1)


def _ends(catalog: Catalog) -> dict[str, datetime]:
    present, top = catalog.present(), catalog.top()
    signed: dict[str, Metadata[Any]] = {
        **present.roles(),
        "snapshot": top.snapshot,
        "timestamp": top.timestamp,
    }
    return {role: metadata.signed.expires for role, metadata in signed.items()}


def _top(top: TopRoles) -> list[dict[str, Any]]:
    parts: tuple[Metadata[Any], ...] = top
    return [
        _role(name, part.signed.version, part.signed.expires, top.root.signed.roles[name])
        for name, part in zip(TopRoles._fields, parts, strict=True)
    ]


def _delegated(catalog: Catalog) -> list[dict[str, Any]]:
    targets: Targets = catalog.top().targets.signed
    found = []
    for name, role in ((targets.delegations and targets.delegations.roles) or {}).items():
        kind, _, model = name.partition("/")
        if kind == "publisher":
            signed = catalog.publisher(model).signed
            found.append({
                **_role(name, signed.version, signed.expires, role),
                "releases": len(signed.targets),
            })  # fmt: skip
        else:
            found.append(_role(name, None, None, role))
    return found


def _role(name: str, version: int | None, expires: datetime | None, role: Any) -> dict[str, Any]:
    return {
        "role": name,
        "version": version,
        "threshold": role.threshold,
        "expires": format_time(expires) if expires else None,
        "keys": list(role.keyids),
    }
