"""A gateway of the selftest's own, asked as agentd and as an application ask it."""

from __future__ import annotations

import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec

from edgefleet_agent.gateway_client import GatewayClient, GatewayLostError
from edgefleet_shared.errors import UnavailableError

START_S: Final = 30.0
ANSWER_S: Final = 30.0


class Bench:
    """Starts a gateway in a folder below /tmp, for socket paths are short; ends it again.

    Args:
        command: How to start a gateway, given its run folder.
        environ: Its environment.
    """

    def __init__(self, command: Sequence[str], environ: Mapping[str, str], run: Path) -> None:
        self._command, self._environ, self.run = list(command), dict(environ), run
        self._process: subprocess.Popen[bytes] | None = None
        self._client: GatewayClient | None = None

    @property
    def client(self) -> GatewayClient:
        """The control connection."""
        assert self._client is not None
        return self._client

    def __enter__(self) -> Self:
        """Start, and wait until it answers.

        Raises:
            UnavailableError: It does not come up.
        """
        self._process = subprocess.Popen(
            self._command, env=self._environ, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + START_S
        while True:
            try:
                self._client = GatewayClient(self.run / "control.sock", lambda _: None)
            except GatewayLostError as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self._end()
                    raise UnavailableError(f"The gateway does not start: {error}") from error
                time.sleep(0.02)
            else:
                return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End it, workers and all."""
        if self._client is not None and not self._client.closed.is_set():
            try:
                self._client.shutdown()
            except UnavailableError:
                self._client.close()
        self._end()

    def _end(self) -> None:
        assert self._process is not None
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def processes(self) -> set[int]:
        """Return the process ids of gateway, zygote and workers, also of those that are ending."""
        assert self._process is not None
        return set(_family(self._process.pid))

    def memory_kb(self) -> int:
        """Return the memory of gateway, zygote and workers that no file backs.

        Shared pages count by their share. File pages are left out: their share depends on who else
        on the machine has mapped the same library.
        """
        assert self._process is not None
        return sum(_anonymous_kb(pid) for pid in _family(self._process.pid))


def run_folder() -> Path:
    """Return a new folder whose path is short enough for the sockets in it."""
    return Path(tempfile.mkdtemp(prefix="efst", dir="/tmp"))


def _family(pid: int) -> list[int]:
    found = [pid]
    for one in found:
        try:
            text = Path(f"/proc/{one}/task/{one}/children").read_text(encoding="ascii")
        except OSError:
            continue
        found += [int(child) for child in text.split()]
    return found


def _anonymous_kb(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss_Anon:"))


class Application:
    """One keep-alive connection to the inference socket.

    Args:
        path: The Unix socket.
        question: The elements of input `x`.
        model: The model's name.
    """

    def __init__(self, path: Path, question: Sequence[float], model: str) -> None:
        body = msgspec.json.encode(
            {
                "inputs": [
                    {"name": "x", "datatype": "FP32", "shape": [1, len(question)], "data": question}
                ]
            }
        )
        head = f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: "
        self._request = f"{head}{len(body)}\r\n\r\n".encode() + body
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(ANSWER_S)
        self._socket.connect(str(path))

    def ask(self) -> tuple[int, dict[str, list[float]]]:
        """Return the status, and the outputs by name.

        Raises:
            OSError: The connection broke.
        """
        self._socket.sendall(self._request)
        data = b""
        while b"\r\n\r\n" not in data:
            data += self._more()
        head, _, body = data.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").lower().split("\r\n")
        length = next(int(v[15:]) for v in lines if v.startswith("content-length:"))
        while len(body) < length:
            body += self._more()
        status = int(lines[0].split()[1])
        found = msgspec.json.decode(body)
        return status, {one["name"]: one["data"] for one in found.get("outputs", [])}

    def _more(self) -> bytes:
        data = self._socket.recv(65536)
        if not data:
            raise ConnectionResetError("The gateway closed the connection.")
        return data

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()
