"""The receipt of a swap on its way: measured after the flip, sent once enough was seen."""

from __future__ import annotations

import time
from typing import NamedTuple

from edgefleet_agent import swapping
from edgefleet_agent.gateway_client import GatewayLostError
from edgefleet_agent.ledger import Ledger
from edgefleet_agent.swapping import Reading, Swap
from edgefleet_agent.toolbox import Toolbox
from edgefleet_shared.steps import Step


class _After(NamedTuple):
    """Since when a new version has been watched for its receipt, and the counters just then."""

    since: float
    reading: Reading


class Receipts:
    """Completes and sends a slot's pending receipt, which the journal holds.

    Args:
        tools: The shared parts.
        ledger: The slot's page.
    """

    def __init__(self, tools: Toolbox, ledger: Ledger) -> None:
        self._tools, self._ledger = tools, ledger
        self._after: _After | None = None

    def measure(self, swap: Swap) -> None:
        """Complete the pending receipt by what the swap did to requests; `settle` sends it.

        Raises:
            OSError: The journal cannot be written.
        """
        if self._ledger.record.receipt is None:
            return
        deployment = self._ledger.record.deployment
        drain_s = deployment.target.policy.drain_s if deployment else 10
        try:
            receipt, now = swapping.measure(self._tools, swap, drain_s)
        except GatewayLostError as error:
            self._ledger.tell(Step.ACTIVATE, error.code, str(error), level="warning")
            return
        self._ledger.write(receipt=receipt)
        self._after = _After(time.monotonic(), now)

    def settle(self) -> None:
        """Hand the pending receipt to the outbox, with what was seen since the swap."""
        receipt, after = self._ledger.record.receipt, self._after
        if receipt is None:
            return
        if after is not None:
            try:
                receipt = swapping.with_after(self._tools, receipt, after.reading)
            except GatewayLostError as error:
                self._ledger.tell(Step.ACTIVATE, error.code, str(error), level="warning")
        self._tools.outbox.add("receipts", receipt)
        self._ledger.write(receipt=None)
        self._after = None

    def look(self) -> None:
        """Send the receipt once there is enough to tell how the new version answers.

        After a restart of agentd, a pending receipt gets the same time anew.
        """
        if self._ledger.record.receipt is None:
            return
        if self._after is None:
            self._after = _After(time.monotonic(), swapping.read(self._tools.gateway()))
        elif time.monotonic() - self._after.since >= swapping.AFTER_S:
            self.settle()
