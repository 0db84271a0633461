"""Configurations: IoT Edge deployments, layered ones too, and of plain devices' twins.

Azure looks at its conditions every few minutes and IoT Edge's hub makes the modules; here both
happen with the request that changes something.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgefleet_provisioning.iothub_double.clock import iso
from edgefleet_provisioning.iothub_double.refusals import HubError, bad
from edgefleet_provisioning.iothub_double.registry import match
from edgefleet_provisioning.iothub_double.rest_query import Condition, Query
from edgefleet_provisioning.iothub_double.state import Hub

_AGENT, _DESIRED = "$edgeAgent", "properties.desired"
_EVERY_DEVICE = "SELECT * FROM devices WHERE "
Content = Mapping[str, Any]


@dataclass
class Configuration:
    """One configuration, as it was put."""

    name: str
    said: dict[str, Any]
    condition: Condition
    created: str
    updated: str
    version: int = 1

    @property
    def priority(self) -> int:
        """Of two that fit a device, the higher one is applied."""
        return int(self.said.get("priority", 0))

    @property
    def modules(self) -> dict[str, Content]:
        """What it says of the modules of IoT Edge devices."""
        return dict((self.said.get("content") or {}).get("modulesContent") or {})

    @property
    def device(self) -> Content:
        """What it says of devices that are no IoT Edge devices."""
        return dict((self.said.get("content") or {}).get("deviceContent") or {})

    @property
    def layered(self) -> bool:
        """Whether it only adds to another deployment."""
        return _DESIRED not in self.modules.get(_AGENT, {})

    @property
    def etag(self) -> str:
        """Its etag, without quotes."""
        return f"AA{self.version:04d}=="


class Configurations:
    """The configurations of one hub, and what they have done.

    Args:
        hub: The hub.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._found: dict[str, Configuration] = {}

    def all(self) -> list[dict[str, Any]]:
        """Return every configuration."""
        return [self._document(one) for one in self._found.values()]

    def get(self, name: str) -> dict[str, Any]:
        """Return a configuration, with how many devices it fits.

        Raises:
            HubError: 404.
        """
        return self._document(self._one(name))

    def put(self, name: str, said: Mapping[str, Any], if_match: str | None) -> dict[str, Any]:
        """Make a configuration, or change it where an etag is named; then apply all.

        Raises:
            HubError: 400, 404, 409 or 412.
        """
        old = self._found.get(name)
        if if_match is None and old is not None:
            raise HubError(409, "ConfigurationAlreadyExists", f"Configuration {name} exists.")
        if if_match is not None:
            match(if_match, self._one(name).etag)
        if said.get("id", name) != name:
            raise bad("The body names another configuration than the address.")
        now = iso(self._hub.clock.now())
        condition = _condition(str(said.get("targetCondition") or ""))
        self._found[name] = Configuration(
            name,
            copy.deepcopy(dict(said)),
            condition,
            old.created if old else now,
            now,
            old.version + 1 if old else 1,
        )
        self.evaluate()
        return self.get(name)

    def delete(self, name: str, if_match: str | None) -> None:
        """Forget a configuration; then apply what is left.

        Raises:
            HubError: 404 or 412.
        """
        match(if_match, self._one(name).etag)
        del self._found[name]
        self.evaluate()

    def evaluate(self) -> None:
        """Give every device what the configurations that fit it say."""
        if not self._found:
            return
        for identity in self._hub.registry.all():
            twin = self._hub.twin(identity.device)
            fitting = sorted(
                (one for one in self._found.values() if one.condition(twin)),
                key=lambda one: (one.priority, one.created),
            )
            if identity.edge:
                _set_modules(self._hub, identity.device, merged(fitting))
            else:
                for one in fitting:
                    _set_device(self._hub, identity.device, one.device)

    def _one(self, name: str) -> Configuration:
        found = self._found.get(name)
        if found is None:
            raise HubError(404, "ConfigurationNotFound", f"Configuration {name} not found.")
        return found

    def _document(self, one: Configuration) -> dict[str, Any]:
        twins = [self._hub.twin(identity.device) for identity in self._hub.registry.all()]
        targeted = sum(one.condition(twin) for twin in twins)
        return {
            "schemaVersion": "1.0",
            "labels": {},
            "metrics": {"queries": {}, "results": {}},
            **one.said,
            "id": one.name,
            "priority": one.priority,
            "createdTimeUtc": one.created,
            "lastUpdatedTimeUtc": one.updated,
            "systemMetrics": {"queries": {}, "results": {"targetedCount": targeted}},
            "etag": one.etag,
        }


def merged(fitting: list[Configuration]) -> dict[str, dict[str, Any]]:
    """Return the desired properties of each module, from configurations by rising priority.

    The deployment with the highest priority is the base; layered ones above it add to it.
    """
    bases = [at for at, one in enumerate(fitting) if one.modules and not one.layered]
    if not bases:
        return {}
    desired: dict[str, dict[str, Any]] = {}
    for one in fitting[bases[-1] :]:
        for module, content in one.modules.items():
            into = desired.setdefault(module, {})
            for path, value in content.items():
                _lay(into, path, value)
    return desired


def apply(hub: Hub, device: str, said: Mapping[str, Any]) -> None:
    """Give one IoT Edge device its modules ("set modules").

    Raises:
        HubError: 400 or 404.
    """
    content = said.get("modulesContent")
    if not isinstance(content, Mapping) or not content:
        raise bad("modulesContent is missing.")
    if not hub.registry.get(device).edge:
        raise bad(f"{device} is no IoT Edge device.")
    desired: dict[str, dict[str, Any]] = {}
    for module, parts in content.items():
        for path, value in parts.items():
            _lay(desired.setdefault(module, {}), path, value)
    _set_modules(hub, device, desired)


def _set_modules(hub: Hub, device: str, desired: Mapping[str, dict[str, Any]]) -> None:
    agent = desired.get(_AGENT, {})
    listed = set(agent.get("modules") or {}) | set(desired)
    present = {one.module for one in hub.registry.modules(device)}
    for module in sorted(listed - present):
        hub.registry.create(device, module, managed_by="iotEdge")
    for module, wanted in desired.items():
        if _desired(hub, device, module) != wanted:
            patch = {"properties": {"desired": wanted}}
            hub.patch_twin(device, module, patch, replace=True)


def _set_device(hub: Hub, device: str, content: Content) -> None:
    wanted = _desired(hub, device, "")
    for path, value in content.items():
        _lay(wanted, path, value)
    if wanted != _desired(hub, device, ""):
        hub.patch_twin(device, "", {"properties": {"desired": wanted}}, replace=True)


def _desired(hub: Hub, device: str, module: str) -> dict[str, Any]:
    found = hub.device_twin(device, module)["desired"]
    return {name: value for name, value in found.items() if name != "$version"}


def _lay(into: dict[str, Any], path: str, value: Any) -> None:
    """Put a value where a path such as `properties.desired.modules.edgefleet` says."""
    if path != _DESIRED and not path.startswith(_DESIRED + "."):
        raise bad(f"{path} is no path of desired properties.")
    *steps, last = ["", *path.removeprefix(_DESIRED).split(".")[1:]]
    if not last:
        into.clear()
        into.update(copy.deepcopy(value))
        return
    for step in steps[1:]:
        into = into.setdefault(step, {})
    into[last] = copy.deepcopy(value)


def _condition(text: str) -> Condition:
    if not text.strip():
        return lambda _: False
    if text.strip() == "*":
        return lambda _: True
    return Query(_EVERY_DEVICE + text).condition
