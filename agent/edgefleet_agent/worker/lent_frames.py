"""Requests of the fast path on a lent connection: inferences of this worker's model, nothing else.

Whatever else a client says (slots, another model, a short deadline, a broken frame) is the
gateway's. A descriptor cannot come here: clients offer one after HOLD alone, which goes back.
"""

from __future__ import annotations

from time import monotonic_ns
from typing import Final

import msgspec

from edgefleet_agent.ipc import fast, frames, loans
from edgefleet_agent.ipc.control import ModelSpec
from edgefleet_agent.worker.answering import Answer
from edgefleet_agent.worker.lent import Desk, Lent
from edgefleet_shared.errors import InvalidInputError

_SHORT_US: Final = 1_000_000  # a deadline below this is kept by the gateway, which can answer early
_REMEMBERED: Final = 256
_problem = msgspec.json.Decoder(dict[str, str]).decode


class Mine:
    """Tells by a head whether a request is for this worker's model."""

    def __init__(self, spec: ModelSpec) -> None:
        self._model = spec.model
        self._versions = {"", spec.version}
        self._known: dict[bytes, bool] = {}

    def __call__(self, data: bytes) -> bool:
        """Return whether the head names it."""
        found = self._known.get(data)
        if found is None:
            try:
                head = fast.decode_head(data)
                found = head.model == self._model and head.version in self._versions
            except InvalidInputError:
                found = False
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[data] = found
        return found


class LentFrames(Lent):
    """A lent connection of a client of the fast path.

    Args:
        desk: What it shares with the others.
        number: Its slot in `ipc.loans`.
        fd: The connection, now this object's.
        client: Whose slots its requests name.
        mine: Tells the requests that are answered here.
    """

    def __init__(self, desk: Desk, number: int, fd: int, client: int, mine: Mine) -> None:
        super().__init__(desk, number, fd)
        self._client = client
        self._mine = mine

    def _serve(self, start: int, total: int, arrived_ns: int) -> int:
        desk, data = self._desk, self._slot.inputs[self._which]
        begin = start + fast.PREFIX.size
        if begin > total:
            return 0
        magic, version, kind, _, number, head, inline, time = fast.PREFIX.unpack_from(data, start)
        plain = magic == fast.MAGIC and version == fast.VERSION and kind == fast.INFER
        if not plain or 0 < time < _SHORT_US:
            return self._away(frames.ODD)
        end = begin + head + inline
        if end > total:
            return self._away(frames.LARGE) if end - start > loans.BUFFER else 0
        if desk.words[loans.RECALLED]:
            return self._away(frames.RECALLED)
        if not self._mine(bytes(data[begin : begin + head])):
            return self._away(frames.ODD)
        self._words[loans.STARTED] = monotonic_ns()
        answer = desk.answerer.answer(data[begin:end], head, self._client)
        frame = _framed(number, answer)
        if len(frame) > loans.BUFFER:
            desk.count(answer, arrived_ns)
            desk.give_back(self.number, frames.LARGE, end, frame)
            return -1
        sent = self._send(frame, end)
        desk.count(answer, arrived_ns)
        desk.pace.ran(answer.spent)
        return end if sent else self._away(frames.BLOCKED)


def _framed(number: int, answer: Answer) -> bytes:
    """Return an answer as it goes over the wire; the gateway's look the same."""
    if answer.status == 200:
        inline = sum(map(len, answer.parts)) - answer.json_length
        prefix = fast.prefix(fast.ANSWER, number, answer.json_length, inline)
        return b"".join([prefix, *answer.parts])
    found = _problem(answer.parts[0])
    head = fast.encode_refusal(fast.Refusal(answer.status, found["code"], found["error"]))
    return fast.prefix(fast.REFUSED, number, len(head)) + head
