"""A real gateway process under test, its control client and a plain HTTP client."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from edgefleet_agent.compose import GATEWAY_ENVIRONMENT
from edgefleet_agent.ipc import control, packets
from tests.models import Package

DEADLINE_S = 20.0


def wait_for(condition, what: str, seconds: float = DEADLINE_S):
    """Poll until `condition()` is true and return its value; fail with `what` otherwise."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.01)
    raise AssertionError(f"Not within {seconds} s: {what}")


class Control:
    """What agentd is to a gateway: asks, waits for the reply, keeps the events."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(DEADLINE_S)
        wait_for(lambda: self._connect(path), "the control socket")
        self.events: list[control.Event] = []
        self._number = 0

    def _connect(self, path: Path) -> bool:
        try:
            self.sock.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        return True

    def ask(self, kind, *arguments, files=(), **named):
        """Send a request of type `kind` and return its reply."""
        self._number += 1
        packets.send(self.sock, kind(self._number, *arguments, **named), files)
        for fd in files:
            os.close(fd)
        while True:
            message = self._receive()
            if not isinstance(message, control.Event):
                assert message.id == self._number
                return message

    def _receive(self):
        received = packets.receive(self.sock)
        assert received is not None, "the gateway closed the control connection"
        message, _ = received
        if isinstance(message, control.Event):
            self.events.append(message)
        return message

    def wait_event(self, code: str) -> control.Event:
        """Return the next event with `code`, also one that has come already."""
        while True:
            for event in self.events:
                if event.code == code:
                    self.events.remove(event)
                    return event
            self._receive()

    def load(self, package: Package):
        return self.ask(control.Load, package.spec, files=package.open())

    def prove(self, package: Package):
        return self.ask(control.Prove, package.spec, files=package.open())

    def serve(self, package: Package):
        """Load and flip; both must succeed."""
        outcome = self.load(package)
        assert outcome.ok, outcome
        flipped = self.ask(control.Flip, package.spec.model, package.spec.digest)
        assert isinstance(flipped, control.Flipped), flipped
        return outcome

    def stats(self) -> dict[str, control.DigestStats]:
        return {one.digest: one for one in self.ask(control.Stats).digests}

    def close(self) -> None:
        self.sock.close()


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=DEADLINE_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self._path))  # waits for its turn, which it would not with a deadline
        self.sock.settimeout(DEADLINE_S)


class Gateway:
    """One gateway process in a run folder of its own."""

    def __init__(self, *options: str, environ: dict[str, str] | None = None) -> None:
        self.run = Path(tempfile.mkdtemp(prefix="ef", dir="/tmp"))
        self.uds = self.run / "infer.sock"
        self.options = options
        self.environ = environ or {}
        self.process = self.start()
        self.control = Control(self.run / "control.sock")

    def command(self) -> list[str]:
        return [
            sys.executable, "-m", "edgefleet_agent.gateway",
            "--control", str(self.run / "control.sock"), "--uds", str(self.uds),
            "--tcp", "127.0.0.1:0", "--addr-file", str(self.run / "infer.addr"), *self.options,
        ]  # fmt: skip

    def start(self) -> subprocess.Popen:
        return subprocess.Popen(
            self.command(), env={**os.environ, **GATEWAY_ENVIRONMENT, **self.environ}
        )

    @property
    def address(self) -> str:
        return wait_for(
            lambda: (self.run / "infer.addr").exists() and (self.run / "infer.addr").read_text(),
            "the address file",
        )

    def connect(self) -> UnixConnection:
        wait_for(self.uds.exists, "the inference socket")
        return UnixConnection(self.uds)

    def request(self, method: str, path: str, body=None, headers=None):
        """One request on a fresh connection: (status, decoded JSON, headers)."""
        connection = self.connect()
        if isinstance(body, dict):
            body = json.dumps(body)
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        data = response.read()
        connection.close()
        return response.status, json.loads(data) if data else None, response.headers

    def infer(self, body, model: str = "m", headers=None):
        return self.request("POST", f"/v2/models/{model}/infer", body, headers)

    def children(self) -> list[int]:
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in path.read_text().split()]

    def zygote(self) -> int:
        def find():
            for pid in self.children():
                if b"edgefleet_agent.zygote" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return pid
            return 0

        return wait_for(find, "the zygote")

    def close(self) -> None:
        self.control.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        shutil.rmtree(self.run)


def fp32(name: str, values, shape=None) -> dict:
    """One FP32 input as JSON."""
    return {
        "inputs": [
            {"name": name, "datatype": "FP32", "shape": shape or [len(values)], "data": values}
        ]
    }
