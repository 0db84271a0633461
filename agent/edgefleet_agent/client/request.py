"""A request as frames, and its answer as arrays: what both clients share. It does no I/O."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from edgefleet_agent.client.arrays import array_of, as_array, laid_out
from edgefleet_agent.client.errors import (
    GatewayGoneError,
    InferenceError,
    InvalidRequestError,
    refused,
)
from edgefleet_agent.client.memory import Block, Blocks
from edgefleet_agent.ipc import fast
from edgefleet_shared.errors import InvalidInputError

_KEPT = 256
Parts = list[bytes | memoryview]
Key = tuple[str, tuple[str, bool], tuple[str, ...]]
"""Model, version and whether it is bare, outputs: what decides how large outputs are."""


class Result(dict[str, np.ndarray]):
    """Outputs by name, and which model and version gave them."""

    def __init__(self, model: str, version: str, outputs: Mapping[str, np.ndarray]) -> None:
        super().__init__(outputs)
        self.model = model
        self.version = version


class Send(NamedTuple):
    """One frame to send, and the descriptor that goes with its first byte, or -1."""

    parts: Parts
    fd: int = -1


class Asked(NamedTuple):
    """A request that is ready: frames in order, its id, blocks it holds, and what it asks for.

    `offers` are slots by the id of their frame. Where there are some, the first frame to send is
    HOLD with the id `hold`, and the rest has to wait for its answer.
    """

    sends: list[Send]
    number: int
    taken: list[Block]
    key: Key
    offers: dict[int, Block]
    hold: int = 0

    def close(self) -> None:
        """Close descriptors that were sent, or shall not be any more."""
        for send in self.sends:
            if send.fd >= 0:
                os.close(send.fd)
        self.sends.clear()

    def give_back(self, *, spoilt: bool, blocks: Blocks) -> None:
        """Return its blocks; `spoilt` if a worker may still write into them."""
        for block in self.taken:
            block.give_back()
            if spoilt:
                blocks.drop(block)


class Requests:
    """Makes requests and reads answers over the blocks of one client."""

    def __init__(self, blocks: Blocks) -> None:
        self._blocks = blocks
        self.stays = False  # connections are for several models, and are not lent to a worker
        self._numbers = itertools.count(1)
        self._heads: dict[fast.Head, bytes] = {}
        self._sizes: dict[Key, dict[str, int]] = {}

    def number(self) -> int:
        """Return a fresh request id."""
        return next(self._numbers) & 0xFFFFFFFF

    def hello(self) -> bytes:
        """Return the first frame of a connection."""
        return fast.prefix(fast.HELLO, 0, time=int(self.stays))

    def welcomed(self, frame: fast.Prefix, body: bytearray | memoryview) -> None:
        """Take the answer to `hello`.

        Raises:
            InferenceError: It is none.
        """
        if frame[0] == fast.REFUSED:
            raise refused(fast.decode_refusal(bytes(body)))
        if frame[0] != fast.WELCOME:
            raise GatewayGoneError("What answers at the socket is no gateway.", code="bad_frame")
        self._blocks.connected(fast.decode_limits(bytes(body)))

    def make(
        self,
        model: str,
        inputs: Mapping[str, Any],
        which: tuple[str, bool],
        outputs: Sequence[str] | None,
        timeout_us: int,
    ) -> Asked:
        """Return a request; large inputs are copied into shared memory, small ones go along.

        `which` is a version, '' for the one in service, and whether its bare model is asked.

        Raises:
            InvalidRequestError: An input is of a type that cannot be sent.
        """
        taken: list[Block] = []
        given: list[fast.Tensor] = []
        inline: Parts = []
        at = 0
        try:
            for name, value in inputs.items():
                datatype, array = laid_out(name, value)
                shape = array.shape if datatype != "BYTES" else as_array(value).shape
                place = self._place(array, taken) if array.nbytes > fast.INLINE_MAX else None
                if place is None:
                    if pad := -at % 8:
                        inline.append(bytes(pad))
                        at += pad
                    inline.append(array.reshape(-1).view(np.uint8).data)
                    slot, offset = fast.INLINE, at
                    at += array.nbytes
                else:
                    slot, offset = place
                given.append(fast.Tensor(name, datatype, shape, slot, offset, array.nbytes))
            key = model, which, tuple(outputs or ())
            self._check_length(at)
            areas = self._areas(key, taken)
            version, raw = which
            every = outputs is None
            head = self._head(fast.Head(model, version, tuple(given), areas, every, raw))
        except BaseException:
            for block in taken:
                block.give_back()
            raise
        number = self.number()
        sends, offers = self._offers(taken, [t.slot for t in given])
        first = fast.prefix(fast.INFER, number, len(head), at, timeout_us)
        sends.append(Send([first + head, *inline]))
        hold = self.number() if offers else 0
        if hold:
            sends.insert(0, Send([fast.prefix(fast.HOLD, hold)]))
        return Asked(sends, number, taken, key, offers, hold)

    def _check_length(self, inline: int) -> None:
        if inline > self._blocks.limits.frame_bytes - fast.HEAD_MAX:
            raise InvalidRequestError(
                f"{inline} bytes fit neither into a frame nor into shared memory of this gateway.",
                code="body_too_large",
            )

    def _place(self, array: np.ndarray, taken: list[Block]) -> tuple[int, int] | None:
        found = self._blocks.find(array)
        if found is not None:
            return found[0].number, found[1]
        block = self._blocks.take(fast.READ, array.nbytes)
        if block is None:
            return None
        taken.append(block)
        np.frombuffer(block.map, array.dtype, array.size)[:] = array.reshape(-1)
        return block.number, 0

    def _areas(self, key: Key, taken: list[Block]) -> tuple[fast.Tensor, ...]:
        """Return where outputs shall go; how large they are is known from the last answer."""
        areas = []
        sizes = self._sizes.get(key, {})
        for name in key[2] or sizes:
            block = self._blocks.take(fast.WRITE, sizes[name]) if name in sizes else None
            if block is not None:
                taken.append(block)
                areas.append(fast.Tensor(name, "", (), block.number, 0, block.size))
            elif key[2]:
                areas.append(fast.Tensor(name, "", (), fast.INLINE, 0, 0))
        return tuple(areas)

    def _head(self, head: fast.Head) -> bytes:
        data = self._heads.get(head)
        if data is None:
            if len(self._heads) >= _KEPT:
                self._heads.clear()
            data = self._heads[head] = fast.encode_head(head)
        return data

    def _offers(
        self, taken: Iterable[Block], used: Iterable[int]
    ) -> tuple[list[Send], dict[int, Block]]:
        """Return frames for slots that have gone, and for those that the gateway must get."""
        sends: list[Send] = []
        offers: dict[int, Block] = {}
        for slot in self._blocks.dropped:
            prefix = fast.prefix(fast.DROP, self.number(), fast.OFFER.size)
            sends.append(Send([prefix + fast.offer(slot, 0, 1)]))
        self._blocks.dropped.clear()
        for block in {*taken, *self._blocks.of(used)}:
            if not block.offered:
                number = self.number()
                prefix = fast.prefix(fast.SLOT, number, fast.OFFER.size)
                head = fast.offer(block.number, block.access, block.size)
                sends.append(Send([prefix + head], block.descriptor()))
                offers[number] = block
                block.offered = True
        return sends, offers

    def answered(self, asked: Asked, frame: fast.Prefix, body: bytearray | memoryview) -> Result:
        """Return the outputs; the request's blocks are given back.

        Raises:
            InferenceError: The gateway refused, or the answer is nonsense.
        """
        kind, _, _, head_length, _, _ = frame
        if kind == fast.REFUSED:
            refusal = fast.decode_refusal(bytes(body))
            asked.give_back(spoilt=refusal.status == 504, blocks=self._blocks)
            raise refused(refusal)
        try:
            head = fast.decode_head(bytes(body[:head_length]) if kind == fast.ANSWER else b"")
            result = self._result(asked, head, memoryview(body)[head_length:])
        except (InvalidInputError, ValueError) as error:
            asked.give_back(spoilt=True, blocks=self._blocks)
            raise InferenceError(f"The answer is nonsense: {error}.", code="bad_frame") from error
        asked.give_back(spoilt=False, blocks=self._blocks)
        return result

    def _result(self, asked: Asked, head: fast.Head, inline: memoryview) -> Result:
        blocks = {block.number: block for block in asked.taken if block.access == fast.WRITE}
        outputs = {}
        sizes = {}
        for one in head.tensors:
            end = one.offset + one.length
            if one.slot == fast.INLINE:
                if end > len(inline):
                    raise ValueError(f"output {one.name!r} goes past the frame")
                data = inline[one.offset : end]
            else:
                block = blocks.get(one.slot)
                if block is None or end > block.size:
                    raise ValueError(f"output {one.name!r} lies where nothing was offered")
                data = block.lend(one.offset, one.length) if one.length else memoryview(b"")
            outputs[one.name] = array_of(one, data)
            if one.length > fast.INLINE_MAX:
                sizes[one.name] = one.length
        if len(self._sizes) >= _KEPT:
            self._sizes.clear()
        self._sizes[asked.key] = sizes
        return Result(head.model, head.version, outputs)

    def slot_refused(self, block: Block) -> None:
        """Note that the gateway did not take a block; the request that needs it fails for that."""
        block.offered = False
        self._blocks.refused()
