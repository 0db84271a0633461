"""Who may do what: the one table of roles and permissions. Pure.

A permission is `resource.verb`. Every route of the API declares the one that it needs; a role is a
set of permissions; a binding gives somebody a role, within a scope.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class Role(StrEnum):
    """What somebody is trusted with."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    PUBLISHER = "publisher"
    PROVISIONER = "provisioner"
    ADMIN = "admin"


_READ = frozenset({
    "blobs.read", "devices.read", "events.read", "groups.read", "models.read", "reports.read",
    "rollouts.read", "trust.read",
})  # fmt: skip
_ROLL_OUT = frozenset({"devices.write", "groups.write", "rollouts.write"})
_PUBLISH = frozenset({"models.write", "uploads.write"})
_PROVISION = frozenset({"devices.provision", "tickets.write", "trust.write"})
_GOVERN = frozenset({"audit.read", "tokens.read", "tokens.write"})

PERMISSIONS: Mapping[Role, frozenset[str]] = {
    Role.VIEWER: _READ,
    Role.OPERATOR: _READ | _ROLL_OUT,
    Role.PUBLISHER: frozenset({"blobs.read", "models.read", "trust.read"}) | _PUBLISH,
    Role.PROVISIONER: frozenset({"devices.read", "events.read", "groups.read", "trust.read"})
    | _PROVISION,
    Role.ADMIN: _READ | _ROLL_OUT | _PUBLISH | _PROVISION | _GOVERN,
}
"""The table. Admin may do everything."""

EVERY = PERMISSIONS[Role.ADMIN]

FLEET_WIDE = _PUBLISH | _GOVERN | {"trust.write"}
"""What concerns every device, so that a scope over some of them cannot grant it."""


def grants(role: Role, permission: str, *, scoped: bool) -> bool:
    """Return whether a role holds a permission.

    Args:
        role: The role.
        permission: For example `rollouts.write`.
        scoped: Whether the role was given within a scope. A publisher's is over models.
    """
    if permission not in PERMISSIONS[role]:
        return False
    return not (scoped and permission in FLEET_WIDE and role is not Role.PUBLISHER)
