"""A loaded version in the shadow: it gets copies of live requests, and nobody gets its answers.

A copy is made once the live answer has been sent, so that it can neither delay nor fail it; one at
a time, and after each as long a pause as it took: what cannot keep up is dropped. A request whose
tensors lie in its client's memory is not copied, for the client may change them by then.
"""

from __future__ import annotations

import time

from edgefleet_agent.gateway.agreement import BODY_MAX, Answer, compare
from edgefleet_agent.gateway.backend import Backend
from edgefleet_agent.gateway.pending import Pending
from edgefleet_agent.gateway.trials import Trial
from edgefleet_agent.ipc.control import Shadowed
from edgefleet_shared.histogram import Counts, bucket
from edgefleet_shared.manifest import Golden

_ALL = 100
_DEADLINE_NS = 30 * 10**9
_LARGEST = 2.0**53


class Nobody:
    """Who gets a copy's answer. Implements `pending.Asker`."""

    def who(self) -> bytes:
        """Return nothing: it is no client."""
        return b""

    def answer(self, status: int, body: bytes, json_length: int, retry_after_s: int = 0) -> None:
        """Drop the answer."""


class Shadow(Trial):
    """Copies a share of the answered requests, compares, counts.

    Args:
        backend: The version in the shadow.
        pct: How many of the requests are copied, in percent.
    """

    __slots__ = (
        "_compute", "_counts", "_due", "_largest", "_live", "_not_before", "_tolerance",
    )  # fmt: skip

    def __init__(self, backend: Backend, pct: int) -> None:
        super().__init__(backend, pct)
        golden = backend.spec.golden or Golden("", 0)
        self._tolerance = golden.rtol, golden.atol
        self._due = 0
        self._live: Answer | None = None  # of the request that is copied just now
        self._not_before = 0
        self._counts = dict.fromkeys(
            ("requests", "errors", "nonfinite", "compared", "agreed", "dropped"), 0
        )
        self._compute: Counts = {}
        self._largest = 0.0

    def takes(self, client: bytes) -> bool:
        """Return False: no client gets its answers."""
        del client
        return False

    def saw(self, pending: Pending, body: bytes, json_length: int) -> None:
        """Copy a request that the active version has answered, if it is one of the share."""
        if pending.pinned is not None or pending.backend is not pending.route.active:
            return
        self._due += self.pct
        if self._due < _ALL:
            return
        self._due -= _ALL
        shared, now = pending.shared, time.monotonic_ns()
        foreign = shared is not None and bool(shared.slots)
        long = len(body) > BODY_MAX
        # A copy that its worker died on was never answered; the worker is not ready then.
        busy = self._live is not None or now < self._not_before or self.backend.busy
        if foreign or long or busy or not self.backend.ready:
            self._counts["dropped"] += 1
            return
        copy = Pending(
            Nobody(), pending.route, pending.body, pending.json_length, now, now + _DEADLINE_NS,
            self.backend, shared,
        )  # fmt: skip
        copy.done, copy.trial = True, self  # nobody waits, and nobody asks it again
        self._live = Answer(body, json_length, shared is not None)
        self.backend.ask(copy)

    def copied(
        self,
        pending: Pending,
        status: int,
        body: bytes,
        json_length: int,
        spent: int,
        nonfinite: bool,
    ) -> None:
        """Count and compare the answer to a copy."""
        live, self._live = self._live, None
        self._not_before = time.monotonic_ns() + max(spent, time.monotonic_ns() - pending.arrived)
        counts = self._counts
        if status != 200:
            counts["errors"] += 1
            return
        counts["requests"] += 1
        counts["nonfinite"] += nonfinite
        index = bucket(spent)
        self._compute[index] = self._compute.get(index, 0) + 1
        if live is None or len(body) > BODY_MAX:
            return
        found = compare(live, Answer(body, json_length, live.framed), *self._tolerance)
        counts["compared"] += 1
        counts["agreed"] += found.agree
        self._largest = max(self._largest, found.largest)

    def read(self, number: int) -> Shadowed:
        """Return what has been counted."""
        largest = int(min(self._largest * 1e6, _LARGEST))
        return Shadowed(
            number, compute=dict(self._compute), max_difference_ppm=largest, **self._counts
        )
