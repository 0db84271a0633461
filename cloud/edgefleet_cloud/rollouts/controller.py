"""The reconcile loop: woken by what happens, at the latest each interval; safe on many servers.

A rollout is claimed by a lease in its row before it is driven, and given free when nothing more is
due, so that of several processes one drives it.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import partial
from typing import NamedTuple

from edgefleet_cloud.database import Database
from edgefleet_cloud.ports import Clock
from edgefleet_cloud.rollouts import repository
from edgefleet_cloud.rollouts.driver import Driver
from edgefleet_shared.errors import UnavailableError
from edgefleet_shared.identifiers import new_id
from edgefleet_shared.times import format_time

HOUSEKEEPING_S = 10.0
REST = 9.0
"""Looking at a large rollout takes a while, and each report wakes: rest so many times as long."""

log = logging.getLogger(__name__)


class Pace(NamedTuple):
    """Seconds between two looks at every rollout, and how long a claim holds."""

    interval_s: float = 1.0
    lease_s: float = 30.0


class Controller:
    """Drives rollouts in a thread of its own; a `ports.BackgroundService`.

    Args:
        database: Where rollouts are.
        driver: Does what is due.
        housekeeping: Called every ten seconds, for example to renew assignments.
        pace: How often to look.
        clock: Dates leases.
    """

    def __init__(
        self,
        database: Database,
        driver: Driver,
        housekeeping: Callable[[], None],
        pace: Pace,
        clock: Clock,
    ) -> None:
        self._database = database
        self._driver = driver
        self._housekeeping = housekeeping
        self._pace = pace
        self._clock = clock
        self._owner = f"{socket.gethostname()}/{os.getpid()}/{new_id()}"
        self._woken: set[str] = set()
        self._lock = threading.Lock()
        self._bell = threading.Event()
        self._untidy = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="controller", daemon=True)

    def wake(self, rollout: str) -> None:
        """Have a rollout looked at now; safe from any thread."""
        with self._lock:
            self._woken.add(rollout)
        self._bell.set()

    def tidy(self) -> None:
        """Have the housekeeping done now; safe from any thread."""
        self._untidy = True
        self._bell.set()

    async def start(self) -> None:
        """Start the loop."""
        self._thread.start()

    async def stop(self) -> None:
        """End the loop after the transaction under way."""
        self._over.set()
        self._bell.set()
        if self._thread.is_alive():
            self._thread.join()

    def facts(self) -> Mapping[str, str]:
        """Return nothing: nobody outside talks to the controller."""
        return {}

    def reconcile(self, rollout: str) -> None:
        """Do all that is due for one rollout, unless another process is at it."""
        if not self._is_due(rollout):
            return
        more = True
        while more and not self._over.is_set():
            now = self._clock()
            until = format_time(now + timedelta(seconds=self._pace.lease_s))
            with self._database.write() as session:
                claimed = repository.claim(session, rollout, self._owner, format_time(now), until)
                row = repository.find(session, rollout)
                if not claimed or row is None:
                    return
                more = self._driver.step(session, row)
                row.lease_owner, row.lease_until = (self._owner, until) if more else ("", "")
                session.add(row)

    def reconcile_all(self) -> None:
        """Do all that is due."""
        with self._database.read() as session:
            rollouts = repository.driven(session)
        for rollout in rollouts:
            self._try(partial(self.reconcile, rollout))

    def _is_due(self, rollout: str) -> bool:
        with self._database.read() as session:
            row = repository.find(session, rollout)
            return row is not None and self._driver.due(session, row)

    def _run(self) -> None:
        looked, tidied = -self._pace.interval_s, time.monotonic()
        while not self._over.is_set():
            with self._lock:
                woken, self._woken = self._woken, set()
            began = time.monotonic()
            for rollout in sorted(woken):
                self._try(partial(self.reconcile, rollout))
            now = time.monotonic()
            rest = min(self._pace.interval_s, REST * (now - began))
            if now - looked >= self._pace.interval_s:
                looked = now
                self._try(self.reconcile_all)
            if self._untidy or now - tidied >= HOUSEKEEPING_S:
                tidied, self._untidy = now, False
                self._try(self._housekeeping)
            self._over.wait(rest)
            self._bell.wait(max(0.0, looked + self._pace.interval_s - time.monotonic()))
            self._bell.clear()

    def _try(self, work: Callable[[], None]) -> None:
        """Do a piece of work; a failure is logged and the loop goes on, to try again later."""
        try:
            work()
        except UnavailableError as error:
            log.warning("A rollout waits: %s", error)
        except Exception:
            log.exception("Driving a rollout failed; it is tried again")
