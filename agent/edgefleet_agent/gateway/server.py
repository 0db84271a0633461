"""The gateway's life: take the run folder, listen, serve, drain, end."""

from __future__ import annotations

import asyncio
import fcntl
import os
import resource
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import IO, NamedTuple

from edgefleet_agent.addresses import parse_address
from edgefleet_agent.gateway.cgroups import Cgroups
from edgefleet_agent.gateway.control_server import ControlServer
from edgefleet_agent.gateway.deaths import DeathBook
from edgefleet_agent.gateway.door import Door
from edgefleet_agent.gateway.endpoints import Endpoints
from edgefleet_agent.gateway.http import Connection
from edgefleet_agent.gateway.intake import Intake
from edgefleet_agent.gateway.launcher import Launcher
from edgefleet_agent.gateway.plane import Plane
from edgefleet_agent.gateway.spawner import Spawner
from edgefleet_agent.worker import sandbox
from edgefleet_shared.errors import InvalidInputError, UnavailableError

BACKLOG = 1024
"""Connections that may wait for accept: a Unix socket refuses the next one at once (EAGAIN)."""
DRAIN_S = 10.0
SPARE = 3072
"""Descriptors beside those of connections: slots of the fast path, models, workers, agentd."""


class Options(NamedTuple):
    """What the command line says; see `config.Inference` for the numbers."""

    control: Path
    uds: Path
    tcp: str
    addr_file: Path
    queue_limit: int
    timeout_s: float
    max_body_bytes: int
    threads: int
    orphan_timeout_s: float
    triton_metrics: bool
    grpc: str
    cgroup: str
    lend_after: int
    max_connections: int
    idle_timeout_s: float


def lock(run_dir: Path) -> IO[str]:
    """Take `gateway.pid` for this process; keep the file open as long as the lock is wanted.

    Raises:
        UnavailableError: Another gateway has it (code `gateway_running`).
    """
    file = (run_dir / "gateway.pid").open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        pid = file.read().strip()
        file.close()
        raise UnavailableError(
            f"A gateway runs already in {run_dir} (pid {pid}).",
            code="gateway_running",
            hint="End it, or use another run_dir.",
        ) from error
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


def _descriptors_for(connections: int) -> int:
    """Have descriptors for so many connections; return for how many there are enough."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, connections + SPARE), hard))
    return min(connections, max(hard - SPARE, hard // 4))


class Gateway:
    """Everything of one gateway process."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        self._closing: asyncio.Task[None] | None = None
        self._orphan: asyncio.TimerHandle | None = None
        self._spawner = Spawner()
        launcher = Launcher(self._spawner, options.threads, Cgroups.find(options.cgroup))
        deaths = DeathBook(options.control.parent / "deaths.json")
        self._plane = Plane(
            launcher, options.queue_limit, options.timeout_s, options.lend_after, deaths
        )
        self._plane.lending.idle_s = options.idle_timeout_s
        self._intake = Intake(
            options.max_body_bytes,
            options.timeout_s,
            _descriptors_for(options.max_connections),
            options.idle_timeout_s,
        )
        self._endpoints = Endpoints(
            self._plane, self._intake.guests, triton_metrics=options.triton_metrics
        )
        self._control = ControlServer(self._plane, self.shutdown, self._on_agents)
        self._servers: list[asyncio.Server] = []
        self._door: Door | None = None

    async def run(self) -> None:
        """Serve until a signal, `Shutdown`, or too long a time without agentd."""
        options = self._options
        sandbox.become_subreaper()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._begin_closing)
        self._spawner.start()
        self._on_agents(0)
        self._control.listen(self._options.control)
        await self._listen()
        if options.grpc:
            self._door = Door(options.grpc, options.uds, options.max_body_bytes, options.timeout_s)
        await self._over.wait()
        await self._control.close()

    async def _listen(self) -> None:
        options = self._options

        def connect() -> Connection:
            return Connection(self._endpoints, self._intake)

        options.uds.unlink(missing_ok=True)
        sock = socket.socket(socket.AF_UNIX)
        mask = os.umask(0o117)
        try:
            sock.bind(str(options.uds))
        finally:
            os.umask(mask)
        self._servers.append(
            await self._loop.create_unix_server(connect, sock=sock, backlog=BACKLOG)
        )
        address = ""
        if options.tcp:
            host, port = parse_address(options.tcp)
            server = await self._listen_on(connect, host, port)
            self._servers.append(server)
            address = "{}:{}".format(*server.sockets[0].getsockname()[:2])
        part = options.addr_file.with_suffix(".part")
        part.write_text(address)
        part.replace(options.addr_file)

    async def _listen_on(
        self, connect: Callable[[], Connection], host: str, port: int
    ) -> asyncio.Server:
        try:
            return await self._loop.create_server(connect, host, port, backlog=BACKLOG)
        except OSError as error:
            raise InvalidInputError(
                f"The address {host}:{port} cannot be had: {os.strerror(error.errno or 0)}.",
                code="configuration",
                hint="Give another inference.tcp; port 0 takes any free port.",
            ) from error

    def _on_agents(self, count: int) -> None:
        """Start or stop the clock that ends a gateway without agentd."""
        if self._orphan is not None:
            self._orphan.cancel()
            self._orphan = None
        if not count and self._options.orphan_timeout_s:
            self._orphan = self._loop.call_later(
                self._options.orphan_timeout_s, self._begin_closing
            )

    def _begin_closing(self) -> None:
        if self._closing is None:
            self._closing = self._loop.create_task(self._close())

    async def shutdown(self) -> None:
        """Drain and end zygote and workers; the process ends soon after this returns."""
        self._begin_closing()
        assert self._closing is not None
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        for server in self._servers:
            server.close()
        if self._door is not None:
            await self._door.close()  # its calls end by way of the connections below
        for connection in self._intake.guests:
            connection.close_when_idle()
        await self._plane.close(DRAIN_S)
        await self._spawner.close()
        for path in (self._options.uds, self._options.control, self._options.addr_file):
            path.unlink(missing_ok=True)
        self._over.set()
