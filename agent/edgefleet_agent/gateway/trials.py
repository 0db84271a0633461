"""A loaded version on trial: for a while it answers a share of a model's requests.

Which client is of the share is decided by a hash, so that each stays on one version. A trial is a
lease that agentd renews: without agentd it ends, and what was active answers everything. It ends as
well with the trial version's worker, and with any other move of the route.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from hashlib import blake2b
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgefleet_agent.gateway.backend import Backend
    from edgefleet_agent.gateway.pending import Pending

_PARTS = 10_000


class Trial:
    """What answers a share, of how many, and until when.

    Args:
        backend: The version on trial.
        pct: Its share of the clients, in percent.
    """

    __slots__ = ("_salt", "_timer", "backend", "pct")

    def __init__(self, backend: Backend, pct: int) -> None:
        self.backend = backend
        self.pct = pct
        self._salt = backend.digest.encode()[-32:]  # another version is tried on other clients
        self._timer: asyncio.TimerHandle | None = None

    def takes(self, client: bytes) -> bool:
        """Return whether a client is of the share."""
        found = blake2b(client, digest_size=8, key=self._salt).digest()
        return int.from_bytes(found) % _PARTS < self.pct * (_PARTS // 100)

    def saw(self, pending: Pending, body: bytes, json_length: int) -> None:
        """Take note of what the active version has answered; of no interest to a share."""

    def copied(
        self,
        pending: Pending,
        status: int,
        body: bytes,
        json_length: int,
        spent: int,
        nonfinite: bool,
    ) -> None:
        """Take an answer that nobody waits for; of no interest to a share."""

    def renew(self, lease_s: float, over: Callable[[], None]) -> None:
        """Go on for so many seconds from now; `over` is called if nobody renews it again."""
        self.cancel()
        self._timer = asyncio.get_running_loop().call_later(lease_s, over)

    def cancel(self) -> None:
        """Stop the clock."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
