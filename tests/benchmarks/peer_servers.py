"""Peers of the benchmarks, each in an environment of its own that is thrown away."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from tests.agent.gateways import wait_for

PEERS = Path(__file__).with_name("peers")
FASTAPI = ["fastapi", "uvicorn[standard]", "orjson", "onnxruntime", "numpy"]
MLSERVER = ["mlserver", "onnxruntime", "numpy"]
_ENVIRON = {"ORT_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}


def environment(folder: Path, name: str, packages: list[str]) -> Path:
    """Make an environment with these packages and return its `bin`.

    Raises:
        RuntimeError: There is no uv.
    """
    uv = shutil.which("uv")
    if uv is None:
        raise RuntimeError("The peers are installed with uv, which is not on PATH.")
    venv = folder / name
    subprocess.run([uv, "venv", "--quiet", "--python", "3.11", str(venv)], check=True)
    python = str(venv / "bin" / "python")
    # Not with the project's constraints: they are ours, and leave MLServer only an old version.
    install = [uv, "pip", "install", "--quiet", "--no-config", "--python", python]
    subprocess.run([*install, *packages], check=True, cwd=folder)
    return venv / "bin"


def start_fastapi(folder: Path, model: Path, stack: contextlib.ExitStack) -> str:
    """Start FastAPI with uvicorn and orjson; return its socket's path."""
    where = environment(folder, "fastapi", FASTAPI)
    address = folder / "peer.sock"
    command = [str(where / "python"), str(PEERS / "fastapi_server.py"), str(model), str(address)]
    _keep(subprocess.Popen(command, env={**os.environ, **_ENVIRON}), stack)
    wait_for(address.exists, "FastAPI's socket")
    return str(address)


def start_bare(folder: Path, request_bytes: int, stack: contextlib.ExitStack) -> str:
    """Start the server that does nothing but answer; return its socket's path."""
    address = folder / "bare.sock"
    script = str(PEERS / "bare_socket.py")
    command = [sys.executable, script, str(address), str(request_bytes), "350"]
    _keep(subprocess.Popen(command), stack)
    wait_for(address.exists, "the bare server's socket")
    return str(address)


class MlServer(NamedTuple):
    """MLServer as it runs; `home` holds its settings, `port` is on loopback."""

    port: str
    pid: int
    home: Path

    def configure(self, model: Path, version: str | None = None) -> None:
        """Write which file the model `digits` is, for the next load."""
        parameters = {"uri": str(model)} | ({"version": version} if version else {})
        own = {
            "name": "digits",
            "implementation": "mlserver_model.OnnxModel",
            "parameters": parameters,
        }
        made = self.home / "made"
        made.write_text(json.dumps(own))
        made.rename(self.home / "model-settings.json")


def start_mlserver(folder: Path, model: Path, stack: contextlib.ExitStack) -> str:
    """Start MLServer without workers; return its port."""
    return launch_mlserver(folder, model, stack).port


def launch_mlserver(folder: Path, model: Path, stack: contextlib.ExitStack) -> MlServer:
    """Start MLServer without workers; it answers for the model when this returns."""
    where = environment(folder, "mlserver", MLSERVER)
    home = folder / "mlserver-home"
    home.mkdir()
    shutil.copy(PEERS / "mlserver_model.py", home)
    ports = []
    for _ in range(3):
        with socket.create_server(("127.0.0.1", 0)) as server:
            ports.append(server.getsockname()[1])
    settings = {
        "host": "127.0.0.1", "http_port": ports[0], "grpc_port": ports[1],
        "metrics_port": ports[2], "parallel_workers": 0, "debug": False,
    }  # fmt: skip
    (home / "settings.json").write_text(json.dumps(settings))
    MlServer("", 0, home).configure(model)
    environ = {**os.environ, **_ENVIRON, "PYTHONPATH": str(home)}
    with (folder / "mlserver.log").open("wb") as log:
        command = [str(where / "mlserver"), "start", str(home)]
        process = subprocess.Popen(command, cwd=home, env=environ, stdout=log, stderr=log)
    _keep(process, stack)
    wait_for(lambda: _answers(ports[0]), "MLServer's port", 60)
    return MlServer(str(ports[0]), process.pid, home)


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 1) as sock:
            sock.sendall(b"GET /v2/models/digits/ready HTTP/1.1\r\nHost: x\r\n\r\n")
            return sock.recv(100).startswith(b"HTTP/1.1 200")
    except OSError:
        return False


def _keep(process: subprocess.Popen[bytes], stack: contextlib.ExitStack) -> None:
    stack.callback(process.wait)
    stack.callback(process.terminate)
