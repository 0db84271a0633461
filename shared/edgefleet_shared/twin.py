"""How our documents lie in a device twin of Azure IoT Hub, and our topics in its messages.

A twin takes strings of 4 KB and 32 KB a section, and no arrays from older API versions. So a
document lies there as numbered parts beside its digest, and one that does not fit as the digest
alone: the device then asks the fleet manager over HTTPS. A patch always names every part, unused
ones as null, so that it is whole by itself and nothing of an older document is left.

    desired.edgefleet  = {"document": {"sha256", "size", "n", "0".."5"}, "renew": text | null}
    reported.edgefleet = {"report":   {"sha256", "size", "n", "0".."5"}, "counter", "slots"}

The signed envelope decides; `counter` and `slots` are for twin queries and for the eye.

| topic | in IoT Hub |
|---|---|
| dn/desired, dn/renew | desired properties |
| up/reported | reported properties; as a message if it does not fit |
| up/get, up/presence, up/ev/{stream} | device-to-cloud message with property `kind`, and `stream` |
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from edgefleet_shared import topics
from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.messages import Reported

SECTION = "edgefleet"
"""The one key of desired and of reported properties that is ours."""
PART_CHARS = 4000
MAX_PARTS = 6
INLINE_MAX = PART_CHARS * MAX_PARTS
"""Bytes of a document that still lie in the twin itself."""
KIND, STREAM, SEEN = "kind", "stream", "twin"
"""Properties of a message. `twin`, of a `get`: digest of what the device sees there."""
_SUMMARY_SLOTS = 64


class Document(NamedTuple):
    """A document in a twin: its SHA-256 in hex, its size in bytes, and itself if it lies there."""

    sha256: str
    size: int
    payload: bytes | None


def document_patch(payload: bytes, inline_max: int = INLINE_MAX) -> dict[str, Any]:
    """Return the patch of desired properties that tells a device its document.

    Args:
        payload: The document. One that is not ASCII cannot lie in the twin itself.
        inline_max: Bytes up to which it does; at most `INLINE_MAX`.
    """
    return {SECTION: {"document": _parts(payload, min(inline_max, INLINE_MAX))}}


def renew_patch(payload: bytes) -> dict[str, Any]:
    """Return the patch of desired properties that asks to renew the key; b"" asks no more.

    Raises:
        InvalidInputError: It is longer than a twin's string may be, or not ASCII.
    """
    if len(payload) > PART_CHARS or not payload.isascii():
        raise InvalidInputError("Such a word fits into no twin.", code="twin")
    return {SECTION: {"renew": payload.decode() or None}}


def report_patch(sealed: bytes, reported: Reported | None = None) -> dict[str, Any] | None:
    """Return the patch of reported properties for a sealed report; None if it does not fit.

    Args:
        sealed: The DSSE envelope.
        reported: What is in it, for the summary that twin queries can use.
    """
    parts = _parts(sealed, INLINE_MAX)
    if not parts["n"]:
        return None
    section: dict[str, Any] = {"report": parts}
    if reported is not None:
        section["counter"] = reported.counter
        section["slots"] = {
            name: {"state": slot.state, "version": slot.active_version}
            for name, slot in list(reported.slots.items())[:_SUMMARY_SLOTS]
        }
    return {SECTION: section}


def read_document(properties: Mapping[str, Any]) -> Document | None:
    """Return the document of desired properties or of a patch of them; None if it names none.

    Raises:
        InvalidInputError: What is there is no document of ours (code `twin`).
    """
    return _read(properties, "document")


def read_renew(properties: Mapping[str, Any]) -> bytes | None:
    """Return the word that asks to renew, b"" if it is taken back; None if nothing is said."""
    section = properties.get(SECTION)
    if not isinstance(section, Mapping) or "renew" not in section:
        return None
    word = section["renew"]
    return word.encode() if isinstance(word, str) else b""


def read_report(properties: Mapping[str, Any]) -> Document | None:
    """Return the sealed report of reported properties or of a patch of them; None if it names none.

    Raises:
        InvalidInputError: What is there is no report of ours (code `twin`).
    """
    return _read(properties, "report")


def message_properties(kind: str, stream: str = "", seen: str = "") -> dict[str, str]:
    """Return the properties of a device-to-cloud message."""
    named = ((KIND, kind), (STREAM, stream), (SEEN, seen))
    return {name: value for name, value in named if value}


def topic_of(device: str, properties: Mapping[str, Any]) -> str | None:
    """Return the topic that a device-to-cloud message has on MQTT; None if it is not of ours."""
    kind, stream = properties.get(KIND), properties.get(STREAM)
    if kind == "ev" and isinstance(stream, str):
        found = topics.stream(device, stream)
    else:
        spelled = {"get": topics.get, "presence": topics.presence, "reported": topics.reported}
        if not isinstance(kind, str) or kind not in spelled:
            return None
        found = spelled[kind](device)
    return found if topics.parse(found) else None


def digest(payload: bytes) -> str:
    """Return the SHA-256 of a document as a twin names it: hex."""
    return hashlib.sha256(payload).hexdigest()


def _parts(payload: bytes, inline_max: int) -> dict[str, Any]:
    inline = payload.isascii() and 0 < len(payload) <= inline_max
    text = payload.decode() if inline else ""
    cut = [text[at : at + PART_CHARS] for at in range(0, len(text), PART_CHARS)]
    numbered = {str(i): cut[i] if i < len(cut) else None for i in range(MAX_PARTS)}
    return {"sha256": digest(payload), "size": len(payload), "n": len(cut), **numbered}


def _read(properties: Mapping[str, Any], name: str) -> Document | None:
    section = properties.get(SECTION)
    found = section.get(name) if isinstance(section, Mapping) else None
    if found is None:
        return None
    if not isinstance(found, Mapping):
        raise _bad(name)
    sha256, size, n = found.get("sha256"), found.get("size"), found.get("n")
    if not (isinstance(sha256, str) and len(sha256) == 64 and _whole(size) and _whole(n)):
        raise _bad(name)
    assert isinstance(size, int)
    assert isinstance(n, int)
    if not n:
        return Document(sha256, size, None)
    parts = [found.get(str(i)) for i in range(min(n, MAX_PARTS))]
    texts = [part for part in parts if isinstance(part, str)]
    text = "".join(texts)
    if len(texts) != n or not text.isascii() or digest(text.encode()) != sha256:
        raise _bad(name)
    return Document(sha256, size, text.encode())


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _bad(name: str) -> InvalidInputError:
    return InvalidInputError(f"The twin's {name} is not whole.", code="twin")
