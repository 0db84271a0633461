"""Requests and answers of the fast path: tensors are views of applications' memory.

A client that changes an input while it is read can hurt its own answer alone: what a kernel may use
as an index, a length or a condition (integers over eight bits, BOOL, BYTES) is copied before it is
looked at, and read from the copy. Numbers to compute with (floats, eight bits) are read in place.
Outputs are written and never read again.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Final, NamedTuple

import numpy as np

from edgefleet_agent.ipc import fast
from edgefleet_agent.ipc.control import ModelSpec
from edgefleet_agent.worker import tensors
from edgefleet_agent.worker.codec import Codec
from edgefleet_agent.worker.sharing import Sharing
from edgefleet_shared.errors import InvalidInputError

IN_PLACE: Final = frozenset({"FP16", "FP32", "FP64", "UINT8", "INT8"})
"""Datatypes that are read where they lie."""
_PLANS_MAX = 64
_HEADS_MAX = 16
_PLAN_BYTES = 16 * 1024  # of heads that are kept of one client

Placed = tuple[tuple[int, ...], int, bool]
"""An output's shape, its bytes, and whether it lies in its area."""


class Wanted(NamedTuple):
    """An output, and the area for it; without memory it goes inline."""

    name: str
    area: fast.Tensor | None = None
    memory: memoryview | None = None


class Plan(NamedTuple):
    """What one head asks for; it holds for as long as its slots do.

    `views` are inputs that can be used as they are, `read` those to be read anew for each request:
    from a slot, or from the inline part where that is None. `kinds` are the outputs' datatypes,
    `raw`: the bare model is asked, `inline` the bytes beside the head. `targets` are areas as
    arrays of the shape that came last, `heads` answers' heads by what was placed.
    """

    views: dict[str, np.ndarray]
    read: list[tuple[fast.Tensor, memoryview | None]]
    wanted: list[Wanted]
    kinds: dict[str, str]
    raw: bool
    inline: int
    targets: dict[str, np.ndarray]
    heads: dict[tuple[Placed, ...], bytes]


class Asked(NamedTuple):
    """A request that fits."""

    inputs: dict[str, np.ndarray]
    plan: Plan
    raw: bool


class FastCodec:
    """Reads requests for one model and writes its answers.

    Args:
        spec: The model.
        codec: Knows its signature.
        sock: The worker's end of the socketpair of `mapping`.
    """

    def __init__(self, spec: ModelSpec, codec: Codec, sock: socket.socket) -> None:
        self._spec = spec
        self._codec = codec
        self._plans: dict[int, dict[bytes, Plan]] = {}
        self._sharing = Sharing(sock, lambda client: self._plans.pop(client, None))
        self._sharing.start()

    def decode(self, body: memoryview, head_length: int, client: int) -> Asked:
        """Return what a request asks for.

        Args:
            body: Head and inline tensors.
            head_length: Bytes of the head.
            client: Whose slots it names.

        Raises:
            InvalidInputError: It does not fit protocol or signature.
        """
        head = bytes(body[:head_length])
        plans = self._plans.get(client)
        plan = plans.get(head) if plans else None
        if plan is None:
            plan = self._keep(head, client)
        if len(body) - head_length != plan.inline:
            raise InvalidInputError("The inline part is not as long as its head says.")
        if not plan.read:
            return Asked(plan.views, plan, plan.raw)
        inputs = dict(plan.views)
        codec = (plan.raw and self._codec.raw) or self._codec
        inline = body[head_length:]
        for one, memory in plan.read:
            data = (inline if memory is None else memory)[one.offset : one.offset + one.length]
            if len(data) != one.length:
                raise InvalidInputError(f"Input {one.name!r} goes past the end of the frame.")
            if memory is not None:
                data = memoryview(bytes(data))
            inputs[one.name] = codec.from_binary(one, data)
        return Asked(inputs, plan, plan.raw)

    def _keep(self, head: bytes, client: int) -> Plan:
        """Make a plan and keep it, unless a slot has gone meanwhile."""
        changes = self._sharing.changes
        plan = self._plan(head, client)
        if len(head) > _PLAN_BYTES:
            return plan
        plans = self._plans.setdefault(client, {})
        if len(plans) >= _PLANS_MAX or sum(map(len, plans)) + len(head) > _PLAN_BYTES:
            plans.clear()
        plans[head] = plan
        if self._sharing.changes != changes:
            self._plans.pop(client, None)
        return plan

    def _plan(self, data: bytes, client: int) -> Plan:
        head = fast.decode_head(data)
        codec = (head.raw and self._codec.raw) or self._codec
        views: dict[str, np.ndarray] = {}
        read: list[tuple[fast.Tensor, memoryview | None]] = []
        for one in head.tensors:
            codec.check(one)
            memory = self._memory(client, one, fast.READ)
            if memory is None or one.datatype not in IN_PLACE:
                read.append((one, memory))
                continue
            part = memory[one.offset : one.offset + one.length]
            array = codec.from_binary(one, part)
            if np.shares_memory(array, np.frombuffer(part, np.uint8)):
                views[one.name] = array
            else:
                read.append((one, memory))  # not aligned: a copy, which must be made anew
        codec.check_complete([one.name for one in head.tensors])
        kinds = codec.kinds
        return Plan(
            views, read, self._wanted(head, client, kinds), kinds, head.raw, head.inline, {}, {}
        )

    def _wanted(self, head: fast.Head, client: int, kinds: dict[str, str]) -> list[Wanted]:
        areas = {one.name: one for one in head.areas}
        if not head.every and (unknown := areas.keys() - kinds.keys()):
            raise InvalidInputError(
                f"The model has no output {min(unknown)[:80]!r}; it has {', '.join(kinds)}."
            )
        wanted = []
        for name in kinds if head.every or not areas else areas:
            area = areas.get(name)
            memory = self._memory(client, area, fast.WRITE) if area else None
            wanted.append(Wanted(name, area, memory))
        return wanted

    def _memory(self, client: int, one: fast.Tensor, access: int) -> memoryview | None:
        if one.slot == fast.INLINE:
            return None
        memory = self._sharing.find(client, one.slot, access)
        if one.offset + one.length > len(memory):
            raise InvalidInputError(f"{one.name[:80]!r} goes past the end of slot {one.slot}.")
        return memory

    def encode(
        self, asked: Asked, found: Mapping[str, np.ndarray]
    ) -> tuple[int, list[bytes], bool]:
        """Return (head length, parts of the body, whether an output is not finite)."""
        plan = asked.plan
        placed: list[Placed] = []
        parts: list[bytes] = []
        nonfinite = getattr(found, "nonfinite", False)
        for want in plan.wanted:
            array = found[want.name]
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                nonfinite = True
            text = tensors.to_binary(array) if plan.kinds[want.name] == "BYTES" else b""
            size = len(text) or array.nbytes
            put = _put(plan, want, array, text, size)
            placed.append((array.shape, size, put))
            if not put:
                if parts:
                    parts.append(bytes(-len(parts[-1]) % 8))
                parts.append(text or array.tobytes())
        key = tuple(placed)
        head = plan.heads.get(key)
        if head is None:
            if len(plan.heads) >= _HEADS_MAX:
                plan.heads.clear()
            head = plan.heads[key] = self._head(plan, placed)
        return len(head), [head, *parts], nonfinite

    def _head(self, plan: Plan, placed: list[Placed]) -> bytes:
        inline = iter(fast.places([size for _, size, put in placed if not put]))
        given = []
        for want, (shape, size, put) in zip(plan.wanted, placed, strict=True):
            area = want.area if put else None
            slot, offset = (area.slot, area.offset) if area else (fast.INLINE, next(inline))
            kind = plan.kinds[want.name]
            given.append(fast.Tensor(want.name, kind, shape, slot, offset, size))
        return fast.encode_head(fast.Head(self._spec.model, self._spec.version, tuple(given)))


def _put(plan: Plan, want: Wanted, array: np.ndarray, text: bytes, size: int) -> bool:
    """Write an output into its area; False if it has none, or one too small."""
    area, memory = want.area, want.memory
    if area is None or memory is None or size > area.length:
        return False
    if text or array.dtype.hasobject:
        memory[area.offset : area.offset + size] = text
        return True
    target = plan.targets.get(want.name)
    if target is None or target.shape != array.shape:
        target = np.ndarray(array.shape, array.dtype, memory, area.offset)
        plan.targets[want.name] = target
    np.copyto(target, array)
    return True
