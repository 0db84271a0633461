"""The double's device side: TLS on 8883, WebSockets on 443, in a thread of its own."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from edgefleet_provisioning.iothub_double import wire
from edgefleet_provisioning.iothub_double.admission import UNAVAILABLE, RefusedError, admit
from edgefleet_provisioning.iothub_double.authority import DeviceTls
from edgefleet_provisioning.iothub_double.codec import Connect
from edgefleet_provisioning.iothub_double.device_peer import DevicePeer
from edgefleet_provisioning.iothub_double.dialect import Connection, Link, Peer
from edgefleet_provisioning.iothub_double.dps_peer import DpsPeer
from edgefleet_provisioning.iothub_double.faults import Faults
from edgefleet_provisioning.iothub_double.provisioning import Provisioning
from edgefleet_provisioning.iothub_double.state import Azure

MQTT_PORT, HTTPS_PORT = 8883, 443
_TICK_S = 0.1
_START_S = 30.0
_T = TypeVar("_T")


class DeviceServer:
    """Serves devices of all hubs, on any number of addresses.

    Args:
        azure: Their state.
        tls: What devices meet.
        faults: What shall go wrong.
    """

    def __init__(self, azure: Azure, tls: DeviceTls, faults: Faults) -> None:
        self.provisioning: Provisioning | None = None
        """Who answers `{scope}/registrations/..`."""
        self.forward: tuple[str, int] | None = None
        """Where a request on 443 that is no WebSocket goes: a plain HTTP server."""
        self.refusals: deque[tuple[str, str]] = deque(maxlen=1000)
        """Who was not let in or was thrown out, and why."""
        self.refusing: set[str] = set()
        """Hubs (by host) that are "unavailable" to whoever connects."""
        self._azure, self._tls, self._faults = azure, tls, faults
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(_quiet)
        self._thread = threading.Thread(target=self._run, name="azure-double", daemon=True)
        self._servers: dict[str, list[asyncio.Server]] = {}
        self._ticker: asyncio.Task[None] | None = None
        self._connections: dict[Connection, asyncio.Task[Any]] = {}

    def start(self) -> None:
        """Begin, without an address."""
        self._thread.start()

    def listen(self, address: str, *, websockets: bool = True) -> None:
        """Serve on an address.

        Raises:
            OSError: It is taken, or 443 is not ours to take.
        """
        self._do(self._listen(address, websockets))

    def unlisten(self, address: str) -> None:
        """Serve no longer on an address; connections there go on until they are cut."""
        self._do(self._unlisten(address))

    def cut(self, chosen: Callable[[Peer | None], bool] = lambda _: True) -> int:
        """End connections without a word; return how many.

        Args:
            chosen: Given who is connected; None while that is not known.
        """

        async def act() -> int:
            found = [c for c in list(self._connections) if chosen(c.peer)]
            for connection in found:
                connection.link.muted = True
                connection.link.wire.abort()
            return len(found)

        return self._do(act())

    def stop(self) -> None:
        """End everything and wait for it."""
        self._do(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, what: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(_START_S)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._ticker = self._loop.create_task(self._tick())
        self._loop.run_forever()
        self._ticker.cancel()
        with suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._ticker)
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())

    async def _listen(self, address: str, websockets: bool) -> None:
        ways = [(MQTT_PORT, self._mqtt)] + ([(HTTPS_PORT, self._https)] if websockets else [])
        for port, serve in ways:
            server = await asyncio.start_server(
                serve, address, port, ssl=self._tls.context, backlog=1024
            )
            self._servers.setdefault(address, []).append(server)

    async def _unlisten(self, address: str) -> None:
        for server in self._servers.pop(address, []):
            server.close()

    async def _stop(self) -> None:
        for address in list(self._servers):
            await self._unlisten(address)
        tasks = list(self._connections.values())
        for connection in list(self._connections):
            connection.link.muted = True
            connection.link.wire.abort()
        if tasks:
            await asyncio.wait(tasks, timeout=5)
        own = {asyncio.current_task(), self._ticker}
        for task in asyncio.all_tasks() - own:
            task.cancel()
        await asyncio.sleep(0)

    async def _tick(self) -> None:
        """End connections whose time is over; the double's clock may have been moved."""
        while True:
            now = self._azure.clock.now()
            for connection in list(self._connections):
                why = connection.overdue(now)
                if why:
                    self._refuse(connection.link.device, why)
                    connection.link.muted = True
                    connection.link.wire.abort()
            await asyncio.sleep(_TICK_S)

    async def _mqtt(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._serve(wire.TlsWire(reader, writer))

    async def _https(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        below = wire.TlsWire(reader, writer)
        head = await wire.read_head(below)
        answer = wire.upgrade(head) if head else None
        if answer is not None:
            below.write(answer)
            await self._serve(wire.WebSocketWire(below))
        elif head and self.forward is not None:
            await _pipe(head, below, self.forward)
        else:
            below.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n" if head else b"")
            below.close()

    async def _serve(self, below: wire.Wire) -> None:
        connection = Connection(Link(below, self._faults, self._loop), self._admit, self._refuse)
        task = asyncio.current_task()
        assert task is not None, "asyncio calls this in a task"
        self._connections[connection] = task
        try:
            await connection.run()
        except asyncio.CancelledError:
            below.abort()
        finally:
            self._connections.pop(connection, None)

    def _admit(self, hello: Connect, link: Link) -> Peer:
        leaf = link.wire.leaf()
        chain = self._tls.chain(leaf) if leaf else []
        host = hello.username.split("/", 1)[0].lower()
        if host in self.refusing | self._azure.away:
            raise RefusedError(UNAVAILABLE, f"{host} refuses for now.")
        if self.provisioning is not None and "/registrations/" in hello.username:
            return DpsPeer(self.provisioning, hello, chain)
        return DevicePeer(admit(self._azure, hello, chain), hello, link)

    def _refuse(self, device: str, why: str) -> None:
        self.refusals.append((device, why))


async def _pipe(head: bytes, below: wire.TlsWire, target: tuple[str, int]) -> None:
    """Carry a connection to another server, both ways until one side ends."""
    try:
        reader, writer = await asyncio.open_connection(*target)
    except OSError:
        below.abort()
        return
    writer.write(head)

    async def back() -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                below.write(data)
                await below.writer.drain()
        below.close()

    returning = asyncio.ensure_future(back())
    try:
        while data := await below.read():
            writer.write(data)
    finally:
        writer.close()
        with suppress(asyncio.CancelledError, OSError):
            await returning


def _quiet(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Pass over what clients do at will: handshakes that fail, connections that break."""
    if not isinstance(context.get("exception"), (ssl.SSLError, OSError, TimeoutError)):
        loop.default_exception_handler(context)
