"""Makes worker processes: forked by the zygote, or started afresh where that is not possible."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections import deque

from edgefleet_agent.gateway.child import Child, describe
from edgefleet_agent.gateway.spares import Spares, execute
from edgefleet_agent.worker import environment
from edgefleet_shared.errors import UnavailableError

_DEATHS = 3  # of the zygote, within _WINDOW_S: then workers are started without it
_WINDOW_S = 60.0


class Spawner:
    """Starts the zygote with the first worker and again when it has died."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._zygote: Child | None = None
        self._control: socket.socket | None = None
        self._waiting: deque[tuple[int, asyncio.Future[int]]] = deque()
        self._number = 0
        self._deaths: deque[float] = deque(maxlen=_DEATHS)
        self._closed = False
        self.forking = True
        self._spares = Spares()

    @property
    def zygote_pid(self) -> int:
        """The zygote's pid, 0 if there is none."""
        return self._zygote.pid if self._zygote else 0

    def start(self) -> None:
        """Start the zygote; it gets ready while the gateway goes on."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = execute("edgefleet_agent.zygote", [], theirs)
        ours.setblocking(False)
        self._control, self._zygote = ours, Child(pid)
        self._zygote.ended.add_done_callback(self._on_death)
        self._loop.add_reader(ours, self._on_reply)

    async def spawn(self, theirs: socket.socket, runtime: str, *, fresh: bool = False) -> Child:
        """Start a worker on its end of a socketpair, which is closed here.

        Args:
            theirs: The worker's end.
            runtime: What it will run its model with; the zygote has it imported before it forks.
            fresh: Not forked: an accelerator's driver does not survive that. From the second on
                the process waits already, with its runtime imported.

        Raises:
            UnavailableError: No process can be made.
        """
        with theirs:
            if fresh and (child := await self._spares.take(theirs, runtime)):
                return child
            while self.forking and not fresh:
                if self._control is None:
                    self.start()
                pid = await self._ask(theirs, runtime)
                if pid > 0:
                    return Child(pid)
                if pid < 0:  # it lives and cannot: threads, or the process limit
                    self.forking = False
            if self._closed:
                raise UnavailableError("The gateway is shutting down.", code="shutting_down")
            try:
                child = Child(execute("edgefleet_agent.worker", ["--fd", "3"], theirs))
            except OSError as error:
                raise UnavailableError(f"No worker can be started: {error}.") from error
            if fresh:
                self._spares.keep(runtime)
            return child

    async def _ask(self, theirs: socket.socket, runtime: str) -> int:
        """Return the new worker's pid, a negative errno, or 0 when the zygote died."""
        assert self._control is not None
        self._number += 1
        answer: asyncio.Future[int] = self._loop.create_future()
        self._waiting.append((self._number, answer))
        try:
            request = environment.REQUEST.pack(self._number, runtime.encode())
            socket.send_fds(self._control, [request], [theirs.fileno()])
        except BlockingIOError:
            self._waiting.pop()
            return -11
        except OSError:
            pass  # it is dying; `_on_death` answers
        return await answer

    def _on_reply(self) -> None:
        assert self._control is not None
        try:
            data = self._control.recv(environment.REPLY.size)
        except (BlockingIOError, ConnectionResetError):
            return
        if not data:
            self._loop.remove_reader(self._control)
            return
        number, pid = environment.REPLY.unpack(data)
        if self._waiting and self._waiting[0][0] == number:
            _, answer = self._waiting.popleft()
            if not answer.done():
                answer.set_result(pid)

    def _on_death(self, ended: asyncio.Future[int]) -> None:
        if self._control is not None:
            self._loop.remove_reader(self._control)
            self._control.close()
        self._control = self._zygote = None
        if not self._closed:
            sys.stderr.write(f"The zygote {describe(ended.result())}.\n")
        self._deaths.append(time.monotonic())
        if self._closed or (
            len(self._deaths) == _DEATHS and self._deaths[-1] - self._deaths[0] < _WINDOW_S
        ):
            self.forking = False
        waiting, self._waiting = self._waiting, deque()
        for _, answer in waiting:
            if not answer.done():
                answer.set_result(0)
        if self.forking and not waiting:
            self.start()

    async def close(self) -> None:
        """End the zygote; workers live on."""
        self._closed = True
        self.forking = False
        await self._spares.close()
        if self._zygote is not None:
            self._zygote.kill()  # it holds nothing that could be lost
            await self._zygote.ended
