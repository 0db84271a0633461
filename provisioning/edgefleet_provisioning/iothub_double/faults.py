"""Where a test may break a connection: before or after any packet, in either direction."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Literal

When = Literal["before", "after"]
PACKETS = (
    "in:connect", "in:subscribe", "in:twin-get", "in:report", "in:telemetry", "in:method-answer",
    "in:puback", "in:ping", "in:register", "in:register-status",
    "out:connack", "out:suback", "out:puback", "out:twin", "out:reported", "out:desired",
    "out:method", "out:c2d", "out:pong", "out:register",
)  # fmt: skip
"""What is told apart. `in:` comes from the device, `out:` goes to it."""


@dataclass(eq=False)
class Cut:
    """One fault; `done` is set when it has happened."""

    packet: str
    when: When
    skip: int
    device: str
    done: threading.Event


class Faults:
    """What shall go wrong. Thread-safe; each fault happens once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cuts: list[Cut] = []

    def cut_at(
        self, packet: str, when: When = "before", *, skip: int = 0, device: str = ""
    ) -> threading.Event:
        """End a connection at a packet, without a word, as a cable does that is pulled.

        Args:
            packet: One of `PACKETS`.
            when: `before`: what has come is not looked at, what should go is not sent. `after`:
                what has come is done but nothing is answered, what should go is sent.
            skip: Let so many of these pass.
            device: Of one device alone; "" for any.

        Returns:
            Set when it has happened.
        """
        if packet not in PACKETS:
            raise ValueError(f"There is no packet {packet}; there are {', '.join(PACKETS)}.")
        cut = Cut(packet, when, skip, device, threading.Event())
        with self._lock:
            self._cuts.append(cut)
        return cut.done

    def clear(self) -> None:
        """Forget what has not happened yet."""
        with self._lock:
            self._cuts.clear()

    def due(self, packet: str, when: When, device: str) -> Cut | None:
        """Return the fault that happens here; the dialect asks at each packet."""
        with self._lock:
            for cut in self._cuts:
                if cut.packet == packet and cut.when == when and cut.device in {"", device}:
                    if cut.skip:
                        cut.skip -= 1
                        return None
                    self._cuts.remove(cut)
                    return cut
        return None
