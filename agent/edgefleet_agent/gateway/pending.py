"""A request that has been taken and not yet answered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from edgefleet_agent.gateway.backend import Backend
    from edgefleet_agent.gateway.fast_slots import Shared
    from edgefleet_agent.gateway.router import Route
    from edgefleet_agent.gateway.trials import Trial


class Asker(Protocol):
    """Who gets the answer: a connection."""

    def who(self) -> bytes:
        """Return what tells one client from another: its own word, or else its connection."""

    def answer(self, status: int, body: bytes, json_length: int, retry_after_s: int = 0) -> None:
        """Take the answer; `json_length` is `frames.NO_JSON` where the body is JSON alone."""


class Pending:
    """One request, kept whole until it is answered, so that it can be asked again.

    Times are nanoseconds on CLOCK_MONOTONIC. `pinned` is the backend of an explicit version;
    `alone` is set once the request has been in a worker that died. `shared` is None for a request
    that is complete in its body. `trial` is the trial that its client is of, if any.
    """

    __slots__ = (
        "alone", "arrived", "asker", "backend", "body", "deadline", "done", "json_length",
        "pinned", "route", "shared", "trial",
    )  # fmt: skip

    def __init__(
        self,
        asker: Asker,
        route: Route,
        body: bytes,
        json_length: int,
        arrived: int,
        deadline: int,
        pinned: Backend | None,
        shared: Shared | None,
    ) -> None:
        self.asker = asker
        self.route = route
        self.body = body
        self.json_length = json_length
        self.arrived = arrived
        self.deadline = deadline
        self.pinned = pinned
        self.shared = shared
        self.backend: Backend | None = None
        self.alone = False
        self.done = False
        self.trial: Trial | None = None
