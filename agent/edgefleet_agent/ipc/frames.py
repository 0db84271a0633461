"""Frames between gateway and worker on a SOCK_STREAM socketpair: a 24-byte header and a body.

Little-endian: body length u32, kind u16, status u16, request id u32, JSON length u32, nanoseconds
u64. `JSON length` is the Open Inference Protocol's Inference-Header-Content-Length, `NO_JSON` where
the body is JSON alone. `nanoseconds` is a request's deadline on CLOCK_MONOTONIC, an answer's
compute time. A worker runs a long model several times at once and answers as runs end;
`INFER_ALONE` waits for what was asked before it, and what is asked after it waits for it.
"""

from __future__ import annotations

import struct
from typing import Final

import msgspec

from edgefleet_agent.ipc.control import ModelSpec

HEADER: Final = struct.Struct("<IHHIIQ")
NO_JSON: Final = 0xFFFFFFFF

OPEN: Final = 1  # gateway -> worker, first: an Order; descriptors come with its first byte
REPORT: Final = 2  # worker -> gateway, first: a Report
INFER: Final = 3  # gateway -> worker
INFER_ALONE: Final = 4  # as INFER; it runs when all answers before it are sent, and alone
ANSWER: Final = 5  # worker -> gateway
ANSWER_NONFINITE: Final = 6  # as ANSWER; an output holds NaN or infinity
LEND: Final = 7  # gateway -> worker: a connection for the slot `number`, its descriptor with it
RECALL: Final = 8  # gateway -> worker: give the connection of slot `number` back, or `ALL`
RETURN: Final = 9  # worker -> gateway: slot `number` is back, status = why
"""Its body is an answer that did not fit; JSON length = where that request ends in the slot."""
RAN: Final = 10  # worker -> gateway, before the answers: one run of a model that is run in batches
"""status = its rows (`ROWS_MAX` at most), number = the requests that it was for, nanoseconds."""

ROWS_MAX: Final = 0xFFFF

ALL: Final = 0xFFFFFFFF

RECALLED: Final = 1  # asked for by the gateway, or nothing can be done with it here
ENDED: Final = 2  # the client has closed, or its socket failed
ODD: Final = 3  # the next request is not for this model, or is none that is answered here
LARGE: Final = 4  # a request or an answer does not fit into the slot
BLOCKED: Final = 5  # the client does not read its answers
SLOW: Final = 6  # the model has become too slow to answer one connection after the other

FAST: Final = 16
"""Added to INFER or INFER_ALONE: the body is a head and inline tensors of `fast`, `JSON length` the
head's length and `status` the client whose slots it names. The answer's body is the same."""

HELD: Final = 32
"""Added to INFER or INFER_ALONE: the body lies in the memory of `bodies`, this one says where."""

PLACE: Final = struct.Struct("<II")
"""Where: offset and length."""

ROOM = 64 * 1024
"""Bytes a buffer has at first, and goes back to after a large frame."""

TENSOR_BYTES: Final = 8
"""What the widest element of a tensor is aligned to."""

SPARE: Final = 4
"""Buffers that are kept for the next large bodies."""

STATUSES: Final = frozenset({200, 400, 500, 504})
"""What a worker may answer with."""

Frame = tuple[int, int, int, int, int, memoryview]
"""kind, status, request id, JSON length, nanoseconds, body."""


class Order(msgspec.Struct, frozen=True):
    """What a new worker shall do: load `spec`, prove it, and serve unless `prove`.

    `parent` is the gateway's pid: the worker dies with it. `again`: it takes the place of one that
    died, and nobody has hashed the files since. `measure`: time the golden inputs as well.
    `prepare_bytes`: make the prepared form instead, into the descriptors after the package's, none
    longer than this.
    `channels`: so many more descriptors come after the package's: the socket of `mapping`, the
    memory of `ipc.bodies`, then that of `ipc.loans`, without which no connection is lent.
    """

    spec: ModelSpec
    prove: bool
    threads: int
    parent: int
    again: bool = False
    measure: bool = False
    prepare_bytes: int = 0
    channels: int = 0


class Report(msgspec.Struct, frozen=True):
    """How loading ended; fields as in `control.Outcome`.

    It comes from a process that a model may have taken over: `bounded` cuts it to what may be kept.
    """

    ok: bool
    code: str = ""
    message: str = ""
    load_ms: int = 0
    golden_ms: int = 0
    ready_ms: int = 0
    memory_kb: int = 0
    sandbox: list[str] = []
    accelerated_pct: int = -1
    median_us: int = 0
    peak_kb: int = 0
    prepared: bool = False
    note: str = ""
    maker: str = ""

    def bounded(self) -> Report:
        """Return the report with short texts, and numbers that every reader can hold."""
        numbers = ("load_ms", "golden_ms", "ready_ms", "memory_kb", "median_us", "peak_kb")
        return Report(
            ok=self.ok,
            prepared=self.prepared,
            note=self.note[:400],
            maker=self.maker[:100],
            code=self.code[:64],
            message=self.message[:2000],
            sandbox=[layer[:40] for layer in self.sandbox[:16]],
            accelerated_pct=min(max(self.accelerated_pct, -1), 100),
            **{name: min(max(getattr(self, name), 0), 2**31) for name in numbers},
        )


def head(kind: int, status: int, number: int, json_length: int, ns: int, length: int) -> bytes:
    """Return a frame's header for a body of `length` bytes."""
    return HEADER.pack(length, kind, status, number, json_length, ns)


class FrameBuffer:
    """Collects received bytes and gives out whole frames, without copying bodies.

    Attributes:
        held: The memory of `bodies`, where there is any; it is read-only.
    """

    def __init__(self) -> None:
        self.held: memoryview | None = None
        self._view = memoryview(bytearray(ROOM))
        self._start = 0
        self._end = 0
        self._spare: list[memoryview] = []

    def lend(self) -> memoryview:
        """Give the memory away: bodies given out of it hold until it comes back by `recycle`."""
        lent = self._view
        held = self._end - self._start
        self._view = self._room(max(ROOM, held, HEADER.size + self.awaited + TENSOR_BYTES))
        self._view[:held] = lent[self._start : self._end]
        self._start, self._end = 0, held
        return lent

    def keep(self, body: memoryview) -> tuple[memoryview, memoryview | None]:
        """Return a body that holds from now on, and what goes to `recycle` once it is done with."""
        if body.readonly:
            return body, None  # the gateway keeps it until the answer
        if len(body) < ROOM // 4:
            return memoryview(bytes(body)), None
        return body, self.lend()

    def recycle(self, lent: memoryview) -> None:
        """Take back what `lend` gave; may be called from another thread."""
        if len(self._spare) < SPARE:
            self._spare.append(lent)

    def _room(self, size: int) -> memoryview:
        """Return memory for `size` bytes; fresh pages of a large body cost more than its copy."""
        for index, spare in enumerate(self._spare):
            if len(spare) >= size:
                return self._spare.pop(index)
        return memoryview(bytearray(size))

    @property
    def awaited(self) -> int:
        """Return the length of the body of the frame that has begun, 0 while none has."""
        if self._end - self._start < HEADER.size:
            return 0
        length: int = HEADER.unpack_from(self._view, self._start)[0]
        return length

    def space(self) -> memoryview:
        """Return where the next bytes shall be received; bodies given out before are void then."""
        held = self._end - self._start
        if not held and len(self._view) > ROOM and not self._spare:
            self._view = memoryview(bytearray(ROOM))
        need = HEADER.size
        if held >= need:
            need += HEADER.unpack_from(self._view, self._start)[0]
        if not held:
            self._start = self._end = 0
            return self._view
        size = max(need, held + 4096)
        begin = self._aligned(self._start) if need > ROOM else self._start
        if begin + size > len(self._view):
            begin = self._aligned(0) if need > ROOM else 0
        if begin != self._start or begin + size > len(self._view):
            kept = bytes(self._view[self._start : self._end])
            if begin + size > len(self._view):
                self._view = self._room(size + TENSOR_BYTES)
            self._view[begin : begin + held] = kept
        self._start, self._end = begin, begin + held
        return self._view[self._end :]

    def _aligned(self, start: int) -> int:
        """Return the next place for the frame at which the tensors behind its JSON are aligned.

        A model's runtime copies a tensor that is not, which for a large one costs as much again as
        receiving it.
        """
        json_length = HEADER.unpack_from(self._view, self._start)[4]
        behind = HEADER.size + (0 if json_length == NO_JSON else json_length)
        return start + -(start + behind) % TENSOR_BYTES

    def wrote(self, count: int) -> None:
        """Tell that `count` bytes were received into `space()`."""
        self._end += count

    def next(self) -> Frame | None:
        """Return the next whole frame, or None; its body holds until `space` is called."""
        begin = self._start + HEADER.size
        if self._end < begin:
            return None
        length, kind, status, number, json_length, ns = HEADER.unpack_from(self._view, self._start)
        end = begin + length
        if self._end < end:
            return None
        self._start = end
        body = self._view[begin:end]
        if kind & HELD and self.held is not None:
            at, length = PLACE.unpack(body)
            kind, body = kind - HELD, self.held[at : at + length]
        return kind, status, number, json_length, ns, body
