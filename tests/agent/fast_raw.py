"""A client of the fast path by hand, which can say anything."""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import socket

from edgefleet_agent.ipc import fast, memfd
from tests.agent.gateways import Gateway, wait_for

WIDE = 50_000
SIZE = 4 * WIDE


class Raw:
    """One connection."""

    def __init__(self, gateway: Gateway, *, hello: bool = True) -> None:
        wait_for(gateway.uds.exists, "the inference socket")
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(gateway.uds))
        self.sock.settimeout(15)
        self.number = 0
        if hello:
            self.sock.sendall(fast.prefix(fast.HELLO, 0))
            kind, _, body = self.receive()
            assert kind == fast.WELCOME
            self.limits = fast.decode_limits(body)

    def send(self, kind: int, head: bytes = b"", inline: bytes = b"", fds=()) -> int:
        self.number += 1
        data = fast.prefix(kind, self.number, len(head), len(inline)) + head + inline
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        sent = self.sock.sendmsg([data], ancillary)
        if sent < len(data):
            self.sock.sendall(data[sent:])
        return self.number

    def receive(self):
        """Return kind, request id and what follows."""
        kind, _, number, head, inline, _ = fast.read_prefix(self._exactly(fast.PREFIX.size))
        return kind, number, self._exactly(head + inline)

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = self.sock.recv(count - len(data))
            assert part, "the gateway closed the connection"
            data += part
        return data

    def refusal(self, number: int | None = None) -> fast.Refusal:
        kind, got, body = self.receive()
        assert kind == fast.REFUSED, kind
        assert number in {None, got}
        return fast.decode_refusal(body)

    def slot(self, number: int, fd: int, size: int = SIZE, access: int = fast.READ):
        """Offer a descriptor and return None, or why it is refused."""
        asked = self.send(fast.HOLD)
        assert self.receive() == (fast.DONE, asked, b"")
        asked = self.send(fast.SLOT, fast.offer(number, access, size), fds=[fd])
        kind, got, body = self.receive()
        assert got == asked
        return None if kind == fast.DONE else fast.decode_refusal(body)

    def closed(self) -> bool:
        """Whether the gateway has closed; waits for it."""
        with contextlib.suppress(ConnectionResetError):
            while self.sock.recv(65536):
                pass
        return True

    def close(self) -> None:
        self.sock.close()


def head(*tensors, areas=(), model="m") -> bytes:
    """Return the head of a request."""
    return fast.encode_head(fast.Head(model, "", tuple(tensors), tuple(areas)))


@contextlib.contextmanager
def memory(size: int = SIZE, seals: int = memfd.SEALS, *, allocate: bool = True, flags: int = 0):
    """A memfd, sealed as far as asked."""
    fd = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | flags)
    try:
        if allocate:
            os.posix_fallocate(fd, 0, size)
        else:
            os.ftruncate(fd, size)
        if seals:
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        yield fd
    finally:
        os.close(fd)
