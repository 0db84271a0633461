"""What waits for a run of a model that is run in batches: who goes next, and who goes along.

The oldest goes next, always; those that fit it go along, past others that do not. Nobody waits for
one run more by that than he would in a row without batching.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from edgefleet_agent.worker.joint import Member
from edgefleet_shared.manifest import Batching


class BatchQueue:
    """Requests between the thread that receives them and those that run them.

    Args:
        batching: How many rows, and how long a request may wait for company.
        run_ns: Returns what a run takes, as far as that is known.
    """

    def __init__(self, batching: Batching, run_ns: Callable[[], int]) -> None:
        self._most = batching.max_batch_size
        self._delay_ns = batching.max_queue_delay_microseconds * 1000
        self._run_ns = run_ns
        self._waiting: list[Member] = []
        self._open = 0  # put and not done
        self._gathering = False
        self._settling = False
        self._changed = threading.Condition()

    def put(self, member: Member) -> None:
        """Let a request wait for its run; waits itself while two batches' worth of them do."""
        with self._changed:
            while len(self._waiting) >= 2 * self._most:
                self._changed.wait()
            self._waiting.append(member)
            self._open += 1
            if self._gathering:
                self._changed.notify_all()

    def take(self) -> list[Member]:
        """Return what is to be run next, once it need not wait for company any more.

        Returns:
            The oldest request and those that go along; none if nothing waits.
        """
        with self._changed:
            while self._gathering:
                self._changed.wait()
            self._gathering = True
            while (left := self._patience_ns()) > 0:
                self._changed.wait(left / 1e9)
            self._gathering = False
            self._changed.notify_all()
            taken = self._company()
            chosen = set(map(id, taken))
            self._waiting = [one for one in self._waiting if id(one) not in chosen]
            return taken

    def _patience_ns(self) -> int:
        """Return how long the oldest may still wait: not at all while somebody else waits for it.

        Nor is more than half of what a deadline leaves spent on company.
        """
        if not self._delay_ns or not self._waiting or self._settling:
            return 0
        first, company = self._waiting[0], self._company()
        full = sum(one.rows for one in company) >= self._most
        if first.key is None or full or len(company) < len(self._waiting):
            return 0
        run_ns = self._run_ns()
        until = min((one.arrived + one.deadline - run_ns) // 2 for one in company)
        return min(first.arrived + self._delay_ns, until) - time.monotonic_ns()

    def _company(self) -> list[Member]:
        """Return the oldest and, in their order, those that can be run with it."""
        if not self._waiting:
            return []
        first = self._waiting[0]
        chosen, rows = [first], first.rows
        if first.key is None:
            return chosen
        for one in self._waiting[1:]:
            if one.key != first.key:
                continue
            if rows + one.rows > self._most:
                break
            chosen.append(one)
            rows += one.rows
        return chosen

    def done(self, count: int) -> None:
        """Say that so many requests are answered."""
        with self._changed:
            self._open -= count
            if not self._open:
                self._changed.notify_all()

    def settle(self) -> None:
        """Wait until everything that was put is answered; nobody else comes meanwhile."""
        with self._changed:
            self._settling = True
            self._changed.notify_all()
            while self._open:
                self._changed.wait()
            self._settling = False
