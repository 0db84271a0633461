"""How much anonymous memory some work took at most, looked at while it goes on."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

from edgefleet_agent.worker import sandbox

PERIOD_S = 0.004
"""Short beside the load of any model that matters; a look costs some 10 microseconds."""


class Peak:
    """A context that watches this process; the kernel keeps no such maximum.

    Memory that belongs to files is not counted: it can be given back at any time.

    Attributes:
        kb: The most that was seen above what was there at the start.
    """

    def __init__(self) -> None:
        self.kb = 0
        self._begun = sandbox.anonymous_kb()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak", daemon=True)

    def __enter__(self) -> Self:
        """Begin to watch."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End watching, with a last look."""
        self._over.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._over.wait(PERIOD_S):
            self._look()

    def _look(self) -> None:
        self.kb = max(self.kb, sandbox.anonymous_kb() - self._begun)
