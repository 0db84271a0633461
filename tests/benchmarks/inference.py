"""Latency and rate of a tiny model (64-32-10) over REST, beside FastAPI + uvicorn + orjson.

Both get the same request from the same client over a Unix socket; the peer is installed into a
throw-away environment.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from tests.agent.gateways import Gateway, fp32, wait_for
from tests.benchmarks import load
from tests.models import mlp, package

PACKAGES = ["fastapi", "uvicorn[standard]", "orjson", "onnxruntime", "numpy"]
PATH = "/v2/models/digits/infer"
VALUES = [round(index / 64, 4) for index in range(64)]


CASES = {
    "edgefleet_json_1": 1,
    "fastapi_json_1": 1,
    "edgefleet_binary_1": 1,
    "edgefleet_tcp_json_1": 1,
    "edgefleet_json_8": 8,
    "fastapi_json_8": 8,
}
"""What is measured, round by round in this order, and with how many clients."""


def run(*, quick: bool) -> dict[str, Any]:
    """Return medians over rounds in which both servers take turns, and medians of the ratios.

    Turns, because a machine that is busy with something else is so for both then.
    """
    rounds, seconds = (3, 1.0) if quick else (9, 3.0)
    with tempfile.TemporaryDirectory(prefix="ef") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        command, language = load.build(folder)
        gateway = Gateway()
        stack.callback(gateway.close)
        gateway.control.serve(package(folder, mlp(), name="digits"))
        peer = _start_peer(folder, stack)
        plain = load.http_request(PATH, json.dumps(fp32("x", VALUES, [1, 64])).encode())
        found: dict[str, list[dict[str, float]]] = {name: [] for name in CASES}
        for _ in range(rounds):
            for case, count in CASES.items():
                address = str(peer if case.startswith("fastapi") else gateway.uds)
                if "tcp" in case:
                    address = gateway.address.rpartition(":")[2]
                request = _binary() if "binary" in case else plain
                clients = load.Clients(command, folder, address, request, count, seconds)
                found[case].append(load.summary(clients.stop(now=False)))

    def ratio(field: str, clients: int) -> float:
        pairs = zip(
            found[f"edgefleet_json_{clients}"], found[f"fastapi_json_{clients}"], strict=True
        )
        return round(median(ours[field] / theirs[field] for ours, theirs in pairs), 3)

    return {
        "p50_ratio": ratio("p50_us", 1),
        "p99_ratio": ratio("p99_us", 1),
        "rps_8_ratio": ratio("rps", 8),
        "failed": sum(int(one["failed"]) for rows in found.values() for one in rows),
        "client": language,
        "rounds": rounds,
        "seconds_each": seconds,
        **{
            case: {field: median(row[field] for row in rows) for field in rows[0]}
            for case, rows in found.items()
        },
    }


def _binary() -> bytes:
    head = json.dumps({
        "inputs": [{
            "name": "x", "datatype": "FP32", "shape": [1, 64],
            "parameters": {"binary_data_size": 256},
        }],
        "parameters": {"binary_data_output": True},
    }).encode()  # fmt: skip
    return load.http_request(PATH, head + struct.pack("<64f", *VALUES), len(head))


def _start_peer(folder: Path, stack: contextlib.ExitStack) -> Path:
    uv = shutil.which("uv")
    if uv is None:
        raise RuntimeError("The peer is installed with uv, which is not on PATH.")
    venv = folder / "venv"
    python = venv / "bin" / "python"
    subprocess.run([uv, "venv", "--quiet", "--python", "3.11", str(venv)], check=True)
    subprocess.run(
        [uv, "pip", "install", "--quiet", "--python", str(python), *PACKAGES], check=True
    )
    model = folder / "peer.onnx"
    model.write_bytes(mlp())
    socket = folder / "peer.sock"
    environ = {**os.environ, "ORT_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}
    server = Path(__file__).with_name("peers") / "fastapi_server.py"
    peer = subprocess.Popen([str(python), str(server), str(model), str(socket)], env=environ)
    stack.callback(peer.wait)
    stack.callback(peer.terminate)
    wait_for(socket.exists, "the peer's socket")
    return socket
