"""The agent as systemd runs it: ready, watched, restarted without a gap, ended whole."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.agent.world import World, until


class Service:
    """`edgefleet-agent run` as a process, with systemd's end of the notify socket."""

    def __init__(self, folder: Path) -> None:
        self.run_dir = folder / "run"
        self.config = folder / "agent.toml"
        self.config.write_text('state_dir = "state"\nrun_dir = "run"\n[inference]\ntcp = ""\n')
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify.bind(str(folder / "notify"))
        self.notify.settimeout(20)
        self.environ = {**os.environ, "NOTIFY_SOCKET": str(folder / "notify"),
                        "WATCHDOG_USEC": "400000"}  # fmt: skip

    def launch(self) -> subprocess.Popen[bytes]:
        """Start agentd."""
        return subprocess.Popen(
            [sys.executable, "-m", "edgefleet_agent", "run", "--config", str(self.config)],
            env=self.environ,
        )

    def start(self) -> subprocess.Popen[bytes]:
        """Start agentd and wait until it says that it is ready and its gateway answers."""
        process = self.launch()
        self.hears(b"READY=1")
        until(lambda: self.status().get("pid") == process.pid, "its status")
        until(lambda: self.status().get("gateway") == "up", "a gateway")
        return process

    def hears(self, message: bytes) -> None:
        """Wait for a message to systemd."""
        while self.notify.recv(100) != message:
            pass

    def status(self) -> dict:
        """Return agentd's own status file, {} while there is none."""
        try:
            return json.loads((self.run_dir / "status.json").read_text())
        except FileNotFoundError:
            return {}

    def gateway(self) -> int:
        """Return the gateway's pid."""
        return int((self.run_dir / "gateway.pid").read_text())


@pytest.fixture
def service():
    """An enrolled device whose fleet manager does not answer."""
    folder = Path(tempfile.mkdtemp(prefix="ef", dir="/tmp"))
    world = World()
    world.enrolled(folder / "state")
    service = Service(folder)
    yield service
    service.notify.close()
    world.close()
    shutil.rmtree(folder, ignore_errors=True)


def runs(pid: int) -> bool:
    """Tell whether a process is there and not a zombie."""
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def test_a_restart_leaves_the_gateway_and_a_stop_ends_it(service):
    """SIGHUP ends agentd alone and the next one finds the same gateway; SIGTERM ends both."""
    first = service.start()
    gateway = service.gateway()
    first.send_signal(signal.SIGHUP)
    service.hears(b"STOPPING=1")
    assert first.wait(20) == 0
    assert runs(gateway)

    second = service.start()
    assert service.gateway() == gateway
    second.terminate()
    assert second.wait(20) == 0
    until(lambda: not runs(gateway), "the gateway's end")


def test_the_watchdog_is_fed(service):
    """With WATCHDOG_USEC set, agentd reports in time, again and again."""
    process = service.start()
    try:
        for _ in range(3):
            service.notify.settimeout(0.4)
            service.hears(b"WATCHDOG=1")
    finally:
        process.terminate()
        assert process.wait(20) == 0


def test_killed_agentd_is_replaced_beside_the_same_gateway(service):
    """SIGKILL of agentd leaves the gateway serving, and the next agentd takes it over."""
    first = service.start()
    gateway = service.gateway()
    first.kill()
    first.wait(20)
    assert runs(gateway)
    second = service.start()
    assert service.gateway() == gateway
    second.terminate()
    assert second.wait(20) == 0
    until(lambda: not runs(gateway), "the gateway's end")


def test_a_stop_that_comes_at_once_ends_a_gateway_that_was_left(service):
    """SIGTERM right after the start ends the gateway of the agentd before, found or not."""
    first = service.start()
    gateway = service.gateway()
    first.kill()
    first.wait(20)
    second = service.launch()
    service.hears(b"READY=1")
    second.terminate()
    assert second.wait(20) == 0
    until(lambda: not runs(gateway), "the gateway's end")
