"""The `[[iothub]]` tables of cloud.toml: Azure IoT Hubs that devices may be on instead of MQTT."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.identifiers import check_name
from edgefleet_shared.twin import INLINE_MAX

MQTT = "mqtt"
"""The name of the way that is no hub; so no hub may have it."""
FILES = ("connection_file", "events_file", "ca")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?(:[0-9]{1,5})?")
_SCOPE = re.compile(r"([A-Za-z0-9.-]+/)?[A-Za-z0-9]+")


class IotHub(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One hub. Secrets are in files, in the form in which Azure shows them: connection strings."""

    name: str  # what it is called in the API; the way of its devices
    host: str  # as fleet.azure-devices.net; devices are told it
    connection_file: str = ""  # service connection string (SAS); '' = Entra ID
    events_file: str = ""  # connection string of the Event Hubs-compatible endpoint
    consumer_group: str = "$Default"
    tier: Literal["F1", "S1", "S2", "S3"] = "S1"  # basic tiers have no twins
    units: int = 1
    inline_max: int = INLINE_MAX  # bytes of a document that lies in the twin; larger: over HTTPS
    ca: str = ""  # PEM file behind the certificates of its service and events; '' = the system's
    dps_scope: str = ""  # devices are told dps://SCOPE or dps://HOST/SCOPE in place of the host
    gateway: str = ""  # HOST[:PORT] where its service API is reached in place of the host
    module: str = ""  # which module speaks for its device beside the device itself (IoT Edge)
    sync_s: int = 900  # seconds between two comparisons of its registry with our devices
    default: bool = False  # new devices are told this hub, not the MQTT broker

    @property
    def address(self) -> str:
        """Return the transport URL that devices are told."""
        return f"dps://{self.dps_scope}" if self.dps_scope else f"iothub://{self.host}"

    @property
    def service_url(self) -> str:
        """Return the base URL of its service API."""
        return f"https://{self.gateway or self.host}"


def check(hubs: tuple[IotHub, ...]) -> None:
    """Check what the types do not say.

    Raises:
        ValueError: A hub cannot be; the message names its key.
    """
    for hub in hubs:
        _check(hub)
    names = [hub.name for hub in hubs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"two [[iothub]] have the name {twice!r}")
    hosts = [hub.host.lower() for hub in hubs]
    if shared := next((host for host in hosts if hosts.count(host) > 1), None):
        raise ValueError(f"two [[iothub]] have the host {shared!r}")
    if sum(hub.default for hub in hubs) > 1:
        raise ValueError("more than one [[iothub]] has default = true")


def _check(hub: IotHub) -> None:
    where = f"iothub {hub.name!r}"
    try:
        check_name(hub.name, "iothub.name")
    except InvalidInputError as error:
        raise ValueError(str(error).rstrip(".")) from error
    if hub.name == MQTT:
        raise ValueError(f"{where}: {MQTT!r} names the broker; call the hub something else")
    if not _HOST.fullmatch(hub.host) or ":" in hub.host:
        raise ValueError(f"{where}: host = {hub.host!r} is not as fleet.azure-devices.net")
    if hub.gateway and not _HOST.fullmatch(hub.gateway):
        raise ValueError(f"{where}: gateway = {hub.gateway!r} is not HOST or HOST:PORT")
    if hub.dps_scope and not _SCOPE.fullmatch(hub.dps_scope):
        raise ValueError(f"{where}: dps_scope = {hub.dps_scope!r} is not SCOPE or HOST/SCOPE")
    if not hub.events_file:
        raise ValueError(
            f"{where}: events_file is missing: without its event stream nothing that devices say "
            "arrives. The portal shows it under Built-in endpoints"
        )
    if not 1 <= hub.units <= 200:
        raise ValueError(f"{where}: units = {hub.units} is not 1 to 200")
    if hub.sync_s < 10:
        raise ValueError(f"{where}: sync_s = {hub.sync_s} is less than 10")
    if not 0 <= hub.inline_max <= INLINE_MAX:
        raise ValueError(f"{where}: inline_max = {hub.inline_max} is not 0 to {INLINE_MAX}")


def absolute(hubs: tuple[IotHub, ...], folder: Path) -> tuple[IotHub, ...]:
    """Return the hubs with their files' paths taken from a folder."""
    return tuple(
        msgspec.structs.replace(
            hub, **{key: str(folder / value) for key in FILES if (value := getattr(hub, key))}
        )
        for hub in hubs
    )


def override(tables: object, environ: Mapping[str, str]) -> None:
    """Let `EDGEFLEET_CLOUD_IOTHUB_<NAME>_<KEY>` win over a key of the hub of that name."""
    for table in tables if isinstance(tables, list) else []:
        if not isinstance(table, dict):
            continue  # the types say it better
        fields: dict[str, Any] = table
        spelled = str(fields.get("name", "")).upper().replace("-", "_").replace(".", "_")
        for key in IotHub.__struct_fields__:
            if key != "name" and (
                value := environ.get(f"EDGEFLEET_CLOUD_IOTHUB_{spelled}_{key.upper()}")
            ):
                fields[key] = value
