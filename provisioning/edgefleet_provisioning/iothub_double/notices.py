"""What a hub writes into its log, as Microsoft's "non-telemetry event schemas" spell it.

Azure sends the last three only where a route asks for them; `routes` says so here.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from typing import Any

from edgefleet_provisioning.iothub_double.clock import Clock, iso, millis
from edgefleet_provisioning.iothub_double.events import Event, EventLog

TELEMETRY = "Telemetry"
TWINS = "twinChangeEvents"
CONNECTIONS = "deviceConnectionStateEvents"
LIFECYCLE = "deviceLifecycleEvents"
_SCHEMAS = {
    TWINS: "twinChangeNotification",
    CONNECTIONS: "deviceConnectionStateNotification",
    LIFECYCLE: "deviceLifecycleNotification",
}
_FILETIME = 116444736000000000  # 1970 in units of 100 ns since 1601


class Notices:
    """Writes a hub's events.

    Args:
        hub: The hub's short name.
        log: Where they go.
        clock: The double's time.
    """

    def __init__(self, hub: str, log: EventLog, clock: Clock) -> None:
        self.routes = {TELEMETRY, TWINS, CONNECTIONS}
        self._hub, self._log, self._clock = hub, log, clock
        self._last = 0
        self._count = 0

    def telemetry(
        self, device: str, module: str, body: bytes, properties: Mapping[str, str],
        system: Mapping[str, str], auth: Mapping[str, Any], generation: str,
    ) -> Event | None:  # fmt: skip
        """Write a message of a device.

        Args:
            device: Who sent it.
            module: Its module, or "".
            body: As sent.
            properties: Its application properties.
            system: Its system properties, by their AMQP names.
            auth: How the device has shown who it is.
            generation: The identity's generation.
        """
        if TELEMETRY not in self.routes:
            return None
        method = json.dumps({**auth, "acceptingIpFilterRule": None}, separators=(",", ":"))
        annotations = {
            **self._who(device, module, TELEMETRY),
            "iothub-connection-auth-method": method,
            "iothub-connection-auth-generation-id": generation,
        }
        now = self._clock.now()
        return self._log.append(device, now, body, dict(properties), dict(system), annotations)

    def twin(self, device: str, module: str, operation: str, body: Mapping[str, Any]) -> None:
        """Write a change of a twin: `updateTwin` with what changed, `replaceTwin` with all."""
        self._write(TWINS, device, module, operation, body)

    def connection(self, device: str, module: str, *, connected: bool) -> None:
        """Write that a device has come or gone."""
        operation = "deviceConnected" if connected else "deviceDisconnected"
        ticks = int(self._clock.now() * 1e7) + _FILETIME
        self._last = max(self._last, ticks)  # strictly increasing, whatever the clock does
        self._count += 1
        number = f"{self._last:032X}{2:08X}{self._count:024X}"
        self._write(CONNECTIONS, device, module, operation, {"sequenceNumber": number})

    def lifecycle(self, device: str, module: str, operation: str, twin: Mapping[str, Any]) -> None:
        """Write that an identity was made or deleted."""
        self._write(LIFECYCLE, device, module, operation, twin)

    def _write(
        self, source: str, device: str, module: str, operation: str, body: Mapping[str, Any]
    ) -> None:
        if source not in self.routes:
            return
        now = self._clock.now()
        properties = {
            "hubName": self._hub,
            "deviceId": device,
            "operationTimestamp": iso(now),
            "iothub-message-schema": _SCHEMAS[source],
            "opType": operation,
        } | ({"moduleId": module} if module else {})
        system = {
            "content_type": "application/json",
            "content_encoding": "utf-8",
            "correlation_id": uuid.uuid4().hex[:12],
            "user_id": self._hub,
        }
        said = json.dumps(body, separators=(",", ":")).encode()
        annotations = self._who(device, module, source)
        self._log.append(device, now, said, properties, system, annotations)

    def _who(self, device: str, module: str, source: str) -> dict[str, Any]:
        named = {"iothub-connection-module-id": module} if module else {}
        return {
            "iothub-connection-device-id": device,
            **named,
            "iothub-enqueuedtime": millis(self._clock.now()),
            "iothub-message-source": source,
        }
