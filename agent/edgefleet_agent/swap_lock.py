"""The device owner's lock: while it holds, what is staged does not swap and nothing is stopped.

A robot in the middle of a task, a surgeon, an audit: whoever stands beside the device says when its
models may change. Fetching and proving go on, so that the swap is quick once the lock is lifted. A
rollback is not held up: it ends harm. The lock is a file, so it outlives restarts and power cuts.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from edgefleet_agent import durable
from edgefleet_shared import strict_json
from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.messages import OwnersLock
from edgefleet_shared.times import format_time, parse_time

MAX_BYTES = 16 * 1024
MAX_REASON = 500
MAX_NAME = 64
FILE = "locked.json"


class _File(OwnersLock, frozen=True, kw_only=True):
    v: Literal[1]


class SwapLock:
    """`<state_dir>/locked.json`.

    Args:
        state: The state folder.
        now: The device's time; a clock that is set forward ends a lock early, one that is set back
            makes it last longer.
    """

    def __init__(
        self, state: Path, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._path, self._now = state / FILE, now

    def read(self) -> OwnersLock | None:
        """Return the lock; None if there is none, or its time is over.

        A file that cannot be read is a lock: unknown is not unlocked.
        """
        try:
            data = durable.read_bytes(self._path)
            if data is None:
                return None
            file = strict_json.decode(data, _File, max_bytes=MAX_BYTES, what=FILE)
            lock = OwnersLock(file.since, file.by, file.reason, file.until)
            over = bool(lock.until) and parse_time(lock.until) <= self._now()
        except InvalidInputError as error:
            why = f"the lock's file is damaged ({error.code}); `unlock` removes it"
            return OwnersLock("", "", why)
        return None if over else lock

    def place(self, reason: str, life: timedelta | None, by: str = "") -> OwnersLock:
        """Lock, or lock anew with another reason or end.

        Args:
            reason: Why, for people.
            life: How long; None: until it is lifted.
            by: Who, for people: nobody checks it.

        Raises:
            InvalidInputError: The reason is too long.
            OSError: It could not be written.
        """
        if len(reason) > MAX_REASON:
            raise InvalidInputError(
                f"The reason has {len(reason)} characters; {MAX_REASON} are kept.", code="lock"
            )
        now = self._now()
        until = format_time(now + life) if life else ""
        file = _File(v=1, since=format_time(now), by=by[:MAX_NAME], reason=reason, until=until)
        durable.atomic_write(self._path, strict_json.encode(file))
        return OwnersLock(file.since, file.by, file.reason, file.until)

    def lift(self) -> bool:
        """Unlock; return whether there was a lock.

        Raises:
            OSError: It could not be removed.
        """
        there = self._path.exists()
        self._path.unlink(missing_ok=True)
        durable.fsync_folder(self._path.parent)
        return there
