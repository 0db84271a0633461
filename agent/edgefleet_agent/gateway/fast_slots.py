"""The memory that clients of the fast path lend: slots of one client, and who knows them.

The gateway keeps each descriptor, so that any worker can be given it, also the one that replays a
request; it maps none.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from edgefleet_agent.ipc import fast, mapping, memfd
from edgefleet_shared.errors import InvalidInputError, UnavailableError

_UNSENT_MAX = 4096


class Slot:
    """One sealed memfd of one client; `uses` counts open requests that name it."""

    __slots__ = ("access", "client", "fd", "known_by", "number", "size", "uses")

    def __init__(self, client: int, number: int, access: int, size: int, fd: int) -> None:
        self.client = client
        self.number = number
        self.access = access
        self.size = size
        self.fd = fd
        self.uses = 0
        self.known_by: set[Reach] = set()

    def close(self) -> None:
        """Take it back from every worker."""
        for reach in list(self.known_by):
            reach.forget(self)
        os.close(self.fd)
        self.fd = -1


class Shared(NamedTuple):
    """What a request refers to beyond its bytes."""

    client: int
    slots: tuple[Slot, ...]


class Pool:
    """What all clients share: numbers for them, and how many slots there are.

    `loose` counts descriptors that have come and belong to no slot yet.
    """

    def __init__(self) -> None:
        self.slots = 0
        self.loose = 0
        self._free: deque[int] = deque()
        self._next = 0

    def number(self) -> int:
        """Return a number that no client has; `give` takes it back."""
        if self._free:
            return self._free.popleft()
        self._next += 1
        return self._next

    def give(self, number: int) -> None:
        """Take back a client's number."""
        self._free.append(number)


class Table:
    """The slots of one client.

    Args:
        client: Its number.
        pool: What it shares with the others.
        max_bytes: What its slots may have together.
    """

    def __init__(self, client: int, pool: Pool, max_bytes: int) -> None:
        self.client = client
        self._pool = pool
        self._max_bytes = max_bytes
        self._slots: dict[int, Slot] = {}
        self._bytes = 0

    def add(self, number: int, access: int, size: int, fd: int) -> None:
        """Take a descriptor, which is this object's once this returns.

        Raises:
            InvalidInputError: The number is taken, or the memory is not as it must be.
            UnavailableError: This client, or all together, have too much.
        """
        if number in self._slots:
            raise InvalidInputError(f"Slot {number} is taken; drop it first.", code="bad_slot")
        if self._bytes + size > self._max_bytes:
            raise UnavailableError(
                f"The slots of one client have at most {self._max_bytes} bytes together.",
                code="slot_quota",
            )
        if self._pool.slots >= mapping.SLOTS_MAX:
            raise UnavailableError(
                "All clients together have too many slots; try again later.", code="slot_quota"
            )
        memfd.check(fd, size, writable=access == fast.WRITE)
        self._slots[number] = Slot(self.client, number, access, size, fd)
        self._bytes += size
        self._pool.slots += 1

    def drop(self, number: int) -> None:
        """Give up a slot.

        Raises:
            InvalidInputError: There is none, or a request that names it is open.
        """
        slot = self._slots.get(number)
        if slot is None or slot.uses:
            why = "is in use" if slot else "does not exist"
            raise InvalidInputError(f"Slot {number} {why}.", code="bad_slot")
        self._remove(slot)

    @property
    def all(self) -> tuple[Slot, ...]:
        """Every slot of this client."""
        return tuple(self._slots.values())

    def find(self, head: fast.Head) -> Shared:
        """Return the slots that a request names.

        Raises:
            InvalidInputError: One does not exist, is for the other direction, or is too short.
        """
        found: dict[int, Slot] = {}
        for access, group in ((fast.READ, head.tensors), (fast.WRITE, head.areas)):
            for one in group:
                if one.slot == fast.INLINE:
                    continue
                slot = self._slots.get(one.slot)
                if slot is None or slot.access != access or one.offset + one.length > slot.size:
                    raise InvalidInputError(_why(one, slot, access), code="bad_slot")
                found[one.slot] = slot
        return Shared(self.client, tuple(found.values()))

    def close(self) -> None:
        """Give up all of it: the client has gone."""
        for slot in list(self._slots.values()):
            self._remove(slot)

    def _remove(self, slot: Slot) -> None:
        del self._slots[slot.number]
        self._bytes -= slot.size
        self._pool.slots -= 1
        slot.close()


def _why(one: fast.Tensor, slot: Slot | None, access: int) -> str:
    if slot is None:
        return f"{one.name[:80]!r} names slot {one.slot}, which does not exist."
    if slot.access != access:
        return f"{one.name[:80]!r} names slot {one.slot}, which is for the other direction."
    return (
        f"{one.name[:80]!r} ends at byte {one.offset + one.length} of slot {one.slot}, "
        f"which has {slot.size}."
    )


class Reach:
    """Which slots one worker process has been given, least recently used first.

    Args:
        sock: The gateway's end of the socketpair for descriptors, now this object's.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._known: dict[Slot, None] = {}
        self._bytes = 0
        self._unsent: deque[bytes] = deque()

    def bring(self, slots: Iterable[Slot]) -> bool:
        """See to it that the worker has these; False if that cannot be done just now."""
        for slot in slots:
            if slot in self._known:
                self._known[slot] = self._known.pop(slot)
                continue
            if self._unsent or slot.fd < 0 or not self._make_room(slot.size):
                return False
            message = mapping.MESSAGE.pack(
                mapping.MAP, slot.client, slot.number, slot.access, slot.size
            )
            try:
                socket.send_fds(self._sock, [message], [slot.fd])
            except (BrokenPipeError, ConnectionResetError):
                return True  # it is dying, and its link tells that
            except OSError:
                return False  # its queue is full, or descriptors on their way are too many
            self._known[slot] = None
            self._bytes += slot.size
            slot.known_by.add(self)
        return True

    def _make_room(self, size: int) -> bool:
        for slot in list(self._known):
            if self._bytes + size <= mapping.MAPPED_MAX:
                break
            if not slot.uses:
                self.forget(slot)
        return self._bytes + size <= mapping.MAPPED_MAX

    def forget(self, slot: Slot) -> None:
        """Tell the worker to let go of a slot."""
        if slot not in self._known:
            return
        del self._known[slot]
        slot.known_by.discard(self)
        self._bytes -= slot.size
        self._unsent.append(
            mapping.MESSAGE.pack(mapping.UNMAP, slot.client, slot.number, 0, slot.size)
        )
        self._send()

    def _send(self) -> None:
        try:
            while self._unsent:
                self._sock.send(self._unsent[0])
                self._unsent.popleft()
        except BlockingIOError:
            if len(self._unsent) > _UNSENT_MAX:
                self.close()
                return
            self._loop.add_writer(self._sock, self._send)
            return
        except OSError:
            self._unsent.clear()
        self._loop.remove_writer(self._sock)

    def close(self) -> None:
        """The worker is gone."""
        for slot in self._known:
            slot.known_by.discard(self)
        self._known.clear()
        self._unsent.clear()
        if self._sock.fileno() >= 0:
            self._loop.remove_writer(self._sock)
            self._sock.close()
