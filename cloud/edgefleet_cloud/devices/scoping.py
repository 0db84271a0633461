"""Which devices a caller's scope holds."""

from __future__ import annotations

from edgefleet_cloud.auth.caller import Scope, describe
from edgefleet_cloud.devices.tables import DeviceRow
from edgefleet_cloud.errors import ForbiddenError
from edgefleet_cloud.filters import matches


def covers(scope: Scope, row: DeviceRow) -> bool:
    """Return whether a device is within a scope."""
    if scope is None:
        return True
    return matches(scope, {"id": row.id, "hardware": row.hardware, "labels": row.labels})


def check_stays(scope: Scope, row: DeviceRow) -> None:
    """Check that a device, as it is to be, is within the scope of who describes it so.

    Raises:
        ForbiddenError: It is not (code `outside_scope`).
    """
    if not covers(scope, row):
        raise ForbiddenError(
            f"So described, {row.id} would be outside of your scope.",
            code="outside_scope",
            hint=f"Your scope is {describe(scope)}.",
        )
