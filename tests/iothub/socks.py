"""A SOCKS5 proxy without passwords, for one test."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
from typing import Self


class SocksServer:
    """Carries connections, and remembers where they went."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.asked: list[tuple[str, int]] = []
        self._threads: list[threading.Thread] = []
        self._over = threading.Event()

    def __enter__(self) -> Self:
        self._spawn(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(10)
        self._listener.close()

    def _spawn(self, target, *given) -> None:
        thread = threading.Thread(target=target, args=given, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._over.is_set():
            ready, _, _ = select.select([self._listener], [], [], 0.05)
            if ready:
                self._spawn(self._serve, self._listener.accept()[0])

    def _serve(self, near: socket.socket) -> None:
        with near, contextlib.suppress(OSError):
            near.recv(near.recv(2)[1])
            near.sendall(b"\x05\x00")
            kind = near.recv(4)[3]
            host = (
                socket.inet_ntoa(near.recv(4)) if kind == 1 else near.recv(near.recv(1)[0]).decode()
            )
            port = struct.unpack(">H", near.recv(2))[0]
            self.asked.append((host, port))
            with socket.create_connection((host, port)) as far:
                near.sendall(b"\x05\x00\x00\x01" + bytes(6))
                self._carry(near, far)

    def _carry(self, near: socket.socket, far: socket.socket) -> None:
        other = {near: far, far: near}
        while not self._over.is_set():
            for one in select.select([near, far], [], [], 0.05)[0]:
                if not (data := one.recv(65536)):
                    return
                other[one].sendall(data)
