"""What all clients together may hold of the gateway: connections, bodies, answers, memory."""

from __future__ import annotations

from typing import Final

from edgefleet_agent.gateway.accounts import Accounts
from edgefleet_agent.gateway.fast_slots import Pool
from edgefleet_agent.gateway.guests import Guests
from edgefleet_agent.gateway.unread import Unread

MAX_WAITING: Final = 16 * 1024
"""Requests that have come behind others on their connections; each takes up to a kilobyte."""
_BODIES: Final = 4


class Intake:
    """Shared by all connections.

    Args:
        max_body_bytes: Longest body of one request; all bodies together may be four times that, and
            as much all answers that are not read.
        patience_s: How long one request may take to come whole, and a client to read nothing.
        connections_max: Connections at a time.
        idle_s: How long one may be kept without a request; 0 = for ever.

    Attributes:
        accounts: What each client holds.
        guests: Who is connected.
        waiting: Requests that have come and are not begun.
        unread: Answers that nobody reads.
        slots: What clients of the fast path share.
    """

    __slots__ = ("accounts", "guests", "max_body", "patience_s", "slots", "unread", "waiting")

    def __init__(
        self, max_body_bytes: int, patience_s: float, connections_max: int, idle_s: float
    ) -> None:
        self.max_body = max_body_bytes
        self.patience_s = patience_s
        self.waiting = 0
        self.accounts = Accounts(connections_max, _BODIES * max_body_bytes)
        self.guests = Guests(self.accounts.everybody, idle_s)
        self.unread = Unread(_BODIES * max_body_bytes, patience_s)
        self.slots = Pool()
