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

import msgspec

from edgefleet_agent import durable
from edgefleet_shared import strict_json
from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.times import format_time, parse_time

MAX_BYTES = 16 * 1024
MAX_REASON = 500
FILE = "locked.json"


class Lock(msgspec.Struct, frozen=True):
    """Since when, why, and until when; `until` '' = until it is lifted. Times are RFC 3339 UTC."""

    v: Literal[1]
    since: str
    reason: str = ""
    until: str = ""

    def __str__(self) -> str:
        """Say it in a sentence."""
        end = f" until {self.until}" if self.until else ""
        return f"Locked on the device{end}: {self.reason or 'no reason was given'}."


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

    def read(self) -> Lock | None:
        """Return the lock; None if there is none, or its time is over.

        A file that cannot be read is a lock: unknown is not unlocked.
        """
        try:
            data = durable.read_bytes(self._path)
            if data is None:
                return None
            lock = strict_json.decode(data, Lock, max_bytes=MAX_BYTES, what=FILE)
            over = bool(lock.until) and parse_time(lock.until) <= self._now()
        except InvalidInputError as error:
            return Lock(1, "", f"the lock's file is damaged ({error.code}); unlock to remove it")
        return None if over else lock

    def place(self, reason: str, life: timedelta | None) -> Lock:
        """Lock, or lock anew with another reason or end.

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
        lock = Lock(1, format_time(now), reason, until)
        durable.atomic_write(self._path, strict_json.encode(lock))
        return lock

    def lift(self) -> bool:
        """Unlock; return whether there was a lock.

        Raises:
            OSError: It could not be removed.
        """
        there = self._path.exists()
        self._path.unlink(missing_ok=True)
        durable.fsync_folder(self._path.parent)
        return there
