"""Reads a hub's registry again and again and makes right what events have not told.

One server at a time reads it, under a lease; a page at a time, as slowly as the hub's tier wants.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as LateError
from datetime import timedelta
from functools import partial
from typing import Any, NamedTuple, Protocol

from edgefleet_cloud.database import Database
from edgefleet_cloud.devices.tables import DeviceRow
from edgefleet_cloud.hub_config import IotHub
from edgefleet_cloud.iothub import registry_repository as repository
from edgefleet_cloud.iothub.hearing import Hearing
from edgefleet_cloud.iothub.judge import Finding, judge
from edgefleet_cloud.iothub.strangers import mark, row_of, tell
from edgefleet_cloud.iothub.upstream import Upstream
from edgefleet_cloud.ports import Clock, EventSink, system_clock
from edgefleet_shared.errors import EdgeFleetError, UnavailableError
from edgefleet_shared.times import format_time, parse_time

PAGE = 100
DEVICES = "SELECT * FROM devices"
"""Whole twins: the documentation is of two minds about anything else than `*`."""
MODULES = "SELECT * FROM devices.modules WHERE moduleId = '{}'"
LEASE_S = 120.0
SOON_S, LOOK_S = 20.0, 5.0
"""Least time between two readings, also if something is due; and between two looks at that."""
HANDLE_S = 60.0
STOP_S = 10.0

log = logging.getLogger(__name__)


class Registry(Protocol):
    """A hub's registry, as `rest.HubRest` reads it."""

    def page(
        self, sql: str, following: str = "", page_size: int = PAGE
    ) -> tuple[Sequence[Mapping[str, Any]], str]:
        """Return one page of a query and the token of the next; '' = it was the last."""
        ...

    def device(self, device: str) -> Mapping[str, Any] | None:
        """Return a device's identity as the registry has it, or None."""
        ...


class Pace(Protocol):
    """Knows the tier's limit of queries."""

    def query(self) -> None:
        """Wait until a page of a query may be asked for.

        Raises:
            UnavailableError: Not for now.
        """
        ...


class Writer(Protocol):
    """Makes the registry right."""

    def correct(self, device: str, there: str) -> None:
        """Hear what the registry wrongly says of a device: enabled or disabled."""
        ...

    def missing(self, device: str) -> object:
        """Hear that the registry does not know a device."""
        ...


class Needs(NamedTuple):
    """What a `RegistrySync` works with."""

    registry: Registry
    upstream: Upstream
    database: Database
    events: EventSink
    pace: Pace
    writer: Writer


class RegistrySync:
    """Compares a hub's registry with our devices; a `ports.BackgroundService`.

    Args:
        hub: Whose; `sync_s` says how often.
        needs: What it works with.
        clock: Tells the time.
    """

    def __init__(self, hub: IotHub, needs: Needs, clock: Clock = system_clock) -> None:
        self._hub = hub
        self._needs = needs
        self._clock = clock
        self._owner = secrets.token_hex(8)
        self._over = threading.Event()
        self._wake = threading.Event()
        self._strangers: list[str] = []
        name = f"iothub-sync-{hub.name}"
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    async def start(self) -> None:
        """Begin; the registry is read at once if its turn has come."""
        self._thread.start()

    async def stop(self) -> None:
        """End, after the page that is under way."""
        self._over.set()
        self._wake.set()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, STOP_S)

    def facts(self) -> Mapping[str, str]:
        """Return nothing: the ready file need not speak of it."""
        return {}

    def wake(self) -> None:
        """Read the registry now."""
        self._wake.set()

    def _run(self) -> None:
        while not self._over.is_set():
            asked = self._wake.is_set()
            self._wake.clear()
            try:
                if asked or self._its_time():
                    self.once()
            except EdgeFleetError as error:
                log.warning("The registry of IoT Hub %s is read later: %s", self._hub.name, error)
            except Exception:
                log.exception("Reading the registry of IoT Hub %s failed", self._hub.name)
            self._wake.wait(LOOK_S)

    def _its_time(self) -> bool:
        with self._needs.database.read() as session:
            row = repository.hub(session, self._hub.name)
        if not row.synced:
            return True
        passed = (self._clock() - parse_time(row.synced)).total_seconds()
        return passed >= (SOON_S if row.due else self._hub.sync_s)

    def once(self) -> bool:
        """Read the whole registry; return whether it was our turn.

        Raises:
            UnavailableError: The hub, or the database, does not answer now.
        """
        began = format_time(self._clock())
        if not self._lease():
            return False
        repaired = devices = 0
        self._strangers = []
        with self._needs.database.write() as session:
            row = repository.hub(session, self._hub.name)
            row.due = False  # what is noted from now on may have come too late for this reading
            session.add(row)
        try:
            for page in self._pages(DEVICES):
                devices += len(page)
                repaired += self._page(page, began)
            if self._hub.module:
                for page in self._pages(MODULES.format(self._hub.module.replace("'", "\\'"))):
                    repaired += self._page(page, began)
            self._tell(self._strangers, self._look_for_missing(began))
        except BaseException:
            self._finish(due=True)
            raise
        self._finish(synced=began, devices=devices, repaired=repaired)
        return True

    def _pages(self, sql: str) -> Iterator[Sequence[Mapping[str, Any]]]:
        following = ""
        while True:
            self._keep()
            try:
                self._needs.pace.query()
                rows, following = self._needs.registry.page(sql, following, PAGE)
            except UnavailableError as error:
                asked = float(getattr(error, "retry_after_s", 0.0))
                if not asked:
                    raise
                self._wait(asked)
                continue
            yield rows
            if not following:
                return

    def _wait(self, seconds: float) -> None:
        """Wait, and keep the lease.

        Raises:
            UnavailableError: We stop, or another server has taken our turn.
        """
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0 and not self._over.is_set():
            self._over.wait(min(left, LEASE_S / 4))
            self._keep()

    def _keep(self) -> None:
        if self._over.is_set() or not self._lease():
            raise UnavailableError("It is stopped, or another server reads it.", code="iothub_sync")

    def _lease(self) -> bool:
        now = self._clock()
        until = format_time(now + timedelta(seconds=LEASE_S))
        with self._needs.database.write() as session:
            return repository.lease(session, self._hub.name, self._owner, format_time(now), until)

    def _page(self, page: Sequence[Mapping[str, Any]], began: str) -> int:
        """Make right what one page shows; return how many reports it brought."""
        twins = {str(twin.get("deviceId", "")): twin for twin in page}
        with self._needs.database.read() as session:
            ours = repository.ours(session, list(twins))
            known = repository.known(session, self._hub.name, list(twins))
        now = self._clock()
        findings = {
            device: judge(twin, ours.get(device), known.get(device), self._hub.name, now)
            for device, twin in twins.items()
        }
        for device, finding in findings.items():
            self._mend(device, finding, ours.get(device))
        with self._needs.database.write() as session:
            for device, finding in findings.items():
                row = row_of(session, self._hub.name, device)
                row.looked = began
                row.report = finding.report.sha256 if finding.report else row.report
                if mark(session, row, "unknown" if finding.unknown else None):
                    self._strangers.append(device)
        return sum(finding.report is not None for finding in findings.values())

    def _mend(self, device: str, finding: Finding, ours: DeviceRow | None) -> None:
        if finding.status:
            self._needs.writer.correct(device, finding.status)
        report, online = finding.report, finding.online
        if report is not None and report.payload is not None:
            log.info("IoT Hub %s: a report of %s is taken from its twin", self._hub.name, device)
            self._between(partial(Hearing.take_report, device=device, sealed=report.payload))
        if online is not None and ours is not None:
            self._between(
                partial(Hearing.take_presence, device=device, boot=ours.boot, online=online)
            )

    def _between(self, call: Callable[[Hearing], None]) -> None:
        """Do something in the handler's thread; what breaks the handler is left.

        Raises:
            UnavailableError: Not now.
        """
        try:
            self._needs.upstream.between(call).result(HANDLE_S)
        except (UnavailableError, CancelledError, LateError) as error:
            raise UnavailableError("The handler is busy.", code="iothub_sync") from error
        except Exception:
            log.exception("The handler failed on what IoT Hub %s's registry holds", self._hub.name)

    def _look_for_missing(self, began: str) -> Sequence[str]:
        """Return devices of ours that have left the registry; the index may just be late."""
        name, news = self._hub.name, []
        with self._needs.database.write() as session:
            repository.drop_gone(session, name, began)
            absent = repository.unseen(session, name, began)
        for device in absent:
            self._keep()
            if self._needs.registry.device(device) is not None:
                continue
            with self._needs.database.write() as session:
                if mark(session, row_of(session, name, device), "missing"):
                    news.append(device)
            self._needs.writer.missing(device)
        return news

    def _tell(self, unknown: Sequence[str], missing: Sequence[str]) -> None:
        with self._needs.database.write() as session:
            tell(session, self._needs.events, self._hub.name, "unknown", unknown)
            tell(session, self._needs.events, self._hub.name, "missing", missing)

    def _finish(self, *, due: bool = False, **values: object) -> None:
        with self._needs.database.write() as session:
            row = repository.hub(session, self._hub.name)
            row.due = row.due or due
            for key, value in values.items():
                setattr(row, key, value)
            if row.owner == self._owner:
                row.owner = row.until = ""
            session.add(row)
