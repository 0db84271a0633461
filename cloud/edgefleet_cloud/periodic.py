"""Something done again and again beside the API, each time in a thread of its own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress

_log = logging.getLogger(__name__)


class Periodic:
    """A background service that calls `action` at once and then every `interval_s` seconds.

    An action that fails is logged and tried again at its next turn.

    Args:
        name: For the log.
        interval_s: Seconds from the end of one call to the next.
        action: May block.
    """

    def __init__(self, name: str, interval_s: float, action: Callable[[], object]) -> None:
        self._name = name
        self._interval_s = interval_s
        self._action = action
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start calling."""
        self._task = asyncio.create_task(self._run(), name=self._name)

    async def stop(self) -> None:
        """Stop calling; a call under way ends by itself."""
        if self._task:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    def facts(self) -> Mapping[str, str]:
        """Return nothing: the ready file need not speak of it."""
        return {}

    async def _run(self) -> None:
        while True:
            try:
                await asyncio.to_thread(self._action)
            except Exception:  # noqa: BLE001 - its next turn comes, whatever it was
                _log.exception("%s failed; next try in %s s", self._name, self._interval_s)
            await asyncio.sleep(self._interval_s)
