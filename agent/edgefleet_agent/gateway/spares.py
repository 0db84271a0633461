"""A worker process that waits for its work, where no zygote can fork one: for accelerators.

Started with the first such worker, so that a device without an accelerator never pays for it. It
has imported its runtime and holds nothing else: a restart after a crash is as quick as from the
zygote, but for the driver's own beginning, which cannot be had before the model is known.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys

from edgefleet_agent.gateway.child import Child
from edgefleet_agent.worker import environment

TAKE_S = 10.0
"""How long a waiting process may take to say that it has its socket; it may still be importing."""


class Spares:
    """At most one waiting process a runtime."""

    def __init__(self) -> None:
        self._waiting: dict[str, tuple[Child, socket.socket]] = {}

    def keep(self, runtime: str) -> None:
        """Start a process that waits, unless there is one; without one the next starts slower."""
        if runtime in self._waiting:
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                pid = execute("edgefleet_agent.worker", ["--spare", "3", runtime], theirs)
            except OSError:
                ours.close()
                return
        self._waiting[runtime] = (Child(pid), ours)

    async def take(self, theirs: socket.socket, runtime: str) -> Child | None:
        """Give the waiting process its socket, and let another wait; None if there was none."""
        child, control = self._waiting.pop(runtime, (None, None))
        if child is None or control is None:
            return None
        self.keep(runtime)
        with control:
            control.setblocking(False)
            try:
                socket.send_fds(control, [b"+"], [theirs.fileno()])
                answer = asyncio.get_running_loop().sock_recv(control, 1)
                taken = await asyncio.wait_for(answer, TAKE_S)
            except (OSError, TimeoutError):
                taken = b""
        if not taken:  # it has died while it waited, or hangs
            child.kill()
            return None
        return child

    async def close(self) -> None:
        """End what waits."""
        waiting, self._waiting = self._waiting, {}
        for child, control in waiting.values():
            control.close()
            child.kill()
        for child, _ in waiting.values():
            with contextlib.suppress(ChildProcessError):
                await child.ended


def execute(module: str, arguments: list[str], sock: socket.socket) -> int:
    """Start `python -m module` with `sock` as fd 3 and the environment that runtimes need."""
    os.set_inheritable(sock.fileno(), True)  # for the case that it is 3 already
    return os.posix_spawn(
        sys.executable,
        [sys.executable, "-P", "-m", module, *arguments],
        {**os.environ, **environment.VARIABLES},
        file_actions=[(os.POSIX_SPAWN_DUP2, sock.fileno(), 3)],
    )
