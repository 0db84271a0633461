"""One log line and one outbox item for everything that happens, by the twelve words."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Literal

from edgefleet_agent.outbox import Outbox
from edgefleet_shared.errors import EdgeFleetError
from edgefleet_shared.messages import DeviceEvent
from edgefleet_shared.steps import Step

logger = logging.getLogger("edgefleet")

Level = Literal["debug", "info", "warning", "error"]
_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
MESSAGE_CHARACTERS = 2000


class Emitter:
    """Tells what happens.

    Args:
        outbox: Where events wait for the fleet manager.
        stamp: Gives the device's time as RFC 3339 text.

    Attributes:
        told: Called after each event, from any thread: it may be sent at once.
    """

    def __init__(self, outbox: Outbox, stamp: Callable[[], str]) -> None:
        self._outbox, self._stamp = outbox, stamp
        self.told: Callable[[], None] = lambda: None

    def tell(
        self,
        step: Step,
        code: str,
        message: str,
        *,
        level: Level = "info",
        slot: str = "",
        deployment: str = "",
        digest: str = "",
        **data: Any,
    ) -> None:
        """Log a line and queue an event; an outbox that takes nothing never stops the work."""
        where = f" {slot}" if slot else ""
        logger.log(_LEVELS[level], "%-8s%s: %s", step.value, where, message)
        event = DeviceEvent(
            ts=self._stamp(),
            level=level,
            step=step.value,
            code=code,
            message=message[:MESSAGE_CHARACTERS],
            slot=slot,
            deployment=deployment,
            digest=digest,
            data=data,
        )
        try:
            self._outbox.add("events", event)
        except EdgeFleetError as error:
            logger.log(_LEVELS["error"], "%-8s: %s", Step.REPORT.value, error)
        self.told()

    def error(self, step: Step, error: EdgeFleetError, **where: str) -> None:
        """Tell of an error by its code and message."""
        self.tell(step, error.code, str(error), level="error", **where)
