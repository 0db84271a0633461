"""A module of IoT Edge that is not enrolled yet waits for a ticket in its twin, and enrols by it.

A ticket for a group is good for every device of a deployment: each gets the id that IoT Edge has
for it. What is signed with the fleet's keys is checked as in every enrolment; the twin only says
where to ask.
"""

from __future__ import annotations

import logging
import queue
import random
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgefleet_agent import compose, durable
from edgefleet_agent.config import Config
from edgefleet_agent.enrollment import enroll, read_ticket
from edgefleet_agent.tls import Tls
from edgefleet_agent.ways import EDGE
from edgefleet_shared.errors import EdgeFleetError, InvalidInputError, UnavailableError

logger = logging.getLogger("edgefleet")

RETRY_MIN_S, RETRY_MAX_S = 5.0, 300.0
DEVICE = "IOTEDGE_DEVICEID"
TICKET = "ticket"


class _Ears:
    """Of a transport that is only listened to for the ticket."""

    def on_connected(self) -> None:
        """Nothing is said before there is an identity."""

    def on_disconnected(self, reason: str) -> None:
        """It goes on trying."""
        logger.info("not connected to the hub: %s", reason)

    def on_refused(self, reason: str) -> None:
        """Nobody but whoever deploys can mend it."""
        logger.error("the hub refuses this module: %s", reason)

    def on_desired(self, payload: bytes) -> None:
        """Not for whoever has no identity."""

    def on_renew(self, payload: bytes) -> None:
        """There is no key yet."""


def await_ticket(config: Config, environ: Mapping[str, str]) -> None:
    """Wait until this module is enrolled; returns at once if it is, or runs elsewhere.

    Raises:
        InvalidInputError: The IoT Edge runtime has not said who this is (code `configuration`).
    """
    enrolled = (config.state / "identity" / "enrollment.json").exists()
    if config.iothub.auth != "edge" or enrolled:
        return
    device = environ.get(DEVICE, "")
    if not device:
        raise InvalidInputError(
            f"iothub.auth is edge, and {DEVICE} is not set.",
            code="configuration",
            hint="Only a module that the IoT Edge runtime has started can use it.",
        )
    durable.make_folder(config.state)
    tickets: queue.SimpleQueue[str] = queue.SimpleQueue()

    def configured(section: Mapping[str, Any], _whole: bool) -> None:
        if isinstance(found := section.get(TICKET), str):
            tickets.put(found)

    nothing = Path()
    transport = compose.iothub(
        config, EDGE, device, Tls(nothing, nothing, nothing), lambda: None, configured
    )
    logger.info("not enrolled: a ticket is awaited in the module's twin")
    transport.start(_Ears())
    try:
        _enrol(config, device, tickets)
    finally:
        transport.stop()


def _enrol(config: Config, device: str, tickets: queue.SimpleQueue[str]) -> None:
    text, delay = tickets.get(), RETRY_MIN_S
    while True:
        try:
            wish = device if read_ticket(text).group else ""
            identity = enroll(config.state, text, config.identity.key, wish)
        except UnavailableError as error:
            logger.warning("%s", error)
            text = _newer(tickets, text, random.uniform(delay / 2, delay))  # noqa: S311 - jitter
            delay = min(2 * delay, RETRY_MAX_S)
        except EdgeFleetError as error:
            logger.error("the ticket in the twin cannot be used: %s", error)  # noqa: TRY400
            text, delay = _other(tickets, text), RETRY_MIN_S
        else:
            logger.info("enrolled as %s in fleet %s", identity.device, identity.fleet)
            return


def _newer(tickets: queue.SimpleQueue[str], text: str, seconds: float) -> str:
    """Return the ticket that comes within this time, or else the old one."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        try:
            found = tickets.get(timeout=left)
        except queue.Empty:
            break
        if found != text:
            return found
    return text


def _other(tickets: queue.SimpleQueue[str], text: str) -> str:
    """Return the next ticket that is another one."""
    while (found := tickets.get()) == text:
        pass
    return found
