"""Windows of what each model digest answered: exact differences of the gateway's counters.

The last reading is kept in the outbox in the same transaction as the windows made from it, so that
a crash of agentd neither loses an answer nor counts one twice.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import msgspec

from edgefleet_agent.ipc.control import DigestStats
from edgefleet_agent.outbox import Outbox
from edgefleet_shared import histogram, strict_json
from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.messages import TelemetryWindow

NOTE = "telemetry"
NOTE_BYTES = 1024 * 1024


class Reading(msgspec.Struct, frozen=True):
    """Counters as they stood when the last window closed, and in which gateway."""

    boot: str
    at: str
    digests: dict[str, DigestStats]


class Telemetry:
    """Turns readings of the gateway into windows in the outbox; may be called from any thread.

    Args:
        outbox: Where windows and the last reading go.
        stamp: Gives the device's time as RFC 3339 text.
    """

    def __init__(self, outbox: Outbox, stamp: Callable[[], str]) -> None:
        self._outbox, self._stamp = outbox, stamp
        self._lock = threading.Lock()
        self._last = _restore(outbox.note(NOTE)) or Reading("", stamp(), {})

    def last_reading(self, boot: str) -> dict[str, DigestStats]:
        """Return the counters when the last windows closed; none for another gateway."""
        with self._lock:
            return dict(self._last.digests) if self._last.boot == boot else {}

    def close_windows(self, boot: str, stats: Sequence[DigestStats]) -> None:
        """Close every digest's window at this reading and begin the next.

        Args:
            boot: The gateway's boot id; another than last time means counters began at zero.
            stats: A fresh reading.
        """
        with self._lock:
            last, now = self._last, self._stamp()
            same = boot == last.boot
            windows = [
                window
                for digest in stats
                if (window := _window(digest, last.digests if same else {}, last.at, now))
            ]
            self._last = Reading(boot, now, {digest.digest: digest for digest in stats})
            self._outbox.add("telemetry", *windows, note=(NOTE, strict_json.encode(self._last)))


def _window(
    now: DigestStats, last: dict[str, DigestStats], start: str, end: str
) -> TelemetryWindow | None:
    before = last.get(now.digest)
    if before is not None and before.requests > now.requests:
        before = None  # unloaded and loaded again between two readings

    def grown(name: str) -> int:
        value: int = getattr(now, name) - (getattr(before, name) if before else 0)
        return max(0, value)

    window = TelemetryWindow(
        start=start,
        end=end,
        slot=now.model,
        digest=now.digest,
        version=now.version,
        requests=grown("requests"),
        client_errors=grown("client_errors"),
        server_errors=grown("server_errors"),
        rejected=grown("rejected"),
        nonfinite=grown("nonfinite"),
        replayed=grown("replayed"),
        crashes=grown("crashes"),
        latency=histogram.difference(now.latency, before.latency if before else {}),
        compute=histogram.difference(now.compute, before.compute if before else {}),
        memory_kb=now.memory_kb,
        accelerated_pct=now.accelerated_pct,
    )
    quiet = not any((
        window.requests, window.client_errors, window.server_errors, window.rejected,
        window.replayed, window.crashes,
    ))  # fmt: skip
    # An active model that nobody asked says so; a standby that nobody asked has nothing to say.
    return None if quiet and now.role != "active" else window


def _restore(data: bytes | None) -> Reading | None:
    if data is None:
        return None
    try:
        return strict_json.decode(data, Reading, max_bytes=NOTE_BYTES, what="telemetry note")
    except InvalidInputError:
        return None  # another version of agentd wrote it; the next window begins now
