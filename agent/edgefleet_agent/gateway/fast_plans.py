"""What heads of requests say, kept: a client sends the same one again and again."""

from __future__ import annotations

from typing import Final

from edgefleet_agent.gateway.fast_slots import Shared, Table
from edgefleet_agent.ipc import fast
from edgefleet_shared.errors import InvalidInputError

_PLANS_MAX: Final = 64
_PLAN_BYTES: Final = 16 * 1024
"""Heads that are kept of one client; taken apart they are ten times as large."""

Plan = tuple[fast.Head, Shared]


class Plans:
    """The heads of one client, and the slots that each names.

    Args:
        slots: The client's.
    """

    def __init__(self, slots: Table) -> None:
        self._slots = slots
        self._plans: dict[bytes, Plan] = {}
        self._bytes = 0

    def find(self, data: bytes, inline: int) -> Plan:
        """Return what a head says that `inline` bytes came with, and the slots it names.

        Raises:
            InvalidInputError: It is no head, names what is not there, or says another length.
        """
        plan = self._plans.get(data)
        if plan is None:
            head = fast.decode_head(data)
            plan = head, self._slots.find(head)
            self._keep(data, plan)
        if plan[0].inline != inline:
            raise InvalidInputError(
                f"{inline} bytes came inline; the head says {plan[0].inline}.", code="bad_frame"
            )
        return plan

    def _keep(self, data: bytes, plan: Plan) -> None:
        if len(data) > _PLAN_BYTES:
            return
        self._bytes += len(data)
        if len(self._plans) >= _PLANS_MAX or self._bytes > _PLAN_BYTES:
            self._plans.clear()
            self._bytes = len(data)
        self._plans[data] = plan

    def clear(self) -> None:
        """Forget them: the slots have changed."""
        self._plans.clear()
        self._bytes = 0
