"""Clients at full speed: `load.c` where there is a compiler, else this file run as a program."""

from __future__ import annotations

import itertools
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

from edgefleet_agent.ipc import fast

ROW = struct.Struct("<QQQ")


def build(folder: Path) -> tuple[list[str], str]:
    """Return the client's command and its language."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return [sys.executable, str(Path(__file__))], "python"
    program = folder / "load"
    source = Path(__file__).with_suffix(".c")
    subprocess.run([compiler, "-O2", "-o", str(program), str(source)], check=True)
    return [str(program)], "c"


def build_fast(folder: Path) -> list[str]:
    """Return the command of `fast_load.c`, which takes what `frame_request` returns.

    Raises:
        RuntimeError: There is no compiler.
    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise RuntimeError("The fast path is measured with a client in C; there is no compiler.")
    program = folder / "fast_load"
    source = Path(__file__).with_name("fast_load.c")
    subprocess.run([compiler, "-O2", "-o", str(program), str(source)], check=True)
    return [str(program)]


def frame_request(model: str, tensor: fast.Tensor, data: bytes, output_bytes: int = 0) -> bytes:
    """Return a request of one input for `fast_load.c`.

    Args:
        model: Whom to ask.
        tensor: Name, datatype and shape of the input; slot 0 or `fast.INLINE`, offset 0.
        data: Its elements.
        output_bytes: Size of a slot for the only output, named `y`; 0 = all outputs come inline.
    """
    areas = (fast.Tensor("y", "", (), 1, 0, output_bytes),) if output_bytes else ()
    head = fast.encode_head(fast.Head(model, "", (tensor,), areas))
    inline, slot = (data, b"") if tensor.slot == fast.INLINE else (b"", data)
    sizes = struct.pack("<5I", len(slot), output_bytes, len(head), len(inline), 30_000)
    return sizes + head + inline + slot


def http_request(path: str, body: bytes, json_length: int | None = None) -> bytes:
    """Return an inference request as it goes over the wire."""
    extra = "" if json_length is None else f"Inference-Header-Content-Length: {json_length}\r\n"
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n{extra}\r\n"
    )
    return head.encode() + body


class Clients:
    """So many client processes on one address; `stop` gives their rows, sorted by time."""

    def __init__(
        self,
        command: list[str],
        folder: Path,
        address: str,
        request: bytes,
        count: int,
        seconds: float = 3600,
    ) -> None:
        file = folder / "request"
        file.write_bytes(request)
        self._outputs = [folder / f"rows-{index}" for index in range(count)]
        self._processes = [
            subprocess.Popen([*command, address, str(file), str(seconds), str(output)])
            for output in self._outputs
        ]

    def stop(self, *, now: bool = True) -> list[tuple[int, int, int]]:
        """End the clients, or wait for their end; return (time ns, latency ns, status) rows."""
        for process in self._processes:
            if now:
                process.send_signal(signal.SIGTERM)
            if process.wait(120):
                raise RuntimeError("A client failed.")
        rows = [row for path in self._outputs for row in ROW.iter_unpack(path.read_bytes())]
        return sorted(rows)


def summary(rows: list[tuple[int, int, int]]) -> dict[str, float]:
    """Return counts, rate, latencies in microseconds and the longest gap in milliseconds."""
    latencies = sorted(row[1] for row in rows)
    times = [row[0] for row in rows]
    gaps = [later - sooner for sooner, later in itertools.pairwise(times)]
    seconds = (times[-1] - times[0]) / 1e9
    return {
        "requests": len(rows),
        "failed": sum(row[2] != 200 for row in rows),
        "seconds": round(seconds, 2),
        "rps": round(len(rows) / seconds, 1),
        "p50_us": round(latencies[len(rows) // 2] / 1e3, 1),
        "p99_us": round(latencies[len(rows) * 99 // 100] / 1e3, 1),
        "longest_gap_ms": round(max(gaps) / 1e6, 3),
        "longest_wait_ms": round(latencies[-1] / 1e6, 3),
    }


def _main(address: str, request: bytes, seconds: float, output: Path) -> None:
    """Be one client, as `load.c` is."""
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    end = time.monotonic() + seconds
    sock = _dial(address)
    with output.open("wb") as out:
        while not stopped.is_set() and time.monotonic() < end:
            begun = time.monotonic_ns()
            try:
                sock.sendall(request)
                status = _receive(sock)
            except OSError:
                status = 0
            done = time.monotonic_ns()
            out.write(ROW.pack(done, done - begun, status))
            if not status:
                sock.close()
                time.sleep(0.001)
                sock = _dial(address)


def _dial(address: str) -> socket.socket:
    if not address.startswith("/"):
        return socket.create_connection(("127.0.0.1", int(address)))
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(address)
    return sock


def _receive(sock: socket.socket) -> int:
    got, need = b"", -1
    while need < 0 or len(got) < need:
        part = sock.recv(1 << 20)
        if not part:
            return 0
        got += part
        end = got.find(b"\r\n\r\n")
        if need < 0 <= end:
            length = got.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0]
            need = end + 4 + int(length)
    return int(got[9:12])


if __name__ == "__main__":
    _main(sys.argv[1], Path(sys.argv[2]).read_bytes(), float(sys.argv[3]), Path(sys.argv[4]))
