"""Who a client is, and what it holds: connections, and bytes of bodies.

Shares are by process and by user, as the kernel names them on a Unix socket, so that one
application leaves room for the others. A client on TCP has no name: all of them together are one
process.
"""

from __future__ import annotations

import socket
import struct
from typing import Final

_CREDENTIALS: Final = struct.Struct("3i")  # struct ucred: pid, uid, gid
_KEPT: Final = 256  # accounts, beyond which empty ones are looked for


class Account:
    """What a process, a user or everybody holds.

    Args:
        above: Whose part it is: a process is a user's, a user is everybody's.
        connections_max: How many it may have.
        held_max: How many bytes of bodies may be on their way or unanswered.

    Attributes:
        connections: How many there are; `guests.Guests` counts them.
        held: Bytes taken and not given back.
        chain: This one and those above it.
    """

    __slots__ = ("above", "chain", "connections", "connections_max", "held", "held_max")

    def __init__(self, above: Account | None, connections_max: int, held_max: int) -> None:
        self.above = above
        self.chain: tuple[Account, ...] = (self, *(above.chain if above is not None else ()))
        self.connections = 0
        self.connections_max = max(1, connections_max)
        self.held = 0
        self.held_max = held_max

    def take(self, count: int) -> bool:
        """Count bytes here and above; return whether all of it is within the bounds.

        They are counted in any case: whoever is refused gives them back.
        """
        fits = True
        for one in self.chain:
            one.held = held = one.held + count
            if held > one.held_max:
                fits = False
        return fits

    def give(self, count: int) -> None:
        """Give bytes back, here and above."""
        for one in self.chain:
            one.held -= count


class Accounts:
    """Everybody's account, and those of users and processes below it.

    Args:
        connections_max: Connections of all together; a process may have half, a user 3/4.
        held_max: Bytes of bodies of all together; shared alike.
    """

    def __init__(self, connections_max: int, held_max: int) -> None:
        self.everybody = Account(None, connections_max, held_max)
        self._users: dict[int, Account] = {}
        self._processes: dict[tuple[int, int], Account] = {}
        self._tcp = self._part(self.everybody, 2)

    def _part(self, above: Account, quarters: int) -> Account:
        whole = self.everybody
        return Account(above, whole.connections_max * quarters // 4, whole.held_max * quarters // 4)

    def of(self, sock: socket.socket | None) -> Account:
        """Return the account of whoever is at the other end."""
        if sock is None or sock.family != socket.AF_UNIX:
            return self._tcp
        found = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid, uid, _ = _CREDENTIALS.unpack(found)
        process = self._processes.get((uid, pid))
        if process is None:
            self._prune()
            user = self._users.get(uid)
            if user is None:
                user = self._users[uid] = self._part(self.everybody, 3)
            process = self._processes[uid, pid] = self._part(user, 2)
        return process

    def _prune(self) -> None:
        """Forget those that hold nothing, once there are many."""
        if len(self._processes) < _KEPT + 2 * self.everybody.connections:
            return
        self._processes = {k: one for k, one in self._processes.items() if _in_use(one)}
        users = {id(one.above) for one in self._processes.values()}
        self._users = {k: one for k, one in self._users.items() if id(one) in users}


def _in_use(account: Account) -> bool:
    return bool(account.connections or account.held)
