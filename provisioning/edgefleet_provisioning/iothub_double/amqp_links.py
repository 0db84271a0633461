"""What lies at the two ends of a link of AMQP, without saying what it is."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol


class LinkError(Exception):
    """Why a link is refused or ends.

    Args:
        condition: A symbol of AMQP or of Event Hubs.
        description: What a person reads.
    """

    def __init__(self, condition: str, description: str) -> None:
        super().__init__(description)
        self.condition = condition


class Ask(NamedTuple):
    """What a client wants to receive: an address, its link's name, filters and properties."""

    address: str
    name: str
    filters: dict[Any, Any]
    properties: dict[Any, Any]
    capabilities: list[str]


class Source(Protocol):
    """Where messages come from."""

    def take(self, most: int) -> list[bytes]:
        """Return up to `most` messages; an empty list: none now.

        Raises:
            LinkError: The link must end.
        """
        ...

    def release(self) -> None:
        """The link is gone."""
        ...


class Sink(Protocol):
    """Where messages go."""

    def receive(self, payload: bytes) -> None:
        """Take one message.

        Raises:
            LinkError: The link must end.
        """
        ...


class Desk(Protocol):
    """Opens what a connection's links ask for."""

    def open_source(self, ask: Ask) -> Source:
        """Raise `LinkError` or return a source."""
        ...

    def open_sink(self, address: str) -> Sink:
        """Raise `LinkError` or return a sink."""
        ...


class Wire(Protocol):
    """The connection, as a session sees it."""

    max_frame: int

    def send(self, channel: int, body: bytes) -> None:
        """Write one frame."""
        ...

    def wake(self) -> None:
        """Let sources be asked again soon."""
        ...


@dataclass
class Link:
    """One link, seen from this side."""

    handle: int
    source: Source | None = None
    sink: Sink | None = None
    settled: bool = False
    credit: int = 0
    count: int = 0
    partial: bytearray = field(default_factory=bytearray)
    messages: deque[bytes] = field(default_factory=deque)
    """Taken from the source, not yet begun."""
    frames: deque[bytes] = field(default_factory=deque)
    """What is left of the message that was begun."""
