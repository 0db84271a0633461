"""Whoever uses the agent's transport: remembers what it is told, sends again what is lost."""

from __future__ import annotations

from typing import Any


class Events:
    """The agent's side: remembers what it is told."""

    def __init__(self) -> None:
        self.connected = 0
        self.disconnected: list[str] = []
        self.desired: list[bytes] = []
        self.asked: list[bytes] = []
        self.refused: list[str] = []

    def on_connected(self) -> None:
        self.connected += 1

    def on_refused(self, reason: str) -> None:
        self.refused.append(reason)

    def on_disconnected(self, reason: str) -> None:
        self.disconnected.append(reason)

    def on_desired(self, payload: bytes) -> None:
        self.desired.append(payload)

    def on_renew(self, payload: bytes) -> None:
        self.asked.append(payload)


class Done:
    """Remembers what a `done` was told."""

    def __init__(self) -> None:
        self.told: list[bool] = []

    def __call__(self, held: bool) -> None:
        self.told.append(held)


def sealed(text: str) -> bytes:
    """Return an envelope that nobody verifies here."""
    return b'{"payload":"' + text.encode() + b'"}'


class Sender:
    """Publishes each payload until the other side holds it, as the agent's outbox does.

    Args:
        publish: Of a transport, given payload and `done`.
        newest: Publish only the newest again, as the agent does with reports.

    Attributes:
        told: How often each attempt was told of; every value must be 1.
        held: Payloads that were said to be held, in that order.
    """

    def __init__(self, publish: Any, *, newest: bool = False) -> None:
        self._publish, self._newest = publish, newest
        self._last = b""
        self.told: list[int] = []
        self.held: list[bytes] = []
        self.lost: list[bytes] = []

    def send(self, payload: bytes) -> None:
        """Publish it once."""
        turn = len(self.told)
        self.told.append(0)
        self._last = payload

        def done(held: bool) -> None:
            self.told[turn] += 1
            (self.held if held else self.lost).append(payload)

        self._publish(payload, done)

    def again(self) -> bool:
        """Publish what was lost once more; return whether everything is held."""
        lost, self.lost = self.lost, []
        for payload in lost[:1] and [self._last] if self._newest else lost:
            self.send(payload)
        return not lost and all(self.told)
