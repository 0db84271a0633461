"""From bytes that anyone may have sent to a message that a device's own key signed. Pure."""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec
from securesystemslib.signer import Key

from edgefleet_shared import dsse, histogram, strict_json
from edgefleet_shared.errors import InvalidInputError, TrustError
from edgefleet_shared.identifiers import check_digest, check_name
from edgefleet_shared.messages import (
    BATCH_TYPE,
    REPORT_MAX_BYTES,
    REPORTED_TYPE,
    Batch,
    DeviceEvent,
    Presence,
    Reported,
    Stream,
    SwapReceipt,
    TelemetryWindow,
)
from edgefleet_shared.states import DeploymentState
from edgefleet_shared.steps import Step
from edgefleet_shared.times import format_time, parse_time

MAX_ITEMS = 1000
MAX_SLOTS = 64
MAX_TEXT = 4000
MAX_COUNTER = 2**52
"""Of an assignment; signing goes on above what a device says, and no number may reach 2^53."""

Item = DeviceEvent | SwapReceipt | TelemetryWindow
ITEM_KINDS: dict[Stream, type[Item]] = {
    "events": DeviceEvent,
    "receipts": SwapReceipt,
    "telemetry": TelemetryWindow,
}
_CODE = re.compile(r"[a-z][a-z0-9_.]{0,79}")
_STATES = frozenset({"", *DeploymentState})
_M = TypeVar("_M", Reported, Batch)


def open_presence(data: bytes) -> Presence:
    """Return a presence message; it is not signed and proves nothing.

    Raises:
        InvalidInputError: code `malformed`.
    """
    presence = strict_json.decode(data, Presence, max_bytes=REPORT_MAX_BYTES, what="presence")
    _short(presence)
    return presence


def open_reported(data: bytes, key: Key, device: str) -> Reported:
    """Return the state that a device signed.

    Raises:
        InvalidInputError: Not such a message (code `malformed`).
        TrustError: Not signed by `key` (`signature`), or about another device (`wrong_device`).
    """
    reported = _open(data, REPORTED_TYPE, Reported, key, device)
    counts = 0 <= reported.counter <= MAX_COUNTER and reported.seq >= 1
    if not counts or len(reported.slots) > MAX_SLOTS:
        raise _malformed("a number is out of range")
    parse_time(reported.ts)
    for name, slot in reported.slots.items():
        check_name(name, "slot")
        _short(slot)
        if slot.state not in _STATES:
            raise _malformed(f"{slot.state!r} is not a state")
    return reported


def open_batch(data: bytes, key: Key, device: str, stream: str) -> Batch:
    """Return a batch that a device signed; its items are not looked at.

    Raises:
        InvalidInputError: Not such a message, or of another stream (code `malformed`).
        TrustError: Not signed by `key` (`signature`), or of another device (`wrong_device`).
    """
    batch = _open(data, BATCH_TYPE, Batch, key, device)
    if batch.stream != stream:
        raise _malformed(f"it came on stream {stream[:80]!r} and is of {batch.stream!r}")
    if len(batch.seqs) != len(batch.items) or len(batch.seqs) > MAX_ITEMS:
        raise _malformed(f"it has {len(batch.seqs)} numbers for {len(batch.items)} items")
    if batch.dropped < 0 or any(seq < 1 for seq in batch.seqs):
        raise _malformed("a number is out of range")
    return batch


def read_item(stream: Stream, item: dict[str, Any]) -> Item:
    """Return an item of a batch, its times in the form of `times.format_time`.

    Raises:
        InvalidInputError: Not such an item (code `malformed`, `invalid_name`, `invalid_digest`).
    """
    try:
        found: Item = msgspec.convert(item, ITEM_KINDS[stream], str_keys=True)
    except msgspec.ValidationError as error:
        raise _malformed(str(error)[:200]) from error
    _short(found)
    if isinstance(found, DeviceEvent):
        return _check_event(found)
    if isinstance(found, SwapReceipt):
        return _check_receipt(found)
    return _check_window(found)


def _check_event(event: DeviceEvent) -> DeviceEvent:
    if event.step not in set(Step) or not _CODE.fullmatch(event.code):
        raise _malformed(f"step {event.step[:40]!r} or code {event.code[:80]!r} cannot be")
    return msgspec.structs.replace(event, ts=_time(event.ts))


def _check_receipt(receipt: SwapReceipt) -> SwapReceipt:
    check_name(receipt.slot, "slot")
    for digest in filter(None, (receipt.from_digest, receipt.to_digest)):
        check_digest(digest)
    _not_negative(receipt)
    for result in (receipt.shadow, receipt.canary):
        if result is not None:
            _not_negative(result)
    return msgspec.structs.replace(receipt, ts=_time(receipt.ts))


def _check_window(window: TelemetryWindow) -> TelemetryWindow:
    check_name(window.slot, "slot")
    check_digest(window.digest)
    _not_negative(window)
    histogram.check(window.latency)
    histogram.check(window.compute)
    return msgspec.structs.replace(window, start=_time(window.start), end=_time(window.end))


def _open(data: bytes, payload_type: str, kind: type[_M], key: Key, device: str) -> _M:
    body = dsse.open_sealed(data, payload_type, key)
    message = strict_json.decode(body, kind, max_bytes=REPORT_MAX_BYTES, what="report")
    if message.device != device:
        raise TrustError(
            f"The report is about {message.device[:80]!r} and came from {device!r}.",
            code="wrong_device",
        )
    _short(message)
    return message


def _short(struct: msgspec.Struct) -> None:
    for name, value in msgspec.structs.asdict(struct).items():
        if isinstance(value, str) and len(value) > MAX_TEXT:
            raise _malformed(f"{name} has {len(value)} characters")


def _not_negative(struct: msgspec.Struct) -> None:
    for name, value in msgspec.structs.asdict(struct).items():
        unknown = name == "accelerated_pct" and value == -1
        if isinstance(value, int) and value < 0 and not unknown:
            raise _malformed(f"{name} is {value}")


def _time(text: str) -> str:
    return format_time(parse_time(text))


def _malformed(why: str) -> InvalidInputError:
    return InvalidInputError(f"The report cannot be used: {why}.", code="malformed")
