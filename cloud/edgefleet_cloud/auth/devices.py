"""Devices at the API: a statement signed by the device's own key, instead of a token."""

from __future__ import annotations

from edgefleet_cloud.errors import UnauthenticatedError
from edgefleet_cloud.ports import Clock, DeviceKeys
from edgefleet_shared import access
from edgefleet_shared.errors import EdgeFleetError


class DeviceAccess:
    """Tells which device an `Authorization: DSSE ...` header comes from.

    Args:
        fleet: The fleet that the statement must be for.
        audience: The origin that it must be for: ours, as devices are told it.
        keys: Knows the devices' public keys.
        clock: Tells the time.
    """

    def __init__(self, fleet: str, audience: str, keys: DeviceKeys, clock: Clock) -> None:
        self._fleet, self._audience = fleet, audience
        self._keys = keys
        self._clock = clock

    def check(self, header: str) -> str:
        """Return the id of the device that signed the header.

        Raises:
            UnauthenticatedError: No enrolled device did, or not for now.
        """
        device = access.claimed_device(header)
        key = self._keys.key_of(device) if device else None
        if key is None:
            raise UnauthenticatedError(
                "No enrolled device of this id is known.", hint="Enrol the device again."
            )
        try:
            return access.check_header(header, self._fleet, self._audience, key, self._clock())
        except EdgeFleetError as error:
            raise UnauthenticatedError(
                f"The device's statement does not hold: {error.message}",
                hint="Check the device's clock and its enrolment.",
            ) from error
