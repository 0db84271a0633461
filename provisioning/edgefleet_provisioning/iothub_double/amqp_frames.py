"""Frames and performatives of AMQP 1.0 (OASIS part 2), and sections of its messages (part 3)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from edgefleet_provisioning.iothub_double.amqp_codec import (
    AmqpError,
    Described,
    Reader,
    Symbol,
    UByte,
    UInt,
    UShort,
    described_list,
    encode,
)

AMQP_HEADER, SASL_HEADER = b"AMQP\x00\x01\x00\x00", b"AMQP\x03\x01\x00\x00"
AMQP_FRAME, SASL_FRAME = 0, 1
EMPTY = struct.pack(">IBBH", 8, 2, AMQP_FRAME, 0)
OPEN, BEGIN, ATTACH, FLOW, TRANSFER, DISPOSITION, DETACH, END, CLOSE = range(0x10, 0x19)
SASL_MECHANISMS, SASL_INIT, SASL_OUTCOME = 0x40, 0x41, 0x44
ERROR, ACCEPTED, SOURCE, TARGET = 0x1D, 0x24, 0x28, 0x29
HEADER, MESSAGE_ANNOTATIONS, PROPERTIES, APPLICATION_PROPERTIES = 0x70, 0x72, 0x73, 0x74
DELIVERY_ANNOTATIONS, DATA, VALUE = 0x71, 0x75, 0x77

_Kinds = dict[str, Callable[[Any], Any] | None]
_FIELDS: dict[int, _Kinds] = {
    OPEN: {
        "container_id": None,
        "hostname": None,
        "max_frame_size": UInt,
        "channel_max": UShort,
        "idle_time_out": UInt,
        "outgoing_locales": None,
        "incoming_locales": None,
        "offered_capabilities": None,
        "desired_capabilities": None,
        "properties": None,
    },
    BEGIN: {
        "remote_channel": UShort,
        "next_outgoing_id": UInt,
        "incoming_window": UInt,
        "outgoing_window": UInt,
        "handle_max": UInt,
        "offered_capabilities": None,
        "desired_capabilities": None,
        "properties": None,
    },
    ATTACH: {
        "name": None,
        "handle": UInt,
        "role": None,
        "snd_settle_mode": UByte,
        "rcv_settle_mode": UByte,
        "source": None,
        "target": None,
        "unsettled": None,
        "incomplete_unsettled": None,
        "initial_delivery_count": UInt,
        "max_message_size": None,
        "offered_capabilities": None,
        "desired_capabilities": None,
        "properties": None,
    },
    FLOW: {
        "next_incoming_id": UInt,
        "incoming_window": UInt,
        "next_outgoing_id": UInt,
        "outgoing_window": UInt,
        "handle": UInt,
        "delivery_count": UInt,
        "link_credit": UInt,
        "available": UInt,
        "drain": None,
        "echo": None,
        "properties": None,
    },
    TRANSFER: {
        "handle": UInt,
        "delivery_id": UInt,
        "delivery_tag": None,
        "message_format": UInt,
        "settled": None,
        "more": None,
        "rcv_settle_mode": UByte,
        "state": None,
        "resume": None,
        "aborted": None,
        "batchable": None,
    },
    DISPOSITION: {
        "role": None,
        "first": UInt,
        "last": UInt,
        "settled": None,
        "state": None,
        "batchable": None,
    },
    DETACH: {"handle": UInt, "closed": None, "error": None},
    END: {"error": None},
    CLOSE: {"error": None},
    SASL_MECHANISMS: {"mechanisms": None},
    SASL_INIT: {"mechanism": None, "initial_response": None, "hostname": None},
    SASL_OUTCOME: {"code": UByte, "additional_data": None},
}
_MANDATORY: dict[int, tuple[str, ...]] = {
    OPEN: ("container_id",),
    BEGIN: ("next_outgoing_id", "incoming_window", "outgoing_window"),
    ATTACH: ("name", "handle", "role"),
    FLOW: ("incoming_window", "next_outgoing_id", "outgoing_window"),
    TRANSFER: ("handle",),
    DISPOSITION: ("role", "first"),
    DETACH: ("handle",),
    SASL_INIT: ("mechanism",),
}
_NUMBERS = (UByte, UShort, UInt)
_PROPERTIES = (
    "message_id",
    "user_id",
    "to",
    "subject",
    "reply_to",
    "correlation_id",
    "content_type",
    "content_encoding",
    "absolute_expiry_time",
    "creation_time",
    "group_id",
    "group_sequence",
    "reply_to_group_id",
)


class Frame(NamedTuple):
    """One frame that came in; `code` is 0 for an empty one, which only says "I am here"."""

    channel: int
    code: int
    fields: Mapping[str, Any]
    payload: bytes


class Message(NamedTuple):
    """A message: what the double reads of one and writes into one.

    A body that is bytes is a data section, everything else a value section.
    """

    body: Any = b""
    properties: Mapping[str, Any] | None = None
    application: Mapping[str, Any] | None = None
    annotations: Mapping[str, Any] | None = None
    delivery_annotations: Mapping[str, Any] | None = None


def performative(code: int, /, **fields: Any) -> bytes:
    """Return a performative with every field of its kind written, the unnamed ones as null."""
    kinds = _FIELDS[code]
    unknown = fields.keys() - kinds.keys()
    if unknown:
        raise AmqpError(f"Performative 0x{code:02x} has no field {min(unknown)}.")
    return described_list(code, [_as(kind, fields.get(name)) for name, kind in kinds.items()])


def frame(channel: int, body: bytes, kind: int = AMQP_FRAME) -> bytes:
    """Return a whole frame around a performative and what follows it."""
    return struct.pack(">IBBH", len(body) + 8, 2, kind, channel) + body


def read_frame(header: bytes, body: bytes) -> Frame:
    """Return what a frame says.

    Args:
        header: Its first 8 bytes.
        body: The rest.

    Raises:
        AmqpError: It is no frame of AMQP's.
    """
    _, offset, kind, channel = struct.unpack(">IBBH", header)
    if offset < 2 or kind not in {AMQP_FRAME, SASL_FRAME}:
        raise AmqpError("The frame's header is none of AMQP's.")
    body = body[(offset - 2) * 4 :]
    if not body:
        return Frame(channel, 0, {}, b"")
    reader = Reader(body)
    told = reader.value()
    code = told.descriptor if isinstance(told, Described) else None
    if not isinstance(code, int) or code not in _FIELDS:
        raise AmqpError("The frame holds no performative.")
    names = list(_FIELDS[code])
    if not isinstance(told.value, list) or len(told.value) > len(names):
        raise AmqpError("A performative has more fields than its kind.")
    found = told.value + [None] * (len(names) - len(told.value))
    fields = dict(zip(names, found, strict=True))
    _check(int(code), fields)
    return Frame(channel, int(code), fields, reader.rest)


def error(condition: str, description: str) -> Described:
    """Return an error as detach, end and close carry it."""
    return Described(ERROR, [Symbol(condition), description, {}])


def write_message(message: Message) -> bytes:
    """Return the sections of a message."""
    parts = []
    for code, found in (
        (DELIVERY_ANNOTATIONS, message.delivery_annotations),
        (MESSAGE_ANNOTATIONS, message.annotations),
    ):
        if found:
            named = {Symbol(name): value for name, value in found.items()}
            parts.append(encode(Described(code, named)))
    if message.properties:
        parts.append(described_list(PROPERTIES, [message.properties.get(n) for n in _PROPERTIES]))
    if message.application:
        parts.append(encode(Described(APPLICATION_PROPERTIES, dict(message.application))))
    data = isinstance(message.body, bytes)
    parts.append(encode(Described(DATA if data else VALUE, message.body)))
    return b"".join(parts)


def read_message(payload: bytes) -> Message:
    """Return what a message says.

    Raises:
        AmqpError: It is no message of AMQP's.
    """
    reader = Reader(payload)
    found: dict[str, Any] = {}
    while reader.rest:
        section = reader.value()
        if not isinstance(section, Described) or not isinstance(section.descriptor, int):
            raise AmqpError("A message's section has no number.")
        if section.descriptor == PROPERTIES:
            if not isinstance(section.value, list):
                raise AmqpError("A message's properties are no list.")
            found["properties"] = dict(zip(_PROPERTIES, section.value, strict=False))
        elif section.descriptor == APPLICATION_PROPERTIES:
            if not isinstance(section.value, dict):
                raise AmqpError("Application properties are no map.")
            found["application"] = section.value
        elif section.descriptor in {DATA, VALUE}:
            found["body"] = section.value
    return Message(**found)


def _check(code: int, fields: Mapping[str, Any]) -> None:
    for name in _MANDATORY.get(code, ()):
        if fields[name] is None:
            raise AmqpError(f"The field {name} is missing.")
    for name, kind in _FIELDS[code].items():
        value = fields[name]
        number = isinstance(value, int) and not isinstance(value, bool)
        if value is not None and kind in _NUMBERS and not number:
            raise AmqpError(f"The field {name} is no number.")
        if name == "properties" and not isinstance(value, dict | None):
            raise AmqpError("The field properties is no map.")


def _as(kind: Callable[[Any], Any] | None, value: Any) -> Any:
    return value if value is None or kind is None else kind(value)
