"""Warnings before a role that people sign ends: in the log and as an event, once a day each."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import NamedTuple, Protocol

from edgefleet_cloud.database import Database
from edgefleet_cloud.ports import Clock, EventSink
from edgefleet_shared.steps import Step
from edgefleet_shared.times import format_time
from edgefleet_shared.trust import LIFE_DAYS

SAY_AGAIN = timedelta(days=1)

_log = logging.getLogger(__name__)


class Expiries(Protocol):
    """Knows when each role that people sign ends."""

    def expiries(self) -> dict[str, datetime]:
        """Return the end by the role's name."""
        ...


class Expiring(NamedTuple):
    """A role in the last third of its life, or past its end."""

    role: str
    expires: datetime
    expired: bool

    @property
    def message(self) -> str:
        """What to tell people, in one sentence."""
        end = format_time(self.expires)
        if self.expired:
            return f"{self.role} expired at {end}: devices change nothing until it is renewed."
        return f"{self.role} expires at {end}: `edgefleet trust renew {self.role}` renews it."


def expiring(expiries: Mapping[str, datetime], now: datetime) -> list[Expiring]:
    """Return the roles that have at most a third of their life left."""
    found = []
    for role, end in expiries.items():
        life = timedelta(days=LIFE_DAYS[role.partition("/")[0]])
        if end - now <= life / 3:
            found.append(Expiring(role, end, end <= now))
    return found


class ExpiryWatch:
    """Says what is expiring.

    Args:
        trust: Knows the roles.
        database: Where the events go.
        events: Told once a day of each.
        clock: Tells the time.
    """

    def __init__(
        self,
        trust: Expiries,
        database: Database,
        events: EventSink,
        clock: Clock,
    ) -> None:
        self._trust = trust
        self._database = database
        self._events = events
        self._clock = clock
        self._said: dict[tuple[str, datetime, bool], datetime] = {}

    def look(self) -> None:
        """Warn of what is expiring, unless it was said within a day."""
        now = self._clock()
        for found in expiring(self._trust.expiries(), now):
            said = self._said.get(found)
            if said is not None and now - said < SAY_AGAIN:
                continue
            with self._database.write() as session:
                self._events.record(
                    session,
                    type="trust.expired" if found.expired else "trust.expiring",
                    step=Step.ACCEPT,
                    subject=f"trust/{found.role}",
                    message=found.message,
                    data={"expires": format_time(found.expires)},
                )
            _log.warning("%s", found.message)
            self._said[found] = now
