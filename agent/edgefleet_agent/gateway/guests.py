"""Which clients are connected, and who goes when there are too many."""

from __future__ import annotations

import asyncio
import enum
import select
import time
from collections.abc import Iterator
from typing import Final, Protocol

from edgefleet_agent.gateway.accounts import Account

_SLOW_S: Final = 1.0
_SWEEPS: Final = 4  # within the idle timeout


class Standing(enum.IntEnum):
    """What a connection is about."""

    IDLE = 0  # between two requests, everything sent
    SLOW = 1  # its client shall send the rest of a request, or read its answers
    OPEN = 2  # it waits for us, or is with a worker


class Guest(Protocol):
    """A connection. `since` (CLOCK_MONOTONIC, s) is when its standing began."""

    account: Account
    since: float

    @property
    def standing(self) -> Standing:
        """What it is about just now."""

    def fileno(self) -> int:
        """Return its descriptor, -1 once it is closed."""

    def abort(self) -> None:
        """Close it at once."""

    def close_when_idle(self) -> None:
        """For shutting down: close it now, or after the answer in progress."""


class Guests:
    """All connections of clients.

    Args:
        everybody: Whose parts their accounts are; its limit is that of all together.
        idle_s: After so long between two requests a connection is closed; 0 = never.
    """

    def __init__(self, everybody: Account, idle_s: float) -> None:
        self._everybody = everybody
        self._idle_s = idle_s
        self._all: dict[Guest, None] = {}
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._all)

    def __iter__(self) -> Iterator[Guest]:
        """Yield each."""
        return iter(list(self._all))

    def enter(self, guest: Guest) -> bool:
        """Let a new one in, if need be in place of another; return whether there is room."""
        for one in guest.account.chain:
            if one.connections >= one.connections_max and not self._make_room(one):
                return False
        self._add(guest, 1)
        if self._timer is None and self._idle_s:
            self._arm()
        return True

    def leave(self, guest: Guest) -> None:
        """Forget one, if it is there."""
        if guest in self._all:
            self._add(guest, -1)

    def replace(self, old: Guest, new: Guest) -> None:
        """Let another object stand for the same connection."""
        del self._all[old]
        self._all[new] = None

    def _add(self, guest: Guest, count: int) -> None:
        if count > 0:
            self._all[guest] = None
        else:
            del self._all[guest]
        for one in guest.account.chain:
            one.connections += count

    def _make_room(self, account: Account) -> bool:
        """Close that one of an account's connections that is missed least: the longest idle.

        Where none is idle, one whose client has been slow for a second; never one that waits
        for us.
        """
        now = time.monotonic()
        mine = [one for one in self._all if account in one.account.chain]
        idle = [one for one in mine if one.standing is Standing.IDLE]
        for one in sorted(idle, key=lambda guest: guest.since):
            if _silent(one):
                self._close(one)
                return True
        slow = [one for one in mine if one.standing is Standing.SLOW]
        longest = min(slow, key=lambda guest: guest.since, default=None)
        if longest is None or now - longest.since < _SLOW_S:
            return False
        self._close(longest)
        return True

    def _close(self, guest: Guest) -> None:
        self.leave(guest)
        guest.abort()

    def _arm(self) -> None:
        self._timer = self._loop.call_later(self._idle_s / _SWEEPS, self._sweep)

    def _sweep(self) -> None:
        """Close who has been idle for too long."""
        self._timer = None
        begun = time.monotonic() - self._idle_s
        for one in list(self._all):
            if one.since < begun and one.standing is Standing.IDLE and _silent(one):
                self._close(one)
        if self._all:
            self._arm()


def _silent(guest: Guest) -> bool:
    """Tell whether nothing has come that is not read yet: it may be a request."""
    fd = guest.fileno()
    if fd < 0:
        return True
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return not poll.poll(0)
