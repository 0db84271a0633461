"""`edgefleet trust`: who may sign what, and letting somebody publish one more model."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from tuf.api.metadata import Metadata, Targets

from edgefleet_provisioning import passphrase, repository
from edgefleet_provisioning.catalog import Catalog, TopRoles
from edgefleet_provisioning.commands.publish import PUBLISHER_KEY
from edgefleet_provisioning.commands.session import PassphraseOption, Session, connected, reading
from edgefleet_provisioning.fleet_folder import FleetFolder
from edgefleet_provisioning.settings import need_folder
from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.identifiers import check_name
from edgefleet_shared.times import format_time

app = typer.Typer(help="Look at the fleet's trust, and extend it.", no_args_is_help=True)


@app.command("show")
@reading
def show(session: Session) -> None:
    """Show every role: version, threshold, expiry and keys, verified from the offline root."""
    folder = need_folder(session.fleet)
    catalog = Catalog(session.api, folder.root(), folder.trust_cache)
    roles = [*_top(catalog.top()), *_delegated(catalog)]
    names = folder.key_ids()
    rows = [
        (
            role["role"],
            role["version"],
            f"{role['threshold']} of {len(role['keys'])}",
            role["expires"],
            " ".join(names.get(key, key[:12]) for key in role["keys"]),
        )
        for role in roles
    ]
    session.output.table(roles, ("role", "version", "threshold", "expires", "keys"), rows)


@app.command("delegate")
@connected
def delegate(
    session: Session,
    family: Annotated[str, typer.Argument(help="Model name that may be published from now on.")],
    passphrase_file: PassphraseOption = None,
) -> None:
    """Let the publisher's key release one more model; signed by the offline targets keys."""
    check_name(family, "model family")
    folder = need_folder(session.fleet)
    catalog = Catalog(session.api, folder.root(), folder.trust_cache)
    top = catalog.top()
    names = _targets_keys(folder, top)
    secret = passphrase.for_key(folder, names[0], passphrase_file)
    files = repository.delegate(
        top.root.signed,
        top.targets,
        family,
        folder.signer(PUBLISHER_KEY, secret),
        [folder.signer(name, secret) for name in names],
        datetime.now(UTC),
    )
    encoded = {name: base64.b64encode(data).decode() for name, data in files.items()}
    session.api.post("/v1/trust/metadata", {"files": encoded})
    session.output.result(
        {"family": family, "files": sorted(files), "signed_by": names},
        f"{family} may be published from now on; signed by {', '.join(names)}.",
    )


def _targets_keys(folder: FleetFolder, top: TopRoles) -> list[str]:
    """Return as many of the targets keys at hand as must sign.

    Raises:
        InvalidInputError: Too few are at hand.
    """
    role = top.root.signed.roles["targets"]
    ids = folder.key_ids()
    names = [name for name in folder.key_names("targets") if name in _named(ids, role.keyids)]
    if len(names) < role.threshold:
        raise InvalidInputError(
            f"{role.threshold} targets keys must sign and {len(names)} are in {folder.path}.",
            code="threshold",
            hint="Bring their .pem and .pub.json files into offline/keys.",
        )
    return names[: role.threshold]


def _named(ids: dict[str, str], keys: list[str]) -> set[str]:
    return {ids[key] for key in keys if key in ids}


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
