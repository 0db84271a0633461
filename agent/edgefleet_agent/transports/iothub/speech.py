"""What is said to a hub and what its words mean. Pure: the SDK is elsewhere."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from edgefleet_shared import strict_json, twin
from edgefleet_shared.errors import EdgeFleetError
from edgefleet_shared.messages import REPORT_MAX_BYTES, Reported

ENVELOPE_MAX_BYTES = 2 * REPORT_MAX_BYTES


class Who(NamedTuple):
    """The device, this start of its agent ('' = it only listens), and the agent's version."""

    device: str
    boot: str
    version: str


def report_patch(sealed: bytes, shown: Iterable[str]) -> dict[str, Any] | None:
    """Return the patch of reported properties; None if the report goes as a message.

    Args:
        sealed: The envelope.
        shown: Names of the slots that the twin shows; those that are no more are removed.
    """
    reported = read_reported(sealed)
    patch = twin.report_patch(sealed, reported)
    if patch is not None and reported is not None:
        slots = patch[twin.SECTION]["slots"]
        slots.update(dict.fromkeys(set(shown) - set(slots)))
    return patch


def shown_slots(reported: Mapping[str, Any]) -> set[str]:
    """Return the names of the slots in the summary of reported properties."""
    section = reported.get(twin.SECTION)
    slots = section.get("slots") if isinstance(section, Mapping) else None
    return set(slots) if isinstance(slots, Mapping) else set()


def read_reported(sealed: bytes) -> Reported | None:
    """Return what is in our own envelope, not verified; None if it cannot be read."""
    try:
        payload = base64.b64decode(json.loads(sealed)["payload"], validate=True)
        return strict_json.decode(
            payload, Reported, max_bytes=ENVELOPE_MAX_BYTES, what="report of our own"
        )
    except (ValueError, KeyError, TypeError, binascii.Error, EdgeFleetError):
        return None


class Answer(NamedTuple):
    """The answer to a direct method."""

    status: int
    payload: dict[str, Any]


def answer(
    name: str,
    payload: object,
    who: Who,
    *,
    report: Callable[[], bool],
    renew: Callable[[bytes], None],
) -> Answer:
    """Do what a direct method asks.

    Args:
        name: `ping`, `report` or `renew`.
        payload: Its JSON.
        who: For `ping`.
        report: Sends the newest report again; returns False if there is none yet.
        renew: Takes the word that asks to renew the key, as on dn/renew.
    """
    if name == "ping":
        return Answer(200, {"device": who.device, "boot": who.boot, "agent": who.version})
    if name == "report":
        if report():
            return Answer(200, {})
        return Answer(404, {"code": "nothing_reported", "message": "Nothing is reported yet."})
    if name == "renew":
        if isinstance(payload, dict):
            renew(json.dumps(payload).encode())
            return Answer(200, {})
        return Answer(400, {"code": "malformed", "message": "The payload must be a JSON object."})
    return Answer(404, {"code": "unknown_method", "message": "There is no such method."})
