"""The applications of the demo: one closed-loop client a device, asking held-out digits.

Runs as a process of its own (`python -m edgefleet_provisioning.demo.load`), so that its latencies
are its own. Speaks plain Open Inference Protocol v2 with binary tensors over each device's Unix
socket. Ends on SIGTERM and then writes what it saw.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import signal
import socket
import threading
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

PAUSE_S = 0.002  # between two questions of one client: cameras, not a stress test
LOST = -1  # version of a request that got no answer


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket's path."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Client(threading.Thread):
    """Asks one device over and over; `rows` holds what came back.

    A row is (device index, start ns, end ns, version index, label asked, label answered, finite).
    Times are CLOCK_MONOTONIC; a request that failed has version LOST.
    """

    def __init__(
        self, index: int, path: str, model: str, held_out: Path, stop: threading.Event
    ) -> None:
        super().__init__(daemon=True)
        data = np.load(held_out)
        self._requests = [_request(row) for row in data["pixels"]]
        self.labels = [int(label) for label in data["labels"]]
        self._index, self._path, self._model, self._ended = index, path, model, stop
        self.rows: list[tuple[int, int, int, int, int, int, int]] = []
        self.versions: list[str] = []
        self.errors: list[str] = []

    def run(self) -> None:
        """Ask until told to stop."""
        connection = UnixConnection(self._path, timeout=10.0)
        turn = 0
        while not self._ended.is_set():
            turn += 1
            which = turn % len(self._requests)
            begun = time.monotonic_ns()
            try:
                version, answered, finite = self.ask(connection, which)
            except (OSError, http.client.HTTPException, ValueError) as error:
                self.errors.append(repr(error)[:200])
                version, answered, finite = LOST, -1, 0
                connection.close()
            self.rows.append((
                self._index, begun, time.monotonic_ns(), version, self.labels[which], answered,
                finite,
            ))  # fmt: skip
            self._ended.wait(PAUSE_S)
        connection.close()

    def ask(self, connection: UnixConnection, which: int) -> tuple[int, int, int]:
        """Ask about one digit; return version index, label answered, and 1 if all is finite."""
        header_length, body = self._requests[which]
        connection.request(
            "POST",
            f"/v2/models/{self._model}/infer",
            body,
            {"Inference-Header-Content-Length": str(header_length)},
        )
        response = connection.getresponse()
        data = response.read()
        if response.status != 200:
            raise ValueError(f"{response.status}: {data[:150]!r}")
        length = int(response.headers["Inference-Header-Content-Length"])
        header = json.loads(data[:length])
        tensors, offset = {}, length
        for output in header["outputs"]:
            size = output["parameters"]["binary_data_size"]
            kind = np.dtype("<i8" if output["datatype"] == "INT64" else "<f4")
            tensors[output["name"]] = np.frombuffer(data[offset : offset + size], kind)
            offset += size
        finite = bool(np.isfinite(tensors["probabilities"]).all())
        return self._number(header["model_version"]), int(tensors["label"][0]), int(finite)

    def _number(self, version: str) -> int:
        if version not in self.versions:
            self.versions.append(version)
        return self.versions.index(version)


class Answer(NamedTuple):
    """One held-out digit and what a device says to it."""

    version: str
    asked: int
    answered: int


def ask_once(path: str, held_out: Path) -> Answer:
    """Ask a device about the first held-out digit.

    Raises:
        ValueError: It did not answer 200.
        OSError: Nobody listens on `path`.
    """
    client = Client(0, path, "digits", held_out, threading.Event())
    connection = UnixConnection(path, timeout=10.0)
    with contextlib.closing(connection):
        version, answered, _ = client.ask(connection, 0)
    return Answer(client.versions[version], client.labels[0], answered)


def _request(pixels: np.ndarray) -> tuple[int, bytes]:
    raw = pixels.astype("<f4").tobytes()
    header = json.dumps({
        "inputs": [{
            "name": "pixels",
            "shape": [1, len(pixels)],
            "datatype": "FP32",
            "parameters": {"binary_data_size": len(raw)},
        }],
        "parameters": {"binary_data_output": True},
    }).encode()  # fmt: skip
    return len(header), header + raw


def main() -> None:
    """Run the clients until SIGTERM; write rows, versions and errors as an npz."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("sockets", nargs="+")
    options = parser.parse_args()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    clients = [
        Client(index, path, options.model, options.held_out, stop)
        for index, path in enumerate(options.sockets)
    ]
    for client in clients:
        client.start()
    stop.wait()
    for client in clients:
        client.join(timeout=15.0)
    np.savez(
        options.output,
        rows=np.array([row for client in clients for row in client.rows], dtype=np.int64),
        versions=json.dumps([client.versions for client in clients]),
        errors=json.dumps([error for client in clients for error in client.errors][:20]),
    )


if __name__ == "__main__":
    main()
