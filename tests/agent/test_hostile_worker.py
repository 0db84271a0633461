"""A worker that a model has taken over: what it says and does harms its own clients at most."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from pathlib import Path

import msgspec
import pytest

from edgefleet_agent.gateway.counters import Counters
from edgefleet_agent.gateway.fast_call import Call
from edgefleet_agent.gateway.fast_slots import Shared
from edgefleet_agent.ipc import control, fast, frames, loans
from tests.agent.gateways import Gateway
from tests.agent.lent_client import Client, lent
from tests.models import linear, package


@pytest.fixture(autouse=True)
def _no_client_left():
    """Close what a test leaves open."""
    yield
    Client.close_all()


def copied_link(pid: int) -> int:
    """Return a copy of a worker's socket to the gateway, as a client may be sent one."""
    folder = Path(f"/proc/{pid}/fd")
    sockets = [int(p.name) for p in folder.iterdir() if str(p.readlink()).startswith("socket:")]
    libc, of = ctypes.CDLL(None, use_errno=True), os.pidfd_open(pid)
    fd: int = libc.syscall(438, of, min(sockets), 0)  # pidfd_getfd
    os.close(of)
    assert fd >= 0, os.strerror(ctypes.get_errno())
    return fd


def test_a_worker_s_death_is_seen_whoever_holds_its_socket(tmp_path):
    """A hostile worker can give its socket away: the end of its process counts, not of that."""
    gateway = Gateway("--lend-after", "1")
    try:
        pid = gateway.control.serve(package(tmp_path, linear(2.0))).pid
        client, copy = lent(gateway, pid), copied_link(pid)
        os.kill(pid, signal.SIGKILL)
        assert client.ask()[0] == 200
        gateway.control.wait_event("restarted")
        os.close(copy)
    finally:
        gateway.close()


def test_a_worker_that_keeps_what_is_recalled_is_killed(tmp_path):
    """After a flip it has so long to give its connections back as a request may take."""
    gateway = Gateway("--lend-after", "1", "--timeout-s", "0.5")
    try:
        old, new = (package(tmp_path, linear(2.0), version=f"{n}.0.0") for n in (1, 2))
        pid = gateway.control.serve(old).pid
        client = lent(gateway, pid)
        os.kill(pid, signal.SIGSTOP)
        gateway.control.serve(new)
        assert gateway.control.wait_event("worker_died").digest == old.spec.digest
        assert client.ask()[1]["model_version"] == "2.0.0"
    finally:
        gateway.close()


def test_when_a_request_began_is_not_in_the_future():
    """Else its deadline would be too large a number to be sent."""
    area = loans.Area(loans.make_area())
    slot = area.slot(0)
    slot.words[loans.STARTED] = 2**64 - 1
    slot.counts[loans.HEADERS[0] // 4 + loans.Header.count.offset // 4] = 5
    assert 0 < slot.left().begun_ns <= time.monotonic_ns()


def test_counters_stay_numbers_that_can_be_told(tmp_path):
    """A worker that counts itself may count anything; agentd must be able to read the rest."""
    counters = Counters(package(tmp_path, linear(1.0)).spec)
    grown = [2**62] * (loans.COMPUTE + loans.BUCKETS)
    for _ in range(5):
        counters.grow(grown)
    told = counters.read("active", 0, 0)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(told), type=control.DigestStats) == told


class Told:
    """Takes what a call says to its connection."""

    def __init__(self) -> None:
        self.refusals: list[fast.Refusal] = []

    def ended(self, length: int, status: int) -> None:
        """Take the end of a request."""

    def refuse(self, number: int, refusal: fast.Refusal) -> None:
        """Take a refusal."""
        del number
        self.refusals.append(refusal)


@pytest.mark.parametrize("body", [b"", b"[1]", b'{"code": 5}', b"{}", b"\xff"])
def test_an_error_that_is_none_is_told_as_nonsense(body):
    """A client of the fast path gets an answer whatever a worker has written into an error."""
    told = Told()
    Call(told, 1, Shared(1, ()), 0).answer(500, body, frames.NO_JSON)  # type: ignore[arg-type]
    assert [(one.status, one.code) for one in told.refusals] == [(500, "inference_failed")]
