"""What a client of the fast path is sent: now as far as it reads, the rest later."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable

from edgefleet_agent.gateway.unread import Reader, Unread


class Outbox:
    """Sends on one socket.

    Args:
        sock: The client's.
        owner: Whose client it is; told to abort if nothing is read.
        unread: Where what is not read is counted.
        emptied: Called once everything has gone out that had to wait.
        broken: Called once the client is gone.
    """

    def __init__(
        self,
        sock: socket.socket,
        owner: Reader,
        unread: Unread,
        emptied: Callable[[], None],
        broken: Callable[[], None],
    ) -> None:
        self._sock = sock
        self._owner = owner
        self._unread = unread
        self._emptied = emptied
        self._broken = broken
        self._loop = asyncio.get_running_loop()
        self._parts: deque[bytes] = deque()
        self.size = 0  # bytes that wait

    def __bool__(self) -> bool:
        """Tell whether something waits."""
        return bool(self._parts)

    def send(self, head: bytes, body: bytes) -> None:
        """Send a frame."""
        sent = 0
        if not self._parts:
            try:
                sent = self._sock.sendmsg([head, body])
            except (BrokenPipeError, ConnectionResetError):
                self._broken()
                return
            except BlockingIOError:
                pass
        if sent == len(head) + len(body):
            return
        if not self._parts:
            self._loop.add_writer(self._sock, self._on_writable)
        part = (head + body)[sent:]
        self._parts.append(part)
        self.size += len(part)
        self._unread.owes(self._owner, self.size)

    def _on_writable(self) -> None:
        try:
            while self._parts:
                part = self._parts[0]
                sent = self._sock.send(part)
                self.size -= sent
                if sent < len(part):
                    self._parts[0] = part[sent:]
                else:
                    self._parts.popleft()
        except BlockingIOError:
            return
        except OSError:
            self._broken()
            return
        self._loop.remove_writer(self._sock)
        self._unread.paid(self._owner)
        self._emptied()

    def close(self) -> None:
        """Forget what was not sent; the socket is still open."""
        self._loop.remove_writer(self._sock)
        self._parts.clear()
        self.size = 0
        self._unread.paid(self._owner)
