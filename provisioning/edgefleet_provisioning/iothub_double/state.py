"""The state of all the hubs of one double: pure, thread-safe, no socket.

What costs tokens is paid where requests come in (the device dialect, REST): `hub.throttles.spend`.
The calls here are free, so that a test can set a scene.
"""

from __future__ import annotations

import base64
import copy
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from edgefleet_provisioning.iothub_double.clock import Clock, iso
from edgefleet_provisioning.iothub_double.events import Event, EventLog
from edgefleet_provisioning.iothub_double.limits import Throttles
from edgefleet_provisioning.iothub_double.notices import Notices
from edgefleet_provisioning.iothub_double.refusals import HubError, bad
from edgefleet_provisioning.iothub_double.registry import Identity, Registry, make_key, match
from edgefleet_provisioning.iothub_double.sessions import Answer, Message, Sessions
from edgefleet_provisioning.iothub_double.twins import PROPERTIES_BYTES, TAGS_BYTES, Section

METHOD_BYTES = 128 * 1024
D2C_BYTES = 256 * 1024
POLICIES = ("iothubowner", "service", "registryRead", "registryReadWrite", "device")


@dataclass
class _Twin:
    """The twin of one identity; `version` counts all changes, `tag` those of tags and desired."""

    desired: Section
    reported: Section
    tags: Section
    version: int = 2
    tag: int = 1

    @property
    def etag(self) -> str:
        return base64.b64encode(self.tag.to_bytes(8, "big")).decode()


class Hub:
    """One IoT hub.

    Args:
        host: Its full host name; the part before the first dot is its name.
        clock: The double's time.
        tier: F1, S1, S2 or S3.
        units: How many of it.
        partitions: Of its event log.
        name: Its short name, if it is not in the host name.
    """

    def __init__(
        self, host: str, clock: Clock, tier: str = "S1", units: int = 1, partitions: int = 4,
        name: str = "",
    ) -> None:  # fmt: skip
        self.host = host
        self.name = name or host.split(".", maxsplit=1)[0]
        self.clock = clock
        self.lock = threading.RLock()
        self.policies = {policy: make_key() for policy in POLICIES}
        self.throttles = Throttles(tier, units, clock)
        self.log = EventLog(partitions, self.lock)
        self.notices = Notices(self.name, self.log, clock)
        self.sessions = Sessions(self.lock, self._connection, self._queued)
        self.registry = Registry(clock, self.lock, self._identity)
        self._twins: dict[tuple[str, str], _Twin] = {}

    def connection_string(self, policy: str = "iothubowner") -> str:
        """Return what a service connects with."""
        key = self.policies[policy]
        return f"HostName={self.host};SharedAccessKeyName={policy};SharedAccessKey={key}"

    def device_string(self, device: str, module: str = "") -> str:
        """Return what a device or a module with a symmetric key connects with.

        Raises:
            HubError: 404, or 400 if it has no key.
        """
        identity = self.registry.get(device, module)
        if identity.auth != "sas":
            raise bad(f"{device} has no symmetric key.")
        named = f";ModuleId={module}" if module else ""
        return f"HostName={self.host};DeviceId={device}{named};SharedAccessKey={identity.primary}"

    def twin(self, device: str, module: str = "") -> dict[str, Any]:
        """Return a twin as the service reads it.

        Raises:
            HubError: 404.
        """
        with self.lock:
            identity, twin = self._find(device, module)
            return {**_about(identity, twin), **_content(twin)}

    def patch_twin(
        self, device: str, module: str, patch: Mapping[str, Any], if_match: str | None = None,
        *, replace: bool = False,
    ) -> dict[str, Any]:  # fmt: skip
        """Change desired properties and tags as the service does, and tell the device.

        Args:
            device: Its id.
            module: Its module, or "".
            patch: `{"tags": .., "properties": {"desired": ..}}`, either or both.
            if_match: The twin's etag; None and "*" take any.
            replace: Put each named section in the place of the old one.

        Returns:
            The twin.

        Raises:
            HubError: 400, 404 or 412; nothing has changed.
        """
        desired = _section(_section(patch, "properties"), "desired")
        tags = _section(patch, "tags")
        with self.lock:
            identity, twin = self._find(device, module)
            match(if_match, twin.etag)
            self._change_service_side(identity, twin, desired, tags, replace)
            return {**_about(identity, twin), **_content(twin)}

    def device_twin(self, device: str, module: str = "") -> dict[str, Any]:
        """Return desired and reported properties as the device reads them.

        Raises:
            HubError: 404.
        """
        with self.lock:
            _, twin = self._find(device, module)
            return {
                "desired": twin.desired.with_version(), "reported": twin.reported.with_version()
            }  # fmt: skip

    def report(self, device: str, module: str, patch: object) -> int:
        """Merge a device's patch into its reported properties; return their version.

        Raises:
            HubError: 400 or 404; nothing has changed.
        """
        if not isinstance(patch, Mapping):
            raise bad("A patch is a JSON object.")
        with self.lock:
            identity, twin = self._find(device, module)
            twin.reported.patch(patch, self.clock.now())
            twin.version += 1
            identity.last_activity = iso(self.clock.now())
            change = {"reported": twin.reported.change(patch)}
            body = {"version": twin.version, "properties": change}
            self.notices.twin(device, module, "updateTwin", body)
            return twin.reported.version

    def method(self, device: str, module: str, name: str, payload: bytes) -> Future[Answer]:
        """Run a method on a device; see `Sessions.call`.

        Args:
            device: Its id.
            module: Its module, or "".
            name: The method's name.
            payload: JSON.

        Raises:
            HubError: 404 if there is no such device or it is not connected, 413 if too large.
        """
        if len(payload) > METHOD_BYTES:
            raise HubError(413, "RequestEntityTooLarge", f"More than {METHOD_BYTES} bytes.")
        self.registry.get(device, module)
        return self.sessions.call(device, module, name, payload)

    def send_c2d(
        self, device: str, body: bytes, properties: Mapping[str, str] | None = None
    ) -> Message:
        """Queue a cloud-to-device message.

        Raises:
            HubError: 404, 413, or 403 if 50 wait already.
        """
        self.registry.get(device)
        return self.sessions.send(device, body, properties or {})

    def send_event(
        self, device: str, module: str, body: bytes,
        properties: Mapping[str, str] | None = None, system: Mapping[str, str] | None = None,
        auth: Mapping[str, Any] | None = None,
    ) -> Event | None:  # fmt: skip
        """Take a device-to-cloud message, as if it had just come; None if no route takes it.

        Raises:
            HubError: 404 or 413.
        """
        if len(body) > D2C_BYTES:
            raise HubError(413, "MessageTooLarge", f"More than {D2C_BYTES} bytes.")
        with self.lock:
            identity = self.registry.get(device, module)
            identity.last_activity = iso(self.clock.now())
            said = auth or {"scope": "device", "type": "sas", "issuer": "iothub"}
            return self.notices.telemetry(
                device, module, body, properties or {}, system or {}, said, identity.generation
            )

    def _change_service_side(
        self, identity: Identity, twin: _Twin, desired: Mapping[str, Any] | None,
        tags: Mapping[str, Any] | None, replace: bool,
    ) -> None:  # fmt: skip
        now = self.clock.now()
        change: dict[str, Any] = {}
        before = copy.deepcopy(twin.tags)
        if tags is not None:
            _apply(twin.tags, tags, now, replace)
            change["tags"] = dict(tags)
        if desired is not None:
            try:
                _apply(twin.desired, desired, now, replace)
            except HubError:
                twin.tags = before
                raise
            change["properties"] = {"desired": twin.desired.change(desired)}
        if not change:
            return
        twin.version += 1
        twin.tag += 1
        where = identity.device, identity.module
        if replace:
            whole = {"deviceId": identity.device, "etag": twin.etag, **_content(twin)}
            self.notices.twin(*where, "replaceTwin", {**whole, "version": twin.version})
        else:
            self.notices.twin(*where, "updateTwin", {"version": twin.version, **change})
        if desired is not None:
            said = twin.desired.values if replace else desired
            self.sessions.desired(*where, {**said, "$version": twin.desired.version})

    def _find(self, device: str, module: str) -> tuple[Identity, _Twin]:
        return self.registry.get(device, module), self._twins[device, module]

    def _identity(self, identity: Identity, what: str) -> None:
        where = identity.device, identity.module
        if what == "create":
            now = self.clock.now()
            properties = [Section(PROPERTIES_BYTES, now) for _ in range(2)]
            twin = _Twin(properties[0], properties[1], Section(TAGS_BYTES, now))
            self._twins[where] = twin
            body = {**_content(twin), "deviceId": identity.device, "version": twin.version}
            self.notices.lifecycle(*where, "createDeviceIdentity", body)
        elif what == "delete":
            self.sessions.throw_out(*where, "the identity was deleted")
            body = {**_content(self._twins.pop(where)), "deviceId": identity.device}
            self.notices.lifecycle(*where, "deleteDeviceIdentity", body)
        elif identity.status == "disabled":
            for module in ["", *(found.module for found in self.registry.modules(where[0]))]:
                self.sessions.throw_out(identity.device, module, "the device was disabled")

    def _connection(self, device: str, module: str, connected: bool) -> None:
        try:
            identity = self.registry.get(device, module)
        except HubError:
            pass  # it was deleted, and this is its connection's end
        else:
            identity.connected = connected
            identity.connection_changed = iso(self.clock.now())
        self.notices.connection(device, module, connected=connected)

    def _queued(self, device: str, count: int) -> None:
        with suppress(HubError):  # a message may outlive its device for a moment
            self.registry.get(device).queued = count


class Azure:
    """All hubs of one double, by host name.

    Args:
        clock: The double's time; a new one by default.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock = clock or Clock()
        self.hubs: dict[str, Hub] = {}
        self.away: set[str] = set()
        """Hosts of hubs that are off the net."""

    def add(
        self, host: str, tier: str = "S1", units: int = 1, partitions: int = 4, name: str = ""
    ) -> Hub:
        """Make a hub."""
        hub = Hub(host.lower(), self.clock, tier, units, partitions, name)
        self.hubs[hub.host] = hub
        return hub

    def hub(self, host: str) -> Hub:
        """Return a hub.

        Raises:
            HubError: 404, there is none of this name.
        """
        found = self.hubs.get(host.lower())
        if found is None:
            raise HubError(404, "IotHubNotFound", f"There is no hub {host}.")
        return found


def _apply(section: Section, patch: Mapping[str, Any], now: float, replace: bool) -> None:
    if replace:
        section.replace(patch, now)
    else:
        section.patch(patch, now)


def _section(patch: Mapping[str, Any] | None, name: str) -> dict[str, Any] | None:
    """Return a section of a service's patch without what only the hub writes."""
    found = (patch or {}).get(name)
    if found is None:
        return None
    if not isinstance(found, Mapping):
        raise bad(f"{name} is a JSON object.")
    return {key: value for key, value in found.items() if key not in {"$metadata", "$version"}}


def _content(twin: _Twin) -> dict[str, Any]:
    tags = copy.deepcopy(twin.tags.values)
    desired, reported = twin.desired.with_metadata(), twin.reported.with_metadata()
    return {"tags": tags, "properties": {"desired": desired, "reported": reported}}


def _about(identity: Identity, twin: _Twin) -> dict[str, Any]:
    first, second = (text or None for text in identity.thumbprints)
    about: dict[str, Any] = {
        "deviceId": identity.device,
        "etag": twin.etag,
        "deviceEtag": identity.etag,
        "status": identity.status,
        "statusReason": identity.status_reason,
        "statusUpdateTime": identity.status_changed,
        "connectionState": "Connected" if identity.connected else "Disconnected",
        "lastActivityTime": identity.last_activity,
        "cloudToDeviceMessageCount": identity.queued,
        "authenticationType": identity.auth,
        "x509Thumbprint": {
            "primaryThumbprint": first or None,
            "secondaryThumbprint": second or None,
        },
        "modelId": "",
        "version": twin.version,
    }
    if identity.module:
        return {**about, "moduleId": identity.module}
    return {**about, "capabilities": {"iotEdge": identity.edge}}
