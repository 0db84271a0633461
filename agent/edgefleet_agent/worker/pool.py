"""Threads for runs that are long: the runtime lets go of the interpreter while it computes."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Final

STACK_BYTES: Final = 1 << 20
"""Of each thread: eight megabytes, the usual, would count against the package's memory limit."""


class Pool:
    """Does jobs in their order, several at a time; a job that must be alone is done alone.

    Threads begin with the first job. A job alone waits for those before it to end, and those after
    it wait for it: what a worker dies on is known for certain only then.

    Args:
        threads: How many jobs at a time.
    """

    def __init__(self, threads: int) -> None:
        self.width = threads
        self._jobs: deque[tuple[bool, Callable[[], None]]] = deque()
        self._changed = threading.Condition()
        self._running = 0
        self._alone = False
        self._started = 0

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        with self._changed:
            return not self._jobs and not self._running

    def put(self, job: Callable[[], None], *, alone: bool) -> None:
        """Queue a job; it must not raise."""
        with self._changed:
            self._jobs.append((alone, job))
            if self._started < self.width and self._started < len(self._jobs) + self._running:
                self._start()
            self._changed.notify()

    def _start(self) -> None:
        self._started += 1
        before = threading.stack_size(STACK_BYTES)
        threading.Thread(target=self._run, name=f"run-{self._started}", daemon=True).start()
        threading.stack_size(before)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._startable():
                    self._changed.wait()
                self._alone, job = self._jobs.popleft()
                self._running += 1
            job()
            with self._changed:
                self._running -= 1
                self._alone = False
                self._changed.notify_all()

    def _startable(self) -> bool:
        if not self._jobs or self._alone:
            return False
        alone = self._jobs[0][0]
        return self._running == 0 if alone else self._running < self.width

    def narrow(self) -> None:
        """Do one job at a time from now on."""
        with self._changed:
            self.width = 1
