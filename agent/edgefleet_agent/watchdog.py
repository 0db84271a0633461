"""Hangs up on a server that is too slow, in whatever the reading thread waits: TLS, headers, body.

A read's own timeout is no help against a byte now and then: each one begins it anew, and between
the first byte of a status line and the last of its headers nobody counts.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from typing import Any, Self

from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection

TICK_S = 0.25
_of_this_thread = threading.local()


class Watchdog:
    """Watches the connections that its thread opens while it is entered.

    Args:
        floor: Bytes a second that must come.
        window: Seconds over which they are counted.
        stop: Hang up at once when this is set: nobody wants it any more.

    Attributes:
        slow: Whether it hung up because too little came.
    """

    def __init__(self, floor: int, window: float, stop: threading.Event) -> None:
        self._floor, self._window, self._stop = floor, window, stop
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._line: socket.socket | None = None
        self._since, self._count = time.monotonic(), 0
        self._thread = threading.Thread(target=self._watch, name="fetch-watchdog", daemon=True)
        self.slow = False

    def __enter__(self) -> Self:
        _of_this_thread.watchdog = self
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        _of_this_thread.watchdog = None
        self._over.set()
        self._thread.join()
        self._let_go()

    def add(self, count: int) -> None:
        """Tell that so many bytes of what is wanted have come."""
        self._count += count

    def take(self, sock: socket.socket) -> None:
        """Watch this connection from now on, by a descriptor of our own: TLS takes the other."""
        with self._lock:
            self._let_go()
            self._line = socket.socket(fileno=os.dup(sock.fileno()))

    def _let_go(self) -> None:
        if self._line is not None:
            self._line.close()
            self._line = None

    def _watch(self) -> None:
        while not self._over.wait(min(TICK_S, self._window)):
            if time.monotonic() - self._since >= self._window:
                self.slow = self.slow or self._count < self._floor * self._window
                self._since, self._count = time.monotonic(), 0
            if self.slow or self._stop.is_set():
                self._hang_up()

    def _hang_up(self) -> None:
        with self._lock, contextlib.suppress(OSError):
            if self._line is not None:
                self._line.shutdown(socket.SHUT_RDWR)


def _take(sock: socket.socket | None) -> None:
    watchdog = getattr(_of_this_thread, "watchdog", None)
    if watchdog is not None and sock is not None:
        watchdog.take(sock)


class _Http(HTTPConnection):
    def _new_conn(self) -> socket.socket:
        sock = super()._new_conn()
        _take(sock)
        return sock

    def request(self, *arguments: Any, **named: Any) -> None:
        _take(self.sock)
        super().request(*arguments, **named)


class _Https(HTTPSConnection):
    def _new_conn(self) -> socket.socket:
        sock = super()._new_conn()
        _take(sock)
        return sock

    def request(self, *arguments: Any, **named: Any) -> None:
        _take(self.sock)
        super().request(*arguments, **named)


class _HttpPool(HTTPConnectionPool):
    ConnectionCls = _Http


class _HttpsPool(HTTPSConnectionPool):
    ConnectionCls = _Https


POOLS = {"http": _HttpPool, "https": _HttpsPool}
"""For `urllib3.PoolManager.pool_classes_by_scheme`."""
