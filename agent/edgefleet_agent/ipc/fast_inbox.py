"""Frames as they come in: whole ones are given out, what is in them is not looked at."""

from __future__ import annotations

from edgefleet_agent.ipc import fast
from edgefleet_shared.errors import InvalidInputError

_ROOM = 64 * 1024

Frame = tuple[fast.Prefix, memoryview]
"""A prefix, and head and inline tensors."""


class Inbox:
    """Collects received bytes.

    Args:
        longest: Bytes that head and inline tensors of one frame may have together.
    """

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._view = memoryview(bytearray(_ROOM))
        self._start = 0
        self._end = 0
        self._begun: fast.Prefix | None = None

    @property
    def awaited(self) -> int:
        """Return the length of the frame that has begun and is not whole yet, 0 for none."""
        if self._begun is not None:
            return fast.PREFIX.size + self._begun[3] + self._begun[4]
        return fast.PREFIX.size if self._end > self._start else 0

    def space(self) -> memoryview:
        """Return where the next bytes shall be received; bodies given out before are void then."""
        held = self._end - self._start
        need = max(self.awaited, held + 4096)
        if not held:
            if len(self._view) > _ROOM and need <= _ROOM:
                self._view = memoryview(bytearray(_ROOM))
            self._start = self._end = 0
        if self._start + need > len(self._view):
            kept = bytes(self._view[self._start : self._end])
            if need > len(self._view):
                self._view = memoryview(bytearray(need))
            self._view[:held] = kept
            self._start, self._end = 0, held
        return self._view[self._end :]

    def wrote(self, count: int) -> None:
        """Tell that `count` bytes were received into `space()`."""
        self._end += count

    def feed(self, data: bytes) -> None:
        """Take bytes that were received elsewhere."""
        while data:
            room = self.space()
            part, data = data[: len(room)], data[len(room) :]
            room[: len(part)] = part
            self.wrote(len(part))

    def next(self) -> Frame | None:
        """Return the next whole frame, or None; its body holds until `space` is called.

        Raises:
            InvalidInputError: What comes is no frame, or too long; nothing after it can be read.
        """
        begin = self._start + fast.PREFIX.size
        if self._begun is None:
            if self._end < begin:
                return None
            self._begun = fast.read_prefix(self._view, self._start)
            if self._begun[3] + self._begun[4] > self._longest:
                raise InvalidInputError(
                    f"A frame may have {self._longest} bytes; larger tensors go by slots.",
                    code="body_too_large",
                )
        begun = self._begun
        end = begin + begun[3] + begun[4]
        if self._end < end:
            return None
        self._start = end
        self._begun = None
        return begun, self._view[begin:end]
