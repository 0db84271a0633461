"""Serving: the API and what runs beside it, in one event loop, until a signal says stop."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import msgspec
import uvicorn

from edgefleet_cloud.config import Config
from edgefleet_cloud.ports import BackgroundService
from edgefleet_shared.errors import EdgeFleetError, InvalidInputError

_POLL_S = 0.02


class Server:
    """One run of the fleet manager.

    Args:
        app: The ASGI application.
        background: Started before the API answers, in order; stopped after it, in reverse.
        listener: A bound socket.
        config: With the real address in `listen`.
        closing: Called when it stops, before it waits for open requests.
    """

    def __init__(
        self,
        app: object,
        background: Sequence[BackgroundService],
        listener: socket.socket,
        config: Config,
        closing: Callable[[], None],
    ) -> None:
        self._background = background
        self._listener = listener
        self._config = config
        self._uvicorn = _Uvicorn(
            uvicorn.Config(
                app,  # type: ignore[arg-type]  # an ASGI app of whatever kind
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,  # `trusted_proxies` says whose X-Forwarded-For is believed
                lifespan="off",
                timeout_graceful_shutdown=3,
            ),
            closing,
        )

    def stop(self) -> None:
        """Ask it to stop; safe from any thread and from a signal handler."""
        self._uvicorn.should_exit = True

    async def run(self, ready: Callable[[dict[str, object]], None]) -> None:
        """Serve until stopped.

        Args:
            ready: Called once with what the ready file says, when requests are answered.
        """
        async with AsyncExitStack() as stack:
            facts: dict[str, object] = {"api": self._config.api_url}
            for service in self._background:
                await service.start()
                stack.push_async_callback(service.stop)
                facts.update(service.facts())
            facts["pid"] = os.getpid()
            serving = asyncio.create_task(self._uvicorn.serve(sockets=[self._listener]))
            while not self._uvicorn.started and not serving.done():  # noqa: ASYNC110 - has no event
                await asyncio.sleep(_POLL_S)
            if self._uvicorn.started:
                ready(facts)
            await serving


class _Uvicorn(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, closing: Callable[[], None]) -> None:
        super().__init__(config)
        self._closing = closing

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End endless responses first: uvicorn waits for them."""
        self._closing()
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone: `serve` handles them for everything that runs here."""
        yield


def bind(config: Config) -> tuple[socket.socket, Config]:
    """Take the address to listen on; return the configuration with the port that it got.

    Raises:
        InvalidInputError: The address is taken or not ours.
    """
    host, port = config.address()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Named, for asyncio switches Nagle's algorithm off only where it reads this protocol; left
    # out, each answer waits 40 ms for the client's delayed acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise InvalidInputError(
            f"The fleet manager cannot listen on {config.listen}: {error}.",
            code="configuration",
            hint="Choose another `listen` in cloud.toml; port 0 takes any free port.",
        ) from error
    shown = f"[{host}]" if ":" in host else host
    real = f"{shown}:{listener.getsockname()[1]}"
    return listener, msgspec.structs.replace(config, listen=real)


async def serve(server: Server, ready_file: Path | None) -> None:
    """Run a server until SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.stop)

    def ready(facts: dict[str, object]) -> None:
        for name, value in facts.items():
            print(f"{name}: {value}", flush=True)  # noqa: T201 - what the operator waits for
        if ready_file:
            _write_atomically(ready_file, json.dumps(facts).encode())

    await server.run(ready)


def _write_atomically(path: Path, data: bytes) -> None:
    beside = path.with_name(path.name + ".new")
    try:
        beside.write_bytes(data)
        beside.replace(path)
    except OSError as error:
        raise EdgeFleetError(
            f"The ready file {path} cannot be written: {error}.", code="ready_file"
        ) from error
