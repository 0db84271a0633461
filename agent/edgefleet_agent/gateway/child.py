"""A child process of the gateway, held by a pidfd: no signal can reach a stranger."""

from __future__ import annotations

import asyncio
import os
import signal


class Child:
    """Reaps the process when it ends; `ended` resolves to its status as `os.waitpid` gives it.

    Attributes:
        out_of_memory: Whether its control group's memory limit has killed it, once it has ended.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.out_of_memory = False
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[int] = self._loop.create_future()
        self._fd = os.pidfd_open(pid)
        self._loop.add_reader(self._fd, self._on_end)

    def _on_end(self) -> None:
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if not pid:
            return
        self._loop.remove_reader(self._fd)
        os.close(self._fd)
        self._fd = -1
        self.ended.set_result(status)

    def kill(self) -> None:
        """Send SIGKILL, unless it has ended."""
        if self._fd >= 0:
            signal.pidfd_send_signal(self._fd, signal.SIGKILL)

    async def end(self, patience_s: float) -> int:
        """Wait for the end, killing after `patience_s`; return the status."""
        done, _ = await asyncio.wait([self.ended], timeout=patience_s)
        if not done:
            self.kill()
        return await self.ended


def describe(status: int) -> str:
    """Say in words how a process ended."""
    if os.WIFSIGNALED(status):
        return f"was killed by {signal.Signals(os.WTERMSIG(status)).name}"
    return f"exited with status {os.waitstatus_to_exitcode(status)}"
