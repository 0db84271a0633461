"""One request of a client of the fast path, and where its answer goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from edgefleet_agent.gateway.fast_slots import Shared
from edgefleet_agent.ipc import fast

if TYPE_CHECKING:
    from edgefleet_agent.gateway.fast import Connection

_problem = msgspec.json.Decoder(dict[str, str]).decode
_NONSENSE = {"code": "inference_failed", "error": "The worker answered with nonsense."}


class Call:
    """One request of a client. Implements `pending.Asker`."""

    __slots__ = ("_connection", "_length", "_number", "_shared")

    def __init__(self, connection: Connection, number: int, shared: Shared, length: int) -> None:
        self._connection = connection
        self._number = number
        self._shared = shared
        self._length = length

    def who(self) -> bytes:
        """Return the connection's key: the fast path's clients keep theirs."""
        return self._connection.key

    def answer(self, status: int, body: bytes, json_length: int, retry_after_s: int = 0) -> None:
        """Send the answer; `json_length` is the length of its head."""
        for slot in self._shared.slots:
            slot.uses -= 1
        connection = self._connection
        connection.ended(self._length, status)
        if status == 200:
            inline = len(body) - json_length
            connection.send(fast.prefix(fast.ANSWER, self._number, json_length, inline), body)
            return
        found = _read_problem(body)
        refusal = fast.Refusal(status, found["code"], found["error"], retry_after_s * 1000)
        connection.refuse(self._number, refusal)


def _read_problem(body: bytes) -> dict[str, str]:
    """Return code and text of an error, which a worker may have written."""
    try:
        return {**_NONSENSE, **_problem(body)}
    except msgspec.DecodeError:
        return _NONSENSE
