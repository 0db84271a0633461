"""The hub's identity registry over REST: one by one, in lists, in bulk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from edgefleet_provisioning.iothub_double.refusals import HubError, bad
from edgefleet_provisioning.iothub_double.registry import Identity, match
from edgefleet_provisioning.iothub_double.state import Hub

BULK_MAX = 100
TOP_MAX = 1000
EDGE_MODULES = ("$edgeAgent", "$edgeHub")


def put(
    hub: Hub, device: str, module: str, said: Mapping[str, Any], if_match: str | None
) -> dict[str, Any]:
    """Make an identity, or change it where the request names an etag; return it.

    Raises:
        HubError: 400, 404, 409 or 412.
    """
    named = said.get("moduleId" if module else "deviceId", module or device)
    if named != (module or device):
        raise bad("The body names another identity than the address.")
    changes = _changes(said)
    if if_match is None:
        identity = hub.registry.create(device, module, **changes)
        identity.status_reason = said.get("statusReason")
        _edge_modules(hub, identity)
    else:
        changes.pop("managed_by", None)
        if "statusReason" in said:
            changes["status_reason"] = said["statusReason"]
        identity = hub.registry.update(device, module, if_match=if_match, **changes)
        _edge_modules(hub, identity)
    return identity.document()


def get(hub: Hub, device: str, module: str) -> dict[str, Any]:
    """Return an identity.

    Raises:
        HubError: 404.
    """
    return hub.registry.get(device, module).document()


def listed(hub: Hub, top: str | None) -> list[dict[str, Any]]:
    """Return devices, 1,000 at most.

    Raises:
        HubError: 400.
    """
    try:
        most = int(top or TOP_MAX)
    except ValueError as error:
        raise bad("top is no number.") from error
    if not 0 < most <= TOP_MAX:
        raise bad(f"top is 1 to {TOP_MAX}.")
    return [identity.document() for identity in hub.registry.all()[:most]]


def statistics(hub: Hub) -> dict[str, int]:
    """Return how many devices there are, enabled and disabled."""
    states = [identity.status for identity in hub.registry.all()]
    disabled = states.count("disabled")
    enabled = len(states) - disabled
    return {
        "totalDeviceCount": len(states),
        "enabledDeviceCount": enabled,
        "disabledDeviceCount": disabled,
    }


class Bulk(NamedTuple):
    """What a bulk operation came to: 200 or 400, and which identities failed."""

    status: int
    told: dict[str, Any]


def bulk(hub: Hub, said: Any) -> Bulk:
    """Carry out a list of operations on the registry; one that fails stops no other.

    Raises:
        HubError: 400, nothing was done.
    """
    if not isinstance(said, list) or not all(isinstance(one, Mapping) for one in said):
        raise bad("The body is no list of objects.")
    if not 0 < len(said) <= BULK_MAX:
        raise bad(f"A bulk operation takes 1 to {BULK_MAX} identities.")
    errors = []
    for one in said:
        try:
            _bulk_one(hub, one)
        except HubError as error:
            errors.append(
                {
                    "deviceId": one.get("id"),
                    "moduleId": one.get("moduleId"),
                    "errorCode": error.code,
                    "errorStatus": str(error),
                }
            )
    told = {"isSuccessful": not errors, "errors": errors, "warnings": []}
    return Bulk(400 if errors else 200, told)


def _bulk_one(hub: Hub, said: Mapping[str, Any]) -> None:
    device, module = str(said.get("id", "")), str(said.get("moduleId") or "")
    mode, etag = str(said.get("importMode", "createOrUpdate")), said.get("eTag")
    if mode in {"delete", "deleteIfMatchETag"}:
        hub.registry.delete(device, module, etag if mode == "deleteIfMatchETag" else None)
    elif mode in {"updateTwin", "updateTwinIfMatchETag"}:
        match_twin = said.get("twinETag") if mode == "updateTwinIfMatchETag" else None
        hub.patch_twin(device, module, _twin(said), match_twin)
    elif mode == "create" or (mode == "createOrUpdate" and not _exists(hub, device, module)):
        identity = hub.registry.create(device, module, **_changes(said))
        _edge_modules(hub, identity)
        if said.get("tags") or said.get("properties"):
            hub.patch_twin(device, module, _twin(said))
    elif mode in {"update", "updateIfMatchETag", "createOrUpdate"}:
        wanted = etag if mode == "updateIfMatchETag" else None
        match(wanted, hub.registry.get(device, module).etag)
        changes = _changes(said)
        changes.pop("managed_by", None)
        hub.registry.update(device, module, **changes)
    else:
        raise bad(f"There is no importMode {mode}.")


def _twin(said: Mapping[str, Any]) -> dict[str, Any]:
    return {name: said[name] for name in ("tags", "properties") if name in said}


def _exists(hub: Hub, device: str, module: str) -> bool:
    try:
        hub.registry.get(device, module)
    except HubError:
        return False
    return True


def _changes(said: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a document says of an identity, by the names that the registry has for it."""
    changes: dict[str, Any] = {}
    status = said.get("status")
    if status is not None:
        if status not in {"enabled", "disabled"}:
            raise bad("status is enabled or disabled.")
        changes["status"] = status
    authentication = said.get("authentication")
    if isinstance(authentication, Mapping):
        keys = authentication.get("symmetricKey") or {}
        prints = authentication.get("x509Thumbprint") or {}
        changes["auth"] = authentication.get("type") or ("selfSigned" if prints else "sas")
        for ours, theirs in (("primary", "primaryKey"), ("secondary", "secondaryKey")):
            if keys.get(theirs):
                changes[ours] = keys[theirs]
        changes["thumbprints"] = (
            prints.get("primaryThumbprint") or "",
            prints.get("secondaryThumbprint") or "",
        )
    capabilities = said.get("capabilities")
    if isinstance(capabilities, Mapping) and "iotEdge" in capabilities:
        changes["edge"] = bool(capabilities["iotEdge"])
    if said.get("managedBy"):
        changes["managed_by"] = str(said["managedBy"])
    return changes


def _edge_modules(hub: Hub, identity: Identity) -> None:
    """An IoT Edge device has its runtime's two modules from the beginning."""
    if not identity.edge or identity.module:
        return
    for module in EDGE_MODULES:
        if not _exists(hub, identity.device, module):
            hub.registry.create(identity.device, module, managed_by="iotEdge")
