"""The Event Hubs-compatible endpoint: AMQP over TCP and over TLS, in a thread of its own."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from edgefleet_provisioning.iothub_double.amqp_connection import Connection, Times
from edgefleet_provisioning.iothub_double.amqp_nodes import Entity, EventDesk, Namespace

_Found = TypeVar("_Found")
_PATIENCE_S = 10.0


class EventHubsServer:
    """Serves the event hubs of a namespace.

    Args:
        namespace: What it serves; add to it by `add`.
        address: Where it listens.
        port: For plain TCP (`UseDevelopmentEmulator=true`); 0: any.
        tls: For TLS; None: not served.
        tls_port: For TLS; azure-eventhub asks for 5671 unless it is told another endpoint.
    """

    def __init__(
        self,
        namespace: Namespace,
        address: str = "127.0.0.1",
        *,
        port: int = 0,
        tls: ssl.SSLContext | None = None,
        tls_port: int = 0,
    ) -> None:
        self.times = Times()
        self.address = address
        self.port = port
        self.tls_port = tls_port
        self._namespace = namespace
        self._tls = tls
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="event-hubs", daemon=True)
        self._servers: list[asyncio.Server] = []
        self._open: dict[Connection, asyncio.Task[None]] = {}
        self._stops: list[Callable[[], None]] = []
        self._told = False

    def start(self) -> None:
        """Listen; the ports are known afterwards."""
        self._thread.start()
        self._do(self._listen())

    def stop(self) -> None:
        """End every connection and the thread."""
        for stop in self._stops:
            stop()
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def add(self, name: str, entity: Entity) -> None:
        """Serve an event hub."""
        self._namespace.entities[name] = entity
        self._stops.append(entity.log.listen(lambda _: self.wake()))

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self._open)

    def readers(self, name: str) -> list[int | None]:
        """Return the epochs of those who read an event hub now; None for one without."""

        async def act() -> list[int | None]:
            return self._namespace.receivers.epochs(name)

        return self._do(act())

    def wake(self) -> None:
        """Have every link look again: at events, at its token's time."""
        if not self._told:
            self._told = True
            self._loop.call_soon_threadsafe(self._wake_all)

    def cut(self) -> int:
        """Break every connection without a word, as a cable does; return how many."""

        async def act() -> int:
            for connection in list(self._open):
                connection.cut()
            return len(self._open)

        return self._do(act())

    def force(self, condition: str = "amqp:connection:forced") -> int:
        """End every connection with a word, as a service does that moves; return how many."""

        async def act() -> int:
            for connection in list(self._open):
                connection.force(condition, "The service was unable to process the request.")
            return len(self._open)

        return self._do(act())

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _do(self, work: Coroutine[Any, Any, _Found]) -> _Found:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def _wake_all(self) -> None:
        self._told = False
        for connection in self._open:
            connection.wake()

    async def _listen(self) -> None:
        plain = await asyncio.start_server(self._serve, self.address, self.port)
        self.port = plain.sockets[0].getsockname()[1]
        self._servers = [plain]
        if self._tls is not None:
            secure = await asyncio.start_server(
                self._serve, self.address, self.tls_port, ssl=self._tls
            )
            self.tls_port = secure.sockets[0].getsockname()[1]
            self._servers.append(secure)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(
            reader, writer, lambda it: EventDesk(self._namespace, it.wake), self.times
        )
        task = asyncio.current_task()
        assert task is not None
        self._open[connection] = task
        try:
            await connection.serve()
        finally:
            self._open.pop(connection, None)

    async def _end(self) -> None:
        # Nobody is let in from now on; who was a moment ago must be in before the server closes,
        # or asyncio drops the connection without closing it.
        for server in self._servers:
            for listening in server.sockets:
                self._loop.remove_reader(listening.fileno())
        await asyncio.sleep(0.01)
        for server in self._servers:
            server.close()
        until = self._loop.time() + _PATIENCE_S
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            for connection in list(self._open):
                connection.cut()
            await asyncio.wait(others, timeout=0.1)
            if self._loop.time() > until:
                break
        await asyncio.sleep(0.01)  # what was cut is closed in the loop's next turns
