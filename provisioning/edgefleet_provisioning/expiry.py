"""What expires soon, by role: the operator's side of a cron job. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import NamedTuple

from edgefleet_shared.trust import LIFE_DAYS

RENEWED_BY_SERVER = frozenset({"snapshot", "timestamp"})


class Expiring(NamedTuple):
    """A role that ends soon: when, in how many whole days (negative: it has), and what to do."""

    role: str
    expires: datetime
    days: int
    renew: str


def soon(ends: Mapping[str, datetime], now: datetime, days: int | None) -> list[Expiring]:
    """Return what ends soon, the next first.

    Args:
        ends: Role to the end of its metadata's life.
        now: Aware.
        days: How soon; None: a third of each role's life. The server renews its own roles at half
            of theirs, so they are named once they have ended: then it is away.
    """
    found = []
    for role, end in ends.items():
        life = timedelta(days=LIFE_DAYS[role.partition("/")[0]])
        online = role in RENEWED_BY_SERVER
        window = timedelta(0) if online else life / 3 if days is None else timedelta(days=days)
        if end - now <= window:
            way = "start the server" if online else f"edgefleet trust renew {role}"
            found.append(Expiring(role, end, (end - now).days, way))
    return sorted(found, key=lambda found: found.expires)
