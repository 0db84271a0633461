"""A revoked device leaves the broker: no way back in, no session, no queue, nothing retained.

In this order: the new revocation list is in force; a short-lived certificate in the device's name
takes its session over and ends it; its retained messages are emptied. What is to be done follows
from the certificates' table, so that a fleet manager that died in between finishes at its start.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as LateError
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from edgefleet_cloud.authority.issuing import DeviceCa
from edgefleet_cloud.broker import repository
from edgefleet_cloud.broker.credentials import write_pair
from edgefleet_cloud.broker.probe import Address, Answer, client_context, connect
from edgefleet_cloud.broker.revocations import RevocationLists
from edgefleet_cloud.database import Database
from edgefleet_cloud.ports import Clock, EventSink, Transport, system_clock
from edgefleet_shared import topics
from edgefleet_shared.errors import EdgeFleetError, UnavailableError
from edgefleet_shared.steps import Step
from edgefleet_shared.times import format_time

TAKE_OVER_LIFE = timedelta(minutes=5)
IN_FORCE_S = 5.0  # how long a broker is given to read a list before the device is ended anyway
LOOK_S = 0.05
CLEARED_S = 10.0
RETRY_S = 10.0

log = logging.getLogger(__name__)


class Parts(NamedTuple):
    """What a disconnection needs.

    `address` returns where the broker is; `lists` is None for a broker without TLS, which knows
    nobody by name: there a device can be thrown out, and comes back.
    """

    ca: Callable[[], DeviceCa]
    lists: RevocationLists | None
    address: Callable[[], Address]
    transport: Transport
    database: Database
    events: EventSink


class Disconnections:
    """`ports.Disconnector`, and the background service that carries it out.

    Args:
        parts: What it needs.
        clock: Tells the time.
    """

    def __init__(self, parts: Parts, clock: Clock = system_clock) -> None:
        self._parts = parts
        self._clock = clock
        self._wake = threading.Event()
        self._over = False
        self._lock = threading.Lock()
        self._asked: dict[str, float] = {}
        self._thread = threading.Thread(target=self._run, name="disconnections", daemon=True)

    def disconnect(self, device_id: str) -> None:
        """End a device's connection and all that the broker holds of it, in the background."""
        with self._lock:
            self._asked[device_id] = time.monotonic()
        self._wake.set()

    async def start(self) -> None:
        """Go on with what was left undone."""
        self._wake.set()
        self._thread.start()

    async def stop(self) -> None:
        """Stop; what is undone is done at the next start."""
        self._over = True
        self._wake.set()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, CLEARED_S)

    def facts(self) -> Mapping[str, str]:
        """Return nothing: the ready file need not speak of it."""
        return {}

    def pending(self) -> Mapping[str, str]:
        """Return which devices are still to be disconnected, and since when."""
        now = format_time(self._clock())
        with self._lock:
            asked = dict.fromkeys(self._asked, now)
        with self._parts.database.read() as session:
            return {**asked, **repository.pending(session, now)}

    def _run(self) -> None:
        while not self._over:
            self._wake.wait(RETRY_S)
            self._wake.clear()
            try:
                self._turn()
            except Exception:
                log.exception("Disconnecting failed; next try in %s s", RETRY_S)

    def _turn(self) -> None:
        began, pending = time.monotonic(), self.pending()
        if not pending:
            return
        closed = self._close_the_door()
        for device, since in pending.items():
            if self._over:
                return
            try:
                self._throw_out(device)
            except (EdgeFleetError, OSError) as error:
                log.warning("%s is still to be disconnected: %s", device, error)
                continue
            if closed:
                self._finish(device, since, began)
            else:
                log.warning(
                    "%s was thrown out, but the broker has not read the newest revocation list "
                    "and lets it in again.",
                    device,
                )

    def _close_the_door(self) -> bool:
        """Put a new list in force; return whether the broker has read it."""
        lists = self._parts.lists
        if lists is None:
            return True
        try:
            lists.publish()
        except (EdgeFleetError, OSError) as error:
            log.warning("No new revocation list: %s", error)
            return False
        deadline = time.monotonic() + IN_FORCE_S
        while not self._over and time.monotonic() < deadline:
            if lists.in_force(self._parts.address()):
                return True
            time.sleep(LOOK_S)
        return False

    def _throw_out(self, device: str) -> None:
        """Take over its session and empty what is retained in its name.

        Raises:
            UnavailableError: The broker does not take part.
        """
        if self._take_over(device) is not Answer.TAKEN:
            raise UnavailableError("the broker did not answer", code="broker")
        emptied = [
            self._parts.transport.publish(topic, b"", retain=True)
            for topic in topics.retained(device)
        ]
        try:
            for future in emptied:
                future.result(CLEARED_S)
        except (LateError, CancelledError) as error:
            raise UnavailableError("its messages could not be cleared", code="broker") from error

    def _take_over(self, device: str) -> Answer:
        parts = self._parts
        if parts.lists is None:
            return connect(parts.address(), None, device)
        ca = parts.ca()
        with TemporaryDirectory(dir=parts.lists.path.parent) as folder:
            pair = Path(folder) / "device.pem"
            now = self._clock()
            write_pair(pair, lambda key: ca.sign_client(key, device, now, TAKE_OVER_LIFE))
            return connect(parts.address(), client_context(ca.pem, pair), device)

    def _finish(self, device: str, since: str, began: float) -> None:
        now = format_time(self._clock())
        with self._lock:
            if self._asked.get(device, began) <= began:  # else it was asked for again meanwhile
                self._asked.pop(device, None)
        with self._parts.database.write() as session:
            repository.finish(session, device, since, now)
            self._parts.events.record(
                session,
                type="device.cut_off",
                step=Step.TARGET,
                subject=f"devices/{device}",
                message=f"{device} is out: connection, session and retained messages are gone.",
                data={"revoked": since},
            )
