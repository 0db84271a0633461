"""What happens to a revoked device's connection where the broker cannot be told to end it."""

from __future__ import annotations

import logging

_log = logging.getLogger(__name__)


class UntoldBroker:
    """A `ports.Disconnector` that says what it cannot do: the session lives until it ends itself.

    The fleet manager refuses what such a device says from the revocation on; it only stays able to
    listen to its own topics.
    """

    def disconnect(self, device_id: str) -> None:
        """Warn that the connection stands."""
        _log.warning(
            "%s is revoked, but this broker was not told: its connection stays until it ends. "
            "Its messages are refused already.",
            device_id,
        )
