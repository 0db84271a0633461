"""An HTTP server that says exactly what a test wants, byte for byte."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable

Script = Callable[[socket.socket, dict[str, str]], None]
"""Answers one request on its connection, given the request's headers in lower case."""


Tls = Callable[[socket.socket], socket.socket]
"""Does the server's side of a handshake."""


class RawServer:
    """Runs a script for each connection; requests are kept.

    Attributes:
        tls: Comes before it, for a server of HTTPS.
        script: What to do; may be changed while the server runs.
        requests: Headers of every request.
    """

    def __init__(self, script: Script, tls: Tls | None = None) -> None:
        self.script, self.tls = script, tls
        self.requests: list[dict[str, str]] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        scheme, port = "https" if tls else "http", self._socket.getsockname()[1]
        self.url = f"{scheme}://127.0.0.1:{port}/v1/blobs"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            line = self.tls(connection) if self.tls else connection
            try:
                self._answer(line)
            finally:
                line.close()

    def _answer(self, connection: socket.socket) -> None:
        data = b""
        while b"\r\n\r\n" not in data:
            got = connection.recv(65536)
            if not got:
                return
            data += got
        lines = data.decode("latin-1").split("\r\n")[1:]
        pairs = (line.partition(":") for line in lines if line)
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        self.requests.append(headers)
        self.script(connection, headers)

    def close(self) -> None:
        """End; a connection that is being served ends with its script."""
        self._socket.close()


def drip(connection: socket.socket, data: bytes, pause_s: float) -> None:
    """Send one byte at a time, until the other side hangs up."""
    for index in range(len(data)):
        connection.sendall(data[index : index + 1])
        time.sleep(pause_s)


def answer(status: str, body: bytes, *headers: str, length: int | None = None) -> bytes:
    """Return a whole answer; `length` lies about the body's."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}"]
    return "\r\n".join([*lines, *headers, "Connection: close", "", ""]).encode() + body
