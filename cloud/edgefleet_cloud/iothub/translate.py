"""What a hub's event says, in our words. Pure, and nothing that a device sends makes it raise.

| iothub-message-source | becomes |
|---|---|
| Telemetry | `Message`: topic and payload, if its properties are ours |
| twinChangeEvents | `Change`: of reported properties of ours; desired ones are our own echo |
| deviceConnectionStateEvents | `Connection` |
| deviceLifecycleEvents | `Lifecycle` |

Who spoke is what the hub says (`iothub-connection-device-id`), never what the body or an
application property says.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from edgefleet_shared import twin
from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.identifiers import NAME
from edgefleet_shared.twin import Document

DEVICE, MODULE = "iothub-connection-device-id", "iothub-connection-module-id"
SOURCE = "iothub-message-source"
OPERATION = "opType"
BODY_MAX_BYTES = 256 * 1024
"""IoT Hub's own limit of a message."""
_ORDER = re.compile(r"[0-9A-Fa-f]{1,64}")
_CONNECTIONS = {"deviceConnected": True, "deviceDisconnected": False}
_LIFE = {"createDeviceIdentity": True, "deleteDeviceIdentity": False}


class Event(NamedTuple):
    """One event of a partition: the hub's annotations, the application's properties, the body."""

    system: Mapping[str, Any]
    properties: Mapping[str, Any]
    body: bytes


class Message(NamedTuple):
    """A device-to-cloud message as it would be on MQTT.

    Attributes:
        device: Who sent it.
        topic: Where it would lie.
        payload: As sent.
        seen: Of a `get`: the digest of the document that the device sees in its twin, '' if it
            says none. None: it is no `get`.
        module: Which of its module identities has spoken; '' = the device itself.
    """

    device: str
    topic: str
    payload: bytes
    seen: str | None
    module: str = ""


class Change(NamedTuple):
    """A change of reported properties of ours.

    Attributes:
        device: Whose.
        module: Of which module identity; '' = the device's own.
        report: The report in it; without payload if it was too large for a twin and comes as a
            message. None: it cannot be told from this event.
        partial: The report has changed, and this event does not hold all of it: ask for the twin.
    """

    device: str
    module: str
    report: Document | None
    partial: bool


class Connection(NamedTuple):
    """A device has come or gone; of two, the one with the greater `order` (as text) is newer."""

    device: str
    online: bool
    order: str


class Lifecycle(NamedTuple):
    """A device was put into the hub's registry, or taken out."""

    device: str
    created: bool


Word = Message | Change | Connection | Lifecycle


def plain(properties: Mapping[Any, Any] | None) -> dict[str, Any]:
    """Return properties as AMQP gives them (bytes for text, keys too) with text for text."""
    return {_text(key): _text(value) for key, value in (properties or {}).items()}


def read(event: Event, module: str = "") -> Word | None:
    """Return what an event says to us, or None.

    Args:
        event: With `plain` properties.
        module: Whose messages count for its device beside the device's own; '' = none's.
    """
    device, speaker = event.system.get(DEVICE), event.system.get(MODULE) or ""
    if not isinstance(device, str) or not NAME.fullmatch(device) or speaker not in {"", module}:
        return None
    source = event.system.get(SOURCE)
    if source == "Telemetry":
        return _message(device, speaker, event)
    if source == "twinChangeEvents":
        return _change(device, speaker, event.body)
    # The module of these two is in the application's properties, which the hub writes here.
    if event.properties.get("moduleId", "") not in {"", module}:
        return None
    if source == "deviceConnectionStateEvents":
        return _connection(device, event)
    if source == "deviceLifecycleEvents" and not event.properties.get("moduleId"):
        created = _LIFE.get(str(event.properties.get(OPERATION)))
        return None if created is None else Lifecycle(device, created)
    return None


def report_of(document: Mapping[str, Any]) -> Document | None:
    """Return the report in a whole twin, as the registry gives it; None if it holds none."""
    reported = _inner(document, "properties", "reported")
    try:
        return None if reported is None else twin.read_report(reported)
    except InvalidInputError:
        return None


def _message(device: str, module: str, event: Event) -> Message | None:
    topic = twin.topic_of(device, event.properties)
    if topic is None or len(event.body) > BODY_MAX_BYTES:
        return None
    if event.properties.get(twin.KIND) != "get":
        return Message(device, topic, event.body, None, module)
    seen = event.properties.get(twin.SEEN)
    return Message(device, topic, event.body, seen if isinstance(seen, str) else "", module)


def _change(device: str, module: str, body: bytes) -> Change | None:
    reported = _inner(_object(body), "properties", "reported")
    section = _inner(reported, twin.SECTION)
    if reported is None or section is None:
        return None
    try:
        report = twin.read_report(reported)
    except InvalidInputError:
        return Change(device, module, None, partial=True)
    return Change(device, module, report, partial=False)


def _connection(device: str, event: Event) -> Connection | None:
    online = _CONNECTIONS.get(str(event.properties.get(OPERATION)))
    order = _object(event.body).get("sequenceNumber")
    if online is None or not isinstance(order, str) or not _ORDER.fullmatch(order):
        return None
    return Connection(device, online, order.upper().zfill(64))


def _object(body: bytes) -> Mapping[str, Any]:
    if len(body) > BODY_MAX_BYTES:
        return {}
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _inner(document: Mapping[str, Any] | None, *keys: str) -> Mapping[str, Any] | None:
    found: object = document
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else None


def _text(value: Any) -> Any:
    return value.decode("utf-8", "replace") if isinstance(value, bytes | bytearray) else value
