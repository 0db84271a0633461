"""Frames between an application and the gateway, on the Unix socket that also speaks HTTP.

A frame is a prefix of 24 bytes, a head and inline tensors; all numbers are little-endian. What
changes from request to request (id, timeout) stands in the prefix, so that a head is the same bytes
again and again and is read once. The layout, byte by byte: docs/decisions, the binary fast path.
Pure: no input or output, no array library; client, gateway and worker read and write by this file.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

from edgefleet_shared.errors import InvalidInputError

MAGIC: Final = 0xEF
"""First byte of every frame; no HTTP request begins with it."""
VERSION: Final = 1

PREFIX: Final = struct.Struct("<BBBBIIIQ")
"""magic, version, kind, flags, request id, head length, inline length, time."""

HELLO: Final = 1  # client, first: empty; time = 1: not to be lent to a worker
WELCOME: Final = 2  # gateway: `Limits`
SLOT: Final = 3  # client, with one descriptor: `OFFER`
DROP: Final = 4  # client: `OFFER`, of which the slot counts
DONE: Final = 5  # gateway, to SLOT, DROP and HOLD: empty
INFER: Final = 6  # client; time = timeout in microseconds, 0 = the gateway's
ANSWER: Final = 7  # gateway; time = nanoseconds that the model took
REFUSED: Final = 8  # gateway: `Refusal`
HOLD: Final = 9  # client, before SLOT, waits for DONE: empty

OFFER: Final = struct.Struct("<IIQ")
"""slot, access, size in bytes."""
READ: Final = 0  # the slot holds inputs
WRITE: Final = 1  # the slot receives outputs

INLINE: Final = 0xFFFFFFFF
"""In place of a slot: the tensor lies in the frame's inline part."""
INLINE_MAX: Final = 64 * 1024
"""Bytes above which a tensor is cheaper in a slot."""
HEAD_MAX: Final = 64 * 1024
SLOTS_MAX: Final = 32
OPEN_MAX: Final = 32
RANK_MAX: Final = 16
TENSORS_MAX: Final = 1024

DATATYPES: Final = (
    "", "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64",
    "FP16", "FP32", "FP64", "BYTES",
)  # fmt: skip
_CODES: Final = {name: code for code, name in enumerate(DATATYPES)}

_COUNTS: Final = struct.Struct("<HHHHHH")  # model, version, tensors, areas, flags, 0
_EVERY: Final = 1
_RAW: Final = 2
_RECORD: Final = struct.Struct("<HBBIQQ")  # name, datatype, rank, slot, offset, length
_REFUSAL: Final = struct.Struct("<HHI")  # status, code, retry after
_LIMITS: Final = struct.Struct("<IIQQ")


class Limits(NamedTuple):
    """What a gateway allows one client: slots, open requests, bytes of all slots and of a frame."""

    slots: int
    open: int
    slot_bytes: int
    frame_bytes: int


class Tensor(NamedTuple):
    """Where a tensor lies: in a slot, or at an offset of the inline part. Sizes are bytes.

    An area, which an output shall go to, has neither datatype nor shape; inline, it has no length.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    slot: int
    offset: int
    length: int


class Head(NamedTuple):
    """What is asked, or answered: `tensors` go along, `areas` say which outputs shall go where.

    Without areas every output comes inline, and so does one that does not fit into its area. With
    areas those outputs come that they name; with `every` all of them come, and an area for one that
    the model has not is skipped, as it may not have it any more after a swap. `raw` asks the bare
    model where the package declares processing.
    """

    model: str
    version: str
    tensors: tuple[Tensor, ...]
    areas: tuple[Tensor, ...] = ()
    every: bool = False
    raw: bool = False

    @property
    def inline(self) -> int:
        """How long the inline part must be."""
        ends = [t.offset + t.length for t in self.tensors if t.slot == INLINE]
        return max(ends, default=0)


class Refusal(NamedTuple):
    """Why there is no answer; status and code are those of HTTP."""

    status: int
    code: str
    message: str
    retry_after_ms: int = 0


Prefix = tuple[int, int, int, int, int, int]
"""kind, flags, request id, head length, inline length, time."""


def prefix(kind: int, number: int, head: int = 0, inline: int = 0, time: int = 0) -> bytes:
    """Return the first bytes of a frame whose parts are so many bytes long."""
    return PREFIX.pack(MAGIC, VERSION, kind, 0, number, head, inline, time)


def read_prefix(data: bytes | bytearray | memoryview, at: int = 0) -> Prefix:
    """Take a prefix apart.

    Raises:
        InvalidInputError: It is none, or of another version, or its head is too long.
    """
    magic, version, kind, flags, number, head, inline, time = PREFIX.unpack_from(data, at)
    if magic != MAGIC:
        raise _broken(f"A frame begins with {MAGIC:#x}, not {magic:#x}.")
    if version != VERSION:
        raise _broken(f"Frames of version {version} are not spoken here, only of {VERSION}.")
    if head > HEAD_MAX or head % 8:
        raise _broken(f"A head has at most {HEAD_MAX} bytes, by eights; this one has {head}.")
    return kind, flags, number, head, inline, time


def encode_head(head: Head) -> bytes:
    """Return a head's bytes, padded by zeros to a multiple of eight.

    Raises:
        InvalidInputError: It cannot be expressed, or is over `HEAD_MAX`.
    """
    model, version = head.model.encode(), head.version.encode()
    try:
        counts = len(model), len(version), len(head.tensors), len(head.areas)
        flags = (_EVERY if head.every else 0) | (_RAW if head.raw else 0)
        parts = [_COUNTS.pack(*counts, flags, 0), model, version]
        for one in (*head.tensors, *head.areas):
            name, kind, rank = one.name.encode(), _CODES[one.datatype], len(one.shape)
            parts += [
                _RECORD.pack(len(name), kind, rank, one.slot, one.offset, one.length),
                struct.pack(f"<{rank}Q", *one.shape),
                name,
            ]
    except (struct.error, KeyError) as error:
        raise _broken(f"This cannot be said in a frame: {error}.") from error
    data = b"".join(parts)
    data += bytes(-len(data) % 8)
    if len(data) > HEAD_MAX:
        raise _broken(f"The head would have {len(data)} bytes; {HEAD_MAX} is the limit.")
    return data


def decode_head(data: bytes) -> Head:
    """Take a head apart.

    Raises:
        InvalidInputError: Malformed, a name twice, or an unknown datatype.
    """
    try:
        model, version, tensors, areas, flags, zero = _COUNTS.unpack_from(data)
        if flags > _EVERY | _RAW or zero:
            raise _broken("A head has flags that do not exist.")
        if tensors > TENSORS_MAX or areas > TENSORS_MAX:
            raise _broken(f"A frame has at most {TENSORS_MAX} tensors.")
        at = _COUNTS.size
        names = [_text(data, at, model), _text(data, at + model, version)]
        at += model + version
        records = []
        for _ in range(tensors + areas):
            one, at = _record(data, at)
            records.append(one)
    except (struct.error, UnicodeDecodeError) as error:
        raise _broken(f"A head is malformed: {error}.") from error
    if len(data) - at != -at % 8 or any(data[at:]):
        raise _broken("A head ends in zeros up to a multiple of eight, and in nothing else.")
    given, wanted = tuple(records[:tensors]), tuple(records[tensors:])
    head = Head(names[0], names[1], given, wanted, bool(flags & _EVERY), bool(flags & _RAW))
    _check(head)
    return head


def _record(data: bytes, at: int) -> tuple[Tensor, int]:
    name, kind, rank, slot, offset, length = _RECORD.unpack_from(data, at)
    if kind >= len(DATATYPES) or rank > RANK_MAX:
        raise _broken(f"Datatype {kind} or rank {rank} does not exist.")
    at += _RECORD.size
    shape = struct.unpack_from(f"<{rank}Q", data, at)
    at += 8 * rank
    text = _text(data, at, name)
    return Tensor(text, DATATYPES[kind], shape, slot, offset, length), at + name


def _text(data: bytes, at: int, length: int) -> str:
    if at + length > len(data):
        raise _broken("A name goes past the end of its head.")
    return data[at : at + length].decode()


def _check(head: Head) -> None:
    for kind, group in (("tensor", head.tensors), ("area", head.areas)):
        if len({one.name for one in group}) != len(group):
            raise _broken(f"A {kind} is given twice.")
    for one in head.tensors:
        if not one.datatype:
            raise _broken(f"Tensor {one.name[:80]!r} has no datatype.")
    for one in head.areas:
        if one.datatype or one.shape or (one.slot == INLINE and (one.offset or one.length)):
            raise _broken(f"Area {one.name[:80]!r} is neither a part of a slot nor inline.")
    for one in (*head.tensors, *head.areas):
        if one.slot != INLINE and one.slot >= SLOTS_MAX:
            raise _broken(f"Slot {one.slot} does not exist; there are {SLOTS_MAX}.")


def offer(slot: int, access: int, size: int) -> bytes:
    """Return the head of SLOT or DROP."""
    return OFFER.pack(slot, access, size)


def read_offer(data: bytes) -> tuple[int, int, int]:
    """Return slot, access and size.

    Raises:
        InvalidInputError: Malformed, no such slot, or an unknown access.
    """
    if len(data) != OFFER.size:
        raise _broken(f"An offer has {OFFER.size} bytes, not {len(data)}.")
    slot, access, size = OFFER.unpack(data)
    if slot >= SLOTS_MAX or access > WRITE or not 0 < size < 2**62:
        raise _broken(f"Slot {slot}, access {access} or size {size} cannot be.")
    return slot, access, size


def encode_limits(limits: Limits) -> bytes:
    """Return the head of WELCOME."""
    return _LIMITS.pack(*limits)


def decode_limits(data: bytes) -> Limits:
    """Take the head of WELCOME apart; what a later gateway adds is skipped.

    Raises:
        InvalidInputError: Malformed.
    """
    if len(data) < _LIMITS.size:
        raise _broken("A welcome is too short.")
    return Limits(*_LIMITS.unpack_from(data))


def encode_refusal(refusal: Refusal) -> bytes:
    """Return the head of REFUSED; a message that is too long is cut."""
    code = refusal.code.encode()[:64]
    message = refusal.message.encode()[:4096]
    data = _REFUSAL.pack(refusal.status, len(code), refusal.retry_after_ms) + code + message
    return data + bytes(-len(data) % 8)


def decode_refusal(data: bytes) -> Refusal:
    """Take the head of REFUSED apart.

    Raises:
        InvalidInputError: Malformed.
    """
    if len(data) < _REFUSAL.size:
        raise _broken("A refusal is too short.")
    status, length, retry = _REFUSAL.unpack_from(data)
    text = data[_REFUSAL.size :].rstrip(b"\0")
    code, message = text[:length], text[length:]
    return Refusal(
        status, code.decode("utf-8", "replace"), message.decode("utf-8", "replace"), retry
    )


def places(sizes: Sequence[int]) -> list[int]:
    """Return offsets for tensors that follow one another, each at a multiple of eight."""
    found, at = [], 0
    for size in sizes:
        found.append(at)
        at += size + -size % 8
    return found


def _broken(message: str) -> InvalidInputError:
    return InvalidInputError(message, code="bad_frame")
