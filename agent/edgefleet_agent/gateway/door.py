"""Keeps the gRPC door's process running, where one is configured."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from edgefleet_agent.gateway.child import Child, describe

BACKOFF_MIN_S, BACKOFF_MAX_S = 0.5, 30.0
_STEADY_S = 60.0
_END_S = 6.0
_ENVIRONMENT = {"GRPC_VERBOSITY": "ERROR", "GRPC_ENABLE_FORK_SUPPORT": "0"}


class Door:
    """Starts the process, and again when it ends; its faults never reach the gateway.

    Args:
        listen: Loopback address, `HOST:PORT`.
        uds: The gateway's own socket, which it asks.
        max_body_bytes: Longest message it takes.
        timeout_s: How long a call's message may take to come.
    """

    def __init__(self, listen: str, uds: Path, max_body_bytes: int, timeout_s: float) -> None:
        self.addr_file = uds.parent / "infer-grpc.addr"
        self._command = [
            sys.executable, "-P", "-m", "edgefleet_agent.grpc_door",
            "--uds", str(uds), "--listen", listen, "--addr-file", str(self.addr_file),
            "--max-body-bytes", str(max_body_bytes), "--timeout-s", str(timeout_s),
            "--parent", str(os.getpid()),
        ]  # fmt: skip
        self._child: Child | None = None
        self._task = asyncio.get_running_loop().create_task(self._keep())

    async def _keep(self) -> None:
        loop, delay = asyncio.get_running_loop(), BACKOFF_MIN_S
        while True:
            began = loop.time()
            try:
                self._child = Child(self._start())
                status = await asyncio.shield(self._child.ended)
                sys.stderr.write(f"The gRPC door {describe(status)}; it is started again.\n")
            except OSError as error:
                sys.stderr.write(f"The gRPC door cannot be started: {error}\n")
            delay = BACKOFF_MIN_S if loop.time() - began > _STEADY_S else delay
            await asyncio.sleep(delay)
            delay = min(2 * delay, BACKOFF_MAX_S)

    def _start(self) -> int:
        environ = {**os.environ, **_ENVIRONMENT}
        return os.posix_spawn(sys.executable, self._command, environ)

    async def close(self) -> None:
        """End it; calls that are open get a few seconds."""
        self._task.cancel()
        if self._child is not None and not self._child.ended.done():
            os.kill(self._child.pid, signal.SIGTERM)
            await self._child.end(_END_S)
        self.addr_file.unlink(missing_ok=True)
