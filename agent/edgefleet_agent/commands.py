"""What a slot can be told; it takes one after another."""

from __future__ import annotations

from typing import NamedTuple

from edgefleet_agent.ipc.control import Event
from edgefleet_agent.journal import VersionRef
from edgefleet_shared.messages import SlotAssignment


class Assign(NamedTuple):
    """A signed assignment names this slot."""

    target: SlotAssignment
    blobs: str


class Recover(NamedTuple):
    """A gateway has come up, or agentd has."""


class Quarantined(NamedTuple):
    """The gateway has given a digest up."""

    event: Event


class Forbid(NamedTuple):
    """The security floor is above a version that stands by."""

    version: VersionRef


class Nudge(NamedTuple):
    """What this slot waits for may have come."""


class Quit(NamedTuple):
    """agentd is ending."""


Command = Assign | Recover | Quarantined | Forbid | Nudge | Quit
