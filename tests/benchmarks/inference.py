"""Latency and rate of a tiny model (64-32-10) over REST, beside FastAPI + uvicorn + orjson.

Both get the same request from the same client over a Unix socket; the peer is installed into a
throw-away environment.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from tests.agent.gateways import Gateway, fp32, wait_for
from tests.benchmarks import load
from tests.models import mlp, package

PACKAGES = ["fastapi", "uvicorn[standard]", "orjson", "onnxruntime", "numpy"]
PATH = "/v2/models/digits/infer"
VALUES = [round(index / 64, 4) for index in range(64)]


def run(*, quick: bool) -> dict[str, Any]:
    """Return p50 with one client and rate with eight, for both, and the ratios."""
    seconds = 3.0 if quick else 15.0
    with tempfile.TemporaryDirectory(prefix="ef") as name:
        folder = Path(name)
        command, language = load.build(folder)
        body = json.dumps(fp32("x", VALUES, [1, 64])).encode()
        plain = load.http_request(PATH, body)

        def measure(address: str, request: bytes, count: int) -> dict[str, float]:
            clients = load.Clients(command, folder, address, request, count, seconds)
            return load.summary(clients.stop(now=False))

        figures: dict[str, Any] = {"client": language}
        gateway = Gateway()
        try:
            gateway.control.serve(package(folder, mlp(), name="digits"))
            uds, port = str(gateway.uds), gateway.address.rpartition(":")[2]
            figures["edgefleet_json_1"] = measure(uds, plain, 1)
            figures["edgefleet_binary_1"] = measure(uds, _binary(), 1)
            figures["edgefleet_tcp_json_1"] = measure(port, plain, 1)
            figures["edgefleet_json_8"] = measure(uds, plain, 8)
        finally:
            gateway.close()
        peer, socket = _start_peer(folder)
        try:
            figures["fastapi_json_1"] = measure(str(socket), plain, 1)
            figures["fastapi_json_8"] = measure(str(socket), plain, 8)
        finally:
            peer.terminate()
            peer.wait()
    ours, theirs = figures["edgefleet_json_1"], figures["fastapi_json_1"]
    return {
        "p50_ratio": round(ours["p50_us"] / theirs["p50_us"], 3),
        "p99_ratio": round(ours["p99_us"] / theirs["p99_us"], 3),
        "rps_8_ratio": round(
            figures["edgefleet_json_8"]["rps"] / figures["fastapi_json_8"]["rps"], 2
        ),
        "failed": sum(one["failed"] for one in figures.values() if isinstance(one, dict)),
        **figures,
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


def _start_peer(folder: Path) -> tuple[subprocess.Popen[bytes], Path]:
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
    wait_for(socket.exists, "the peer's socket")
    return peer, socket
