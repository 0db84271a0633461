"""The configuration in the log: what the server was told to be, at each of its starts."""

from __future__ import annotations

import re
from typing import Any

import msgspec
from sqlmodel import Session, col, select

from edgefleet_cloud.config import Config
from edgefleet_cloud.events.tables import EventRow
from edgefleet_cloud.ports import EventSink
from edgefleet_shared.steps import Step

STARTED = "server.started"
_LOGIN = re.compile(r"(?<=://)[^/@]*(?=@)")


def tell_start(session: Session, events: EventSink, config: Config) -> None:
    """Tell that the server starts, with the configuration of the last start and of this one."""
    query = select(EventRow).where(EventRow.type == STARTED).order_by(col(EventRow.id).desc())
    last = session.exec(query.limit(1)).first()
    before, after = last.after if last else None, described(config)
    changed = sorted(key for key in after if (before or {}).get(key) != after[key])
    what = f"with other {', '.join(changed)}" if before and changed else "as before"
    events.record(
        session,
        type=STARTED,
        step=Step.ACCEPT,
        subject="server",
        message="The fleet manager starts for the first time."
        if before is None
        else f"The fleet manager starts, {what}.",
        before=before,
        after=after,
    )


def described(config: Config) -> dict[str, Any]:
    """Return a configuration as events say it; what logs in somewhere is left out of its URLs."""
    found: dict[str, Any] = msgspec.to_builtins(config)
    return {key: _without_logins(value) for key, value in found.items()}


def _without_logins(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_logins(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_logins(inner) for inner in value]
    return _LOGIN.sub("...", value) if isinstance(value, str) else value
