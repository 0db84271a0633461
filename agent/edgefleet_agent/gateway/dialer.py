"""Connects a container's worker to its container: the worker itself may open no socket."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
from pathlib import Path

from edgefleet_agent.ipc import dial

_CONNECT_S = 1.0


class Dialer:
    """Hands connections to one worker for as long as that lives.

    Args:
        folder: Descriptor of the container's folder, see `ipc.dial`; stays the caller's.
    """

    def __init__(self, folder: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._folder = os.dup(folder)
        self._ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours.setblocking(False)
        self._task: asyncio.Task[None] | None = None
        self._loop.add_reader(self._ours, self._on_ask)

    def _on_ask(self) -> None:
        """Take one question at a time; the next waits in the socket."""
        try:
            asked = self._ours.recv(1)
        except BlockingIOError:
            return
        except OSError:
            asked = b""
        self._loop.remove_reader(self._ours)
        if asked:
            self._task = self._loop.create_task(self._answer())

    async def _answer(self) -> None:
        text = _read(self._folder, dial.GONE_FILE)
        with contextlib.suppress(OSError):  # a worker that is gone needs no answer
            if text:
                self._ours.send(dial.GONE + text.encode()[: dial.ANSWER_BYTES - 1])
            else:
                connected = await self._connect()
                if connected is None:
                    self._ours.send(dial.NOT_YET)
                else:
                    with connected:
                        socket.send_fds(self._ours, [dial.HERE], [connected.fileno()])
        if self._folder >= 0:
            self._loop.add_reader(self._ours, self._on_ask)

    async def _connect(self) -> socket.socket | None:
        address = _read(self._folder, dial.ADDRESS)
        try:
            return await self._by_tcp(address) if address else self._by_socket()
        except (OSError, ValueError, TimeoutError):
            return None

    async def _by_tcp(self, address: str) -> socket.socket:
        host, _, port = address.rpartition(":")
        sock = socket.socket(socket.AF_INET)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setblocking(False)
            async with asyncio.timeout(_CONNECT_S):
                await self._loop.sock_connect(sock, (host, int(port)))
        except BaseException:
            sock.close()
            raise
        return sock

    def _by_socket(self) -> socket.socket:
        """Connect to what was looked at: the container may put a link in its socket's place."""
        path = f"{dial.SOCKET_FOLDER}/{dial.SOCKET}"
        fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._folder)
        try:
            if not stat.S_ISSOCK(os.fstat(fd).st_mode):
                raise FileNotFoundError(path)
            sock = socket.socket(socket.AF_UNIX)
            try:
                sock.setblocking(False)  # a full backlog is an answer too
                sock.connect(str(Path("/proc/self/fd", str(fd))))
            except BaseException:
                sock.close()
                raise
        finally:
            os.close(fd)
        return sock

    def close(self) -> None:
        """Give up folder and socket."""
        self._loop.remove_reader(self._ours)
        if self._task is not None:
            self._task.cancel()
        self._ours.close()
        self.theirs.close()
        os.close(self._folder)
        self._folder = -1


def _read(folder: int, name: str) -> str:
    """Return a short file of the folder that only the agent writes; '' if it is not there."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        return ""
    with os.fdopen(fd, "rb") as file:
        return file.read(dial.ANSWER_BYTES).decode(errors="replace").strip()
