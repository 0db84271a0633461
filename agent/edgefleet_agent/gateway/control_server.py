"""The control socket: agentd's requests in, outcomes and events out."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import sys
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from edgefleet_agent.gateway.plane import Plane
from edgefleet_agent.ipc import control, packets
from edgefleet_shared.errors import UnavailableError

_UCRED = struct.Struct("3i")
_LAST_REPLIES_S = 1.0
_BACKLOG_MAX = 1024  # messages that a client may leave unread


class ControlServer:
    """Listens for agentd. Several may come over time, also while an old connection lingers.

    Args:
        plane: Does what is asked.
        shutdown: Awaited for `Shutdown`, before its outcome is sent.
        on_change: Called with the number of connections whenever it changes.
    """

    def __init__(
        self,
        plane: Plane,
        shutdown: Callable[[], Awaitable[None]],
        on_change: Callable[[int], None],
    ) -> None:
        self.plane = plane
        self.shutdown = shutdown
        self.boot = os.urandom(8).hex()
        self._on_change = on_change
        self._loop = asyncio.get_running_loop()
        self._clients: set[Client] = set()
        self._socket: socket.socket | None = None
        plane.on_event = self._broadcast

    def listen(self, path: Path) -> None:
        """Replace a stale socket at `path` and listen there; only this user may connect."""
        path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        mask = os.umask(0o177)
        try:
            self._socket.bind(str(path))
        finally:
            os.umask(mask)
        self._socket.listen(4)
        self._socket.setblocking(False)
        self._loop.add_reader(self._socket, self._on_connect)

    def _on_connect(self) -> None:
        assert self._socket is not None
        try:
            sock, _ = self._socket.accept()
        except OSError:
            return
        raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        if _UCRED.unpack(raw)[1] not in {0, os.geteuid()}:
            sock.close()
            return
        sock.setblocking(False)
        self._clients.add(Client(sock, self))
        self._on_change(len(self._clients))

    def forget(self, client: Client) -> None:
        """Take a closed connection off the list."""
        if client in self._clients:
            self._clients.discard(client)
            self._on_change(len(self._clients))

    def _broadcast(self, event: control.Event) -> None:
        for client in list(self._clients):
            client.send(event)

    async def close(self) -> None:
        """Send what is still to be answered, then close every connection and the socket."""
        if tasks := [task for client in self._clients for task in client.tasks]:
            await asyncio.wait(tasks, timeout=_LAST_REPLIES_S)
        for client in list(self._clients):
            client.close()
        if self._socket is not None:
            self._loop.remove_reader(self._socket)
            self._socket.close()


class Client:
    """One connection of agentd."""

    def __init__(self, sock: socket.socket, server: ControlServer) -> None:
        self._sock = sock
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._unsent: deque[bytes] = deque()
        self.tasks: set[asyncio.Task[None]] = set()
        self._open = True
        self._loop.add_reader(sock, self._on_message)

    def _on_message(self) -> None:
        try:
            received = packets.receive(self._sock)
        except BlockingIOError:
            return
        except (OSError, msgspec.DecodeError) as error:
            sys.stderr.write(f"Closing a control connection: {error}\n")
            self.close()
            return
        if received is None:
            self.close()
            return
        message, files = received
        if not isinstance(message, control.Request):
            _close(files)
            self.close()
            return
        task = self._loop.create_task(self._serve(message, files))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _serve(self, message: control.Request, files: list[int]) -> None:
        plane = self._server.plane
        number = message.id
        reply: control.Reply
        if isinstance(message, control.Prove | control.Prepare | control.Load):
            self.send(await self._with_files(message, files))
            return
        _close(files)
        if isinstance(message, control.Hello):
            reply = control.GatewayState(
                number, os.getpid(), self._server.boot, plane.workers(), plane.sandbox
            )
        elif isinstance(message, control.Flip):
            reply = plane.flip(number, message.model, message.digest)
        elif isinstance(message, control.Canary):
            reply = plane.trials.share(
                number, message.model, message.digest, message.pct, message.lease_s
            )
        elif isinstance(message, control.Shadow):
            reply = plane.trials.shadow(
                number, message.model, message.digest, message.pct, message.lease_s
            )
        elif isinstance(message, control.Hold):
            reply = await plane.hold(number, message.model, message.drain_s)
        elif isinstance(message, control.Unroute):
            reply = plane.unroute(number, message.model)
        elif isinstance(message, control.Release):
            reply = await plane.release(number, message.digest, message.drain_s)
        elif isinstance(message, control.Cancel):
            reply = plane.cancel(number, message.digest)
        elif isinstance(message, control.Stats):
            reply = control.StatsReply(number, plane.stats())
        else:
            await self._server.shutdown()
            reply = control.Outcome(number, ok=True)
        self.send(reply)

    async def _with_files(
        self, message: control.Prove | control.Prepare | control.Load, files: list[int]
    ) -> control.Reply:
        """Do what descriptors came for."""
        plane, number, spec = self._server.plane, message.id, message.spec
        making = isinstance(message, control.Prepare)
        due = spec.descriptors + (control.PREPARED_FILES if making else 0)
        if len(files) != due:
            _close(files)
            text = f"{len(files)} descriptors came for {due} files."
            return control.Outcome(number, ok=False, code="load_failed", message=text)
        if isinstance(message, control.Prepare):
            return await plane.prove(number, spec, files, prepare_bytes=message.max_bytes)
        if isinstance(message, control.Prove):
            return await plane.prove(number, spec, files, measure=message.measure)
        return await plane.load(number, spec, files)

    def send(self, message: control.Message) -> None:
        """Send, or keep until the client reads; a client that never reads is cut off."""
        if not self._open:
            return
        try:
            self._unsent.append(packets.encode(message))
        except UnavailableError as error:
            sys.stderr.write(f"{error}\n")
        if len(self._unsent) > _BACKLOG_MAX:
            self.close()
        else:
            self._flush()

    def _flush(self) -> None:
        while self._unsent:
            try:
                self._sock.send(self._unsent[0])
            except BlockingIOError:
                self._loop.add_writer(self._sock, self._flush)
                return
            except OSError:
                self.close()
                return
            self._unsent.popleft()
        self._loop.remove_writer(self._sock)

    def close(self) -> None:
        """Close the connection; what was asked for goes on."""
        if self._open:
            self._open = False
            self._loop.remove_reader(self._sock)
            self._loop.remove_writer(self._sock)
            self._sock.close()
            self._server.forget(self)


def _close(files: list[int]) -> None:
    for fd in files:
        os.close(fd)
