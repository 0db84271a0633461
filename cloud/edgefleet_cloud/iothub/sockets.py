"""An event loop of its own for azure-eventhub, that lets go of the sockets which the library keeps.

The library leaves the socket of a connection that the other side has ended to the garbage
collector. Here such a socket is closed at once, and what is left is closed in the end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from weakref import WeakSet


class TidyLoop(asyncio.SelectorEventLoop):
    """A loop in which no connection outlives the other side's end of it, nor the loop."""

    def __init__(self) -> None:
        super().__init__()
        self._made: WeakSet[asyncio.BaseTransport] = WeakSet()

    async def create_connection(  # type: ignore[override]  # typeshed spells every argument out
        self, protocol_factory: Callable[[], Any], *args: Any, **kwargs: Any
    ) -> tuple[asyncio.BaseTransport, Any]:
        """Connect, as any loop does; half a connection is none."""

        def factory() -> Any:
            protocol = protocol_factory()
            told = protocol.eof_received

            def eof_received() -> bool:
                told()
                return False  # do not stay half open

            protocol.eof_received = eof_received
            return protocol

        made = await super().create_connection(factory, *args, **kwargs)
        self._made.add(made[0])
        return made

    def close(self) -> None:
        """End every connection that is left, and the loop."""
        if not self.is_closed():
            for transport in list(self._made):
                transport.abort()  # type: ignore[attr-defined]  # sockets have it
            self.run_until_complete(asyncio.sleep(0))
        super().close()
