"""Names for tab completion, asked from the server; silent when it does not answer at once."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import typer

from edgefleet_provisioning.api import Api, segment
from edgefleet_provisioning.azure_iot import enrolment_groups
from edgefleet_provisioning.key_store import OFFLINE_ROLES, ONLINE_ROLES, KeyStore
from edgefleet_provisioning.settings import connection, find_folder
from edgefleet_shared.errors import EdgeFleetError

LIMIT = 100


def _complete(path: str, field: str) -> Callable[[typer.Context, str], list[str]]:
    def complete(context: typer.Context, incomplete: str) -> list[str]:
        return _names(context, path, field, incomplete)

    return complete


def versions(context: typer.Context, incomplete: str) -> list[str]:
    """Return the versions of the model that is already on the line."""
    model = str(context.params.get("model") or context.params.get("name") or "")
    return _names(context, f"/v1/models/{segment(model)}/versions", "version", incomplete)


models = _complete("/v1/models", "name")
devices = _complete("/v1/devices", "id")
groups = _complete("/v1/groups", "name")
hubs = _complete("/v1/iothubs", "name")
rollouts = _complete("/v1/rollouts", "id")
group_tickets = _complete("/v1/group-tickets", "id")


def keys(context: typer.Context, incomplete: str) -> list[str]:
    """Return the keys of the fleet folder, and the roles whose keys lie on the server."""
    try:
        fleet = context.params.get("fleet")
        folder = find_folder(Path(fleet) if fleet else None)
        names = [key.name for key in KeyStore(folder).all()] if folder else []
    except (EdgeFleetError, OSError):
        return []  # as below
    return [name for name in [*names, *ONLINE_ROLES] if name.startswith(incomplete)]


def roles(incomplete: str) -> list[str]:
    """Return the roles that have keys."""
    return [role for role in (*OFFLINE_ROLES, *ONLINE_ROLES) if role.startswith(incomplete)]


def dps_groups(context: typer.Context, incomplete: str) -> list[str]:
    """Return the enrolment groups of the DPS whose connection string is given."""
    given: dict[str, Any] = context.params
    file, tls_ca = given.get("connection_file"), given.get("tls_ca")
    if not file:
        return []  # a token of Entra ID takes seconds
    try:
        with enrolment_groups.connect(
            Path(file), given.get("dps") or "", Path(tls_ca) if tls_ca else None
        ) as groups:
            names = [str(one["enrollmentGroupId"]) for one in islice(groups.all(), LIMIT)]
    except (EdgeFleetError, KeyError, TypeError, ValueError):
        return []  # as below
    return [name for name in names if name.startswith(incomplete)]


def _names(context: typer.Context, path: str, field: str, incomplete: str) -> list[str]:
    given: dict[str, Any] = context.params
    fleet = given.get("fleet")
    try:
        found = connection(given.get("server"), given.get("token"), Path(fleet) if fleet else None)
        with Api(found) as api:
            names = [str(item[field]) for item in api.items(path, LIMIT)]
    except (EdgeFleetError, KeyError, TypeError):
        return []  # completion must never print an error into somebody's command line
    return [name for name in names if name.startswith(incomplete)]
