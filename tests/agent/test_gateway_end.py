"""A gateway without agentd, its end by a signal or SIGKILL, and one that cannot start."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from edgefleet_agent.gateway_link import GatewayLink
from edgefleet_agent.ipc import control
from tests.agent.gateways import Control, Gateway, fp32, wait_for
from tests.agent.test_gateway_life import LONG, Asking, in_flight
from tests.models import linear, package, slow


def test_the_gateway_outlives_agentd(gateway, tmp_path):
    """After agentd's connection breaks, requests are answered; a new one finds what runs."""
    one = package(tmp_path, linear(1.0))
    outcome = gateway.control.serve(one)
    boot = gateway.control.ask(control.Hello).boot
    gateway.control.close()
    assert gateway.infer(fp32("x", [1, 2, 3, 4], [1, 4]))[0] == 200
    gateway.control = Control(gateway.run / "control.sock")
    state = gateway.control.ask(control.Hello)
    assert state.boot == boot
    assert state.workers == [
        control.WorkerInfo("m", "1.0.0", one.spec.digest, "active", outcome.pid, 100)
    ]
    assert gateway.control.load(one).pid == outcome.pid


@pytest.mark.parametrize("way", ["signal", "message"])
def test_the_end_is_clean(tmp_path, way):
    """SIGTERM or `Shutdown` lets a running request finish and leaves no process and no socket."""
    gateway = Gateway()
    try:
        only = package(tmp_path, slow())
        gateway.control.serve(only)
        pids = gateway.children()
        asking = Asking(gateway, LONG, "m")
        in_flight(gateway, only)
        if way == "signal":
            gateway.process.send_signal(signal.SIGTERM)
        else:
            assert gateway.control.ask(control.Shutdown).ok
        assert asking.answer()[0] == 200
        assert gateway.process.wait(10) == 0
        assert len(pids) == 2
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
        assert [path.name for path in gateway.run.iterdir()] == ["gateway.pid"]
    finally:
        gateway.close()


def test_a_killed_gateway_takes_its_workers_along(gateway, tmp_path):
    """SIGKILL of the gateway ends zygote and workers, also a busy one."""
    only = package(tmp_path, slow())
    gateway.control.serve(only)
    pids = gateway.children()
    connection = gateway.connect()
    connection.request("POST", "/v2/models/m/infer", json.dumps(LONG))
    in_flight(gateway, only)
    gateway.process.kill()
    gateway.process.wait()
    for pid in pids:
        wait_for(lambda pid=pid: not Path(f"/proc/{pid}").exists(), f"the end of {pid}", 5)
    connection.close()


def test_an_orphan_ends(tmp_path):
    """With an orphan timeout the gateway ends by itself some time after agentd has gone."""
    gateway = Gateway("--orphan-timeout-s", "0.3")
    try:
        time.sleep(0.5)
        assert gateway.process.poll() is None, "it ended while agentd was there"
        gateway.control.close()
        assert gateway.process.wait(10) == 0
    finally:
        gateway.close()


def test_one_gateway_a_run_folder(gateway):
    """A second gateway in the same folder says why it does not start; the first one lives."""
    second = gateway.start()
    assert second.wait(10) == 75
    assert gateway.request("GET", "/v2/health/live")[0] == 200
    gateway.process.kill()
    gateway.process.wait()
    gateway.control.close()
    gateway.process = gateway.start()  # takes over stale sockets
    gateway.control = Control(gateway.run / "control.sock")
    assert gateway.control.ask(control.Hello).pid == gateway.process.pid
    assert gateway.request("GET", "/v2/health/live")[0] == 200


def test_a_taken_address_is_one_line(gateway):
    """Another program has the port: said with what to do, and nothing is left half open."""
    options = ["--tcp", gateway.address]
    run = Path(tempfile.mkdtemp(prefix="ef", dir="/tmp"))
    command = [part.replace(str(gateway.run), str(run)) for part in gateway.command()]
    ended = subprocess.run(
        [*command, *options], capture_output=True, text=True, timeout=20, check=False
    )
    shutil.rmtree(run)
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert "cannot be had" in ended.stderr


class Told:
    """Hears what a link calls back."""

    def __init__(self) -> None:
        self.why = threading.Event()
        self.reason = ""

    def on_gateway_up(self, client) -> None:
        """Never: the gateway here cannot start."""

    def on_gateway_down(self, reason: str) -> None:
        self.reason = reason
        self.why.set()

    def on_gateway_event(self, event) -> None:
        """Never, likewise."""


def test_agentd_tells_why_the_gateway_ends(tmp_path):
    """The last words of a gateway that cannot start are in the event, not only in its log."""
    told = Told()
    command = [sys.executable, "-c", "raise SystemExit('No room here.')"]
    link = GatewayLink(tmp_path, command, {}, told)
    link.start()
    assert told.why.wait(20)
    link.stop(end_gateway=True)
    assert "status 1" in told.reason
    assert "No room here." in told.reason
