"""What all clients together may hold of the gateway: connections, and bytes of their bodies."""

from __future__ import annotations

from edgefleet_agent.gateway.fast_slots import Pool

MAX_CONNECTIONS = 1024
"""Far below the descriptors of a process: agentd and workers must always get theirs."""
MAX_WAITING = 16 * 1024
"""Requests that have come behind others on their connections; each takes up to a kilobyte."""
_BODIES = 4


class Intake:
    """Shared by all connections.

    Args:
        max_body_bytes: Longest body of one request; all bodies together may be four times that.
        patience_s: How long one request may take to come whole.

    Attributes:
        held: Bytes of bodies that have come and are not answered yet.
        waiting: Requests that have come and are not begun.
        slots: What clients of the fast path share.
    """

    __slots__ = ("held", "max_body", "max_held", "patience_s", "slots", "waiting")

    def __init__(self, max_body_bytes: int, patience_s: float) -> None:
        self.max_body = max_body_bytes
        self.max_held = _BODIES * max_body_bytes
        self.patience_s = patience_s
        self.held = 0
        self.waiting = 0
        self.slots = Pool()
