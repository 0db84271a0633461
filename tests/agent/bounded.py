"""A gateway that few may use at once, and clients that pour and do not read."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import threading

from tests.agent.fast_raw import Raw
from tests.agent.gateways import Gateway
from tests.agent.lent_client import Client, request_bytes
from tests.models import linear, package, slow

LIMIT = 1_000_000
CONNECTIONS = 40


def end_clients() -> None:
    """Close every client that was made."""
    for client in Client.every:  # a thread may be sending, and a close alone would wait for it
        with contextlib.suppress(OSError):
            client.sock.shutdown(socket.SHUT_RDWR)
    Client.close_all()


def start(folder, *options: str) -> Gateway:
    """Return a gateway with few connections and the models `m` and `slow`."""
    one = Gateway(
        "--max-body-bytes", str(LIMIT), "--lend-after", "0",
        "--max-connections", str(CONNECTIONS), *options,
    )  # fmt: skip
    one.control.serve(package(folder, linear(2.0)))
    one.control.serve(package(folder, slow(), name="slow"))
    return one


def closed(client: Client | Raw) -> bool:
    """Tell whether the other side has closed, without reading."""
    poll = select.poll()
    poll.register(client.sock, 0)
    return bool(poll.poll(0))


def binary(rows: int) -> bytes:
    """Return a request of `rows` rows, 16 bytes in and 8 out each."""
    asked = json.dumps({
        "inputs": [{
            "name": "x", "datatype": "FP32", "shape": [rows, 4],
            "parameters": {"binary_data_size": 16 * rows},
        }],
        "parameters": {"binary_data_output": True},
    }).encode()  # fmt: skip
    extra = f"Inference-Header-Content-Length: {len(asked)}\r\n"
    return request_bytes(asked + bytes(16 * rows), extra=extra)


def pour(client: Client | Raw, data: bytes) -> None:
    """Send in the background, as far as somebody takes it."""

    def send() -> None:
        with contextlib.suppress(OSError):
            client.sock.sendall(data)

    threading.Thread(target=send, daemon=True).start()
