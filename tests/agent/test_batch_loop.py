"""The loop of a model that batches, in this process: a session that says what it was asked."""

from __future__ import annotations

import json
import socket
import threading
import time

import pytest

from edgefleet_agent.ipc import frames
from edgefleet_agent.worker.answering import Answerer
from edgefleet_agent.worker.batch_loop import BatchLoop
from edgefleet_agent.worker.codec import Codec
from edgefleet_agent.worker.fast_codec import FastCodec
from edgefleet_agent.worker.joint import Joint
from edgefleet_agent.worker.pace import Pace
from edgefleet_agent.worker.pool import Pool
from edgefleet_shared.package import Batching
from tests.agent.gateways import fp32, wait_for
from tests.models import linear, package

IN_TIME = 2**62


class Narrow:
    """A session with memory for one run at a time; its first two runs come together."""

    def __init__(self) -> None:
        self.together = threading.Barrier(2)
        self.lock = threading.Lock()
        self.calls = 0

    def run(self, inputs):
        """Fail while another runs, as onnxruntime does where an arena cannot grow."""
        with self.lock:
            self.calls += 1
            first = self.calls <= 2
        if first:
            self.together.wait(20)
            raise RuntimeError("Failed to allocate memory for requested buffer")
        if not self.lock.acquire(blocking=False):
            raise RuntimeError("Failed to allocate memory for requested buffer")
        time.sleep(0.01)
        self.lock.release()
        return {"y": inputs["x"][:, :2]}


class Rows:
    """A session that remembers how many rows each run had, and waits in its first."""

    def __init__(self) -> None:
        self.began, self.go_on = threading.Event(), threading.Event()
        self.rows: list[int] = []

    def run(self, inputs):
        """Answer two columns."""
        self.rows.append(len(inputs["x"]))
        if len(self.rows) == 1:
            self.began.set()
            self.go_on.wait(20)
        return {"y": inputs["x"][:, :2]}


class Gateway:
    """What a gateway is to the loop: it sends requests and reads frames."""

    def __init__(self, spec, session, width: int, rows: int) -> None:
        self.sock, theirs = socket.socketpair()
        self.sock.settimeout(20)
        self.buffer = frames.FrameBuffer()
        codec = Codec(spec)
        self._near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        answerer = Answerer(session, session, codec, FastCodec(spec, codec, far))
        joint = Joint(session, None, answerer, ["y"], pictures=False)
        self.loop = BatchLoop(
            theirs, frames.FrameBuffer(), answerer, Pace(()), Pool(width), joint, Batching(rows)
        )
        self._thread = threading.Thread(target=self.loop.run)
        self._thread.start()

    def ask(self, number: int, rows: int = 1, kind: int = frames.INFER) -> None:
        """Send a request whose rows are all its number."""
        body = json.dumps(fp32("x", [float(number)] * 4 * rows, [rows, 4])).encode()
        head = frames.head(kind, 0, number, frames.NO_JSON, IN_TIME, len(body))
        self.sock.sendall(head + body)

    def read(self, count: int) -> dict[int, tuple[int, list[float]]]:
        """Return so many answers: status and numbers by the request's id."""
        found: dict[int, tuple[int, list[float]]] = {}
        while len(found) < count:
            while (frame := self.buffer.next()) is None:
                self.buffer.wrote(self.sock.recv_into(self.buffer.space()))
            kind, status, number, _, _, body = frame
            if kind == frames.ANSWER:
                answer = json.loads(bytes(body))
                found[number] = status, answer["outputs"][0]["data"] if status == 200 else []
        return found

    def close(self) -> None:
        """End the loop, as a gateway does, and wait for it."""
        self.sock.shutdown(socket.SHUT_WR)
        self._thread.join(20)
        assert not self._thread.is_alive()
        self.sock.close()
        self._near.close()


@pytest.fixture
def spec(tmp_path):
    """The specification of a model that takes `x` and gives `y`."""
    return package(tmp_path, linear()).spec


def test_memory_for_one_run_at_a_time_is_enough(spec):
    """Runs that lacked memory beside others are done again by themselves, and all are answered."""
    session = Narrow()
    gateway = Gateway(spec, session, width=2, rows=2)
    for number in range(1, 7):
        gateway.ask(number, rows=3)
    answers = gateway.read(6)
    gateway.close()
    assert {number: status for number, (status, _) in answers.items()} == dict.fromkeys(
        range(1, 7), 200
    )
    assert all(set(data) == {float(number)} for number, (_, data) in answers.items())
    assert session.calls >= 8


def test_what_comes_during_a_run_is_the_next_batch(spec):
    """With no delay: one row while nobody else is there, then all that came meanwhile."""
    session = Rows()
    gateway = Gateway(spec, session, width=1, rows=8)
    gateway.ask(1)
    assert session.began.wait(20)
    for number in range(2, 7):
        gateway.ask(number)
    wait_for(lambda: len(gateway.loop._queue._waiting) == 5, "five that wait")
    gateway.ask(7, kind=frames.INFER_ALONE)
    gateway.ask(8)
    gateway.ask(9, rows=2)
    session.go_on.set()
    answers = gateway.read(9)
    gateway.close()
    assert all(status == 200 for status, _ in answers.values())
    assert all(set(data) == {float(number)} for number, (_, data) in answers.items())
    assert session.rows[:3] == [1, 5, 1]  # the last of them alone
    assert sum(session.rows[3:]) == 3


def test_the_end_comes_also_while_much_waits(spec):
    """A gateway that goes away leaves no thread behind that waits for room."""
    session = Rows()
    gateway = Gateway(spec, session, width=1, rows=2)
    for number in range(1, 20):
        gateway.ask(number)
    assert session.began.wait(20)
    session.go_on.set()
    gateway.close()
