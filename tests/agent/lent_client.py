"""A client that keeps one connection, and a look at what a worker holds."""

from __future__ import annotations

import array
import fcntl
import json
import socket
import termios
import time
from pathlib import Path
from typing import ClassVar

from tests.agent.gateways import Gateway, fp32, wait_for

GOOD = fp32("x", [1, 2, 3, 4], [1, 4])


def request_bytes(body: dict | bytes, path: str = "/v2/models/m/infer", extra: str = "") -> bytes:
    """Return an inference request as it goes over the wire."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n{extra}\r\n"
    return head.encode() + data


class Client:
    """One connection that stays."""

    every: ClassVar[list[Client]] = []

    @classmethod
    def close_all(cls) -> None:
        """Close what a test has opened and left open."""
        while cls.every:
            cls.every.pop().sock.close()

    def __init__(self, gateway: Gateway, *, tcp: bool = False) -> None:
        if tcp:
            host, _, port = gateway.address.rpartition(":")
            self.sock = socket.create_connection((host, int(port)))
        else:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.connect(str(gateway.uds))
        self.every.append(self)
        self.sock.settimeout(20)
        self._got = b""
        self.worker = 0  # whom it is lent to
        self.headers: dict[str, str] = {}

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.sock.sendall(data)

    def ask(self, body: dict | bytes = b"", **more) -> tuple[int, dict]:
        """Ask for one inference and wait for its answer; without a body for a good one."""
        self.send(request_bytes(body or GOOD, **more))
        return self.answer()

    def answer(self) -> tuple[int, dict]:
        """Return the next answer's status and document; status 0 at the end."""
        while b"\r\n\r\n" not in self._got:
            if not self._more():
                return 0, {}
        head, _, self._got = self._got.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        pairs = [line.partition(": ") for line in lines[1:]]
        self.headers = {name.lower(): value for name, _, value in pairs}
        length = int(self.headers.get("content-length", 0))
        while len(self._got) < length:
            if not self._more():
                return 0, {}
        body, self._got = self._got[:length], self._got[length:]
        return int(lines[0].split()[1]), json.loads(body) if body else {}

    def _more(self) -> bool:
        try:
            part = self.sock.recv(1 << 16)
        except ConnectionResetError:
            part = b""
        self._got += part
        return bool(part)

    def read_by_the_other_side(self) -> None:
        """Wait until all that was sent has been received."""

        def empty() -> bool:
            left = array.array("i", [0])
            fcntl.ioctl(self.sock, termios.TIOCOUTQ, left)
            return not left[0]

        wait_for(empty, "the other side to read")

    def close(self) -> None:
        """Close the connection."""
        self.every.remove(self)
        self.sock.close()


def held(pid: int) -> int:
    """Return how many connections a worker holds: its sockets but the two of the gateway's."""
    count = 0
    for path in Path(f"/proc/{pid}/fd").iterdir():
        try:
            count += str(path.readlink()).startswith("socket:")
        except FileNotFoundError:  # closed meanwhile
            continue
    return count - 2


def lent(gateway: Gateway, pid: int, *, body: dict | None = None, tcp: bool = False) -> Client:
    """Return a connection that the worker `pid` holds."""
    client = Client(gateway, tcp=tcp)
    client.worker = pid
    mine = sum(one.worker == pid for one in Client.every)
    for _ in range(200):
        status, answer = client.ask(body or GOOD)
        assert status == 200, answer
        if held(pid) == mine:
            return client
        time.sleep(0.005)  # a connection of before is still to be closed
    raise AssertionError("The connection was not lent.")
