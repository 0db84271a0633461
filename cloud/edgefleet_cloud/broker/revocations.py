"""The revocation lists: signed daily and at each revocation, written, and proved to be in force.

A broker whose list has expired refuses every client; one that has not read the newest list lets a
revoked device in. So each list revokes a certificate of its own making, the canary: a broker that
refuses the canary has read the list.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from cryptography import x509

from edgefleet_cloud import durable
from edgefleet_cloud.authority import repository
from edgefleet_cloud.authority.issuing import CLOCK_SLACK, DeviceCa, Revoked
from edgefleet_cloud.broker.credentials import write_pair
from edgefleet_cloud.broker.probe import Address, Answer, client_context, connect
from edgefleet_cloud.database import Database
from edgefleet_cloud.ports import Clock, EventSink, system_clock
from edgefleet_shared.errors import EdgeFleetError
from edgefleet_shared.identifiers import PROBE
from edgefleet_shared.steps import Step
from edgefleet_shared.times import format_time, parse_time

LIFE = timedelta(days=7)
RENEW_AFTER = timedelta(days=1)
ALARM = timedelta(hours=48)
ALARM_EVERY = timedelta(hours=6)
LIST = "crl.pem"
CANARY = "canary.pem"

log = logging.getLogger(__name__)


class Places(NamedTuple):
    """Where lists go: our own folder, a second path or None, and who is told to read them."""

    folder: Path
    copy: Path | None
    reload: Callable[[], None]


class RevocationLists:
    """Keeps the newest lists where the broker reads them; safe to share between threads.

    Args:
        ca: Returns the authority as it stands now.
        database: Knows what is revoked.
        events: Told of lists and of alarms.
        places: Where they go.
        clock: Tells the time.
    """

    def __init__(
        self,
        ca: Callable[[], DeviceCa],
        database: Database,
        events: EventSink,
        places: Places,
        clock: Clock = system_clock,
    ) -> None:
        self._ca = ca
        self._database = database
        self._events = events
        self._places = places
        self._clock = clock
        self._lock = threading.Lock()
        self._held: tuple[str, ...] | None = None
        self._alarmed: datetime | None = None

    @property
    def path(self) -> Path:
        """The newest lists, PEM, one of each authority."""
        return self._places.folder / LIST

    def until(self) -> datetime | None:
        """Return when the written lists expire, or None if there are none."""
        found = _read(self.path)
        return min((each.next_update_utc or _LONG_AGO for each in found), default=None)

    def keep(self) -> None:
        """Publish if the lists are a day old or miss something; raise the alarm if that fails."""
        try:
            if self._is_due():
                self.publish()
        except (EdgeFleetError, OSError) as error:
            log.warning("The revocation lists cannot be renewed: %s", error)
            self._alarm(str(error))

    def publish(self) -> None:
        """Sign the lists anew, write them, and have the broker read them.

        Raises:
            UnavailableError: The authority cannot be read (code `device_ca`).
            OSError: They cannot be written; the ones before stand.
        """
        with self._lock:
            ca = self._ca()
            now = self._next_time()
            revoked, held = self._revoked(ca)
            canary = write_pair(
                self._places.folder / CANARY, lambda key: ca.sign_client(key, PROBE, now, LIFE)
            )
            lists = ca.crl(
                [*revoked, Revoked(canary, now)], int(now.timestamp()), now, LIFE
            ).encode()
            for path in filter(None, (self.path, self._places.copy)):
                durable.write(path, lists)
            self._held = held
        self._places.reload()
        log.info("Revocation lists until %s: %d revoked", format_time(now + LIFE), len(revoked))

    def in_force(self, address: Address) -> bool:
        """Return whether the broker has read the newest lists: it then refuses the canary."""
        try:
            context = client_context(self._ca().pem, self._places.folder / CANARY)
        except OSError:
            return False
        return connect(address, context, PROBE) is Answer.REFUSED

    def _is_due(self) -> bool:
        ca = self._ca()
        lists = _read(self.path)
        if len(lists) != len(ca.issuers):
            return True  # an authority without its list locks its devices out
        begun = max(_begin(each) for each in lists)
        stale = self._clock() - begun >= RENEW_AFTER or begun > self._clock() + CLOCK_SLACK
        copy = self._places.copy
        missing = copy is not None and not copy.exists()
        return stale or missing or self._held != self._revoked(ca)[1]

    def _revoked(self, ca: DeviceCa) -> tuple[Sequence[Revoked], tuple[str, ...]]:
        with self._database.read() as session:
            rows = repository.revoked(session, format_time(self._clock()))
        serials = (*(row.serial for row in rows), *(issuer.digest for issuer in ca.issuers))
        return [
            Revoked(int(row.serial, 16), parse_time(row.revoked or "")) for row in rows
        ], serials

    def _next_time(self) -> datetime:
        """Return now, or a moment later than the last list: of two the later-dated one counts."""
        now = self._clock().replace(microsecond=0)
        last = max((_begin(each) for each in _read(self.path)), default=_LONG_AGO)
        if last > now + CLOCK_SLACK:
            log.warning("The last revocation list is dated %s: was the clock wrong?", last)
            return now
        return max(now, last + timedelta(seconds=1))

    def _alarm(self, why: str) -> None:
        now, end = self._clock(), self.until()
        if end is not None and end - now >= ALARM:
            return
        if self._alarmed and now - self._alarmed < ALARM_EVERY:
            return
        self._alarmed = now
        when = f"expire at {format_time(end)}" if end else "were never written"
        message = f"The broker's revocation lists {when}; then no device gets in. {why}"
        log.error(message)
        with self._database.write() as session:
            self._events.record(
                session,
                type="authority.crl_expiring",
                step=Step.TARGET,
                subject="authority/crl",
                message=message,
                data={"level": "error", "until": format_time(end) if end else ""},
            )


_LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)
_END = b"-----END X509 CRL-----\n"


def _read(path: Path) -> Sequence[x509.CertificateRevocationList]:
    """Return the lists in a file; none if it is missing or damaged."""
    try:
        parts = [part + _END for part in path.read_bytes().split(_END) if part.strip()]
        return [x509.load_pem_x509_crl(part) for part in parts]
    except (OSError, ValueError):
        return []


def _begin(found: x509.CertificateRevocationList) -> datetime:
    """Return when a list was signed; the authority dates it back a little."""
    return found.last_update_utc + CLOCK_SLACK
