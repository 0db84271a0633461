"""Clients of the fast path that mean harm, or are broken: others notice nothing."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
from pathlib import Path

import numpy as np
import pytest

from edgefleet_agent.client import Client
from edgefleet_agent.ipc import fast, memfd
from tests.agent.fast_raw import SIZE, WIDE, Raw, head, memory
from tests.agent.gateways import Gateway, wait_for
from tests.models import linear, package, slow

LIMIT = 4_000_000


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    """A gateway with little patience and a small body limit."""
    one = Gateway("--max-body-bytes", str(LIMIT), "--timeout-s", "3")
    folder = tmp_path_factory.mktemp("packages")
    one.control.serve(package(folder, linear(2.0, WIDE)))
    one.control.serve(package(folder, slow(), name="slow"))
    yield one
    one.close()


@pytest.fixture
def raw(gateway):
    """A client that has been welcomed."""
    one = Raw(gateway)
    yield one
    one.close()


@pytest.fixture(autouse=True)
def others_are_served(gateway):
    """After each attack a well-behaved client is answered by shared memory, as before."""
    yield
    with Client(gateway.uds) as client:
        found = client.infer("m", {"x": np.ones((1, WIDE), np.float32)})
        assert found["y"].tolist() == [[2.0 * WIDE] * 2]
    assert gateway.process.poll() is None


def in_slot(slot=0, offset=0, length=SIZE, width=WIDE):
    """Return input x in a slot."""
    return fast.Tensor("x", "FP32", (1, width), slot, offset, length)


@pytest.mark.parametrize("missing", [
    memfd.SEALS, fcntl.F_SEAL_SHRINK, fcntl.F_SEAL_GROW, fcntl.F_SEAL_SEAL,
])  # fmt: skip
def test_memory_that_is_not_sealed_is_refused(raw, missing):
    """Each seal counts: without one a reader could meet SIGBUS, now or later."""
    with memory(seals=memfd.SEALS & ~missing) as fd:
        assert raw.slot(0, fd).code == "bad_descriptor"


def test_sealed_memory_cannot_be_cut_under_a_reader(raw):
    """What the check demands is what the kernel keeps: truncating fails after it, and before."""
    with memory() as fd:
        assert raw.slot(0, fd) is None
        for size in (0, SIZE - 1, SIZE + 1):
            with pytest.raises(PermissionError):
                os.ftruncate(fd, size)
        raw.send(fast.INFER, head(in_slot()))
        assert raw.receive()[0] == fast.ANSWER


def test_only_memory_of_the_announced_size_is_taken(raw):
    """Larger or smaller than it is, without pages, or no memory at all: refused."""
    with memory() as fd:
        assert raw.slot(0, fd, SIZE + 4096).code == "bad_descriptor"
        assert raw.slot(0, fd, SIZE - 4096).code == "bad_descriptor"
    with memory(1 << 20, allocate=False) as fd:
        assert "posix_fallocate" in raw.slot(0, fd, 1 << 20).message
    read, write = os.pipe()
    for fd in (read, raw.sock.fileno()):
        assert raw.slot(0, fd).code == "bad_descriptor"
    os.close(read)
    os.close(write)
    with Path("/proc/self/exe").open("rb") as file:
        assert raw.slot(0, file.fileno()).code == "bad_descriptor"


def test_outputs_need_memory_that_can_be_written(raw):
    """A descriptor that only reads is fine for inputs and refused for outputs."""
    with memory() as fd:
        only = memfd.read_only(fd)
        assert raw.slot(0, only, access=fast.READ) is None
        assert raw.slot(1, only, access=fast.WRITE).code == "bad_descriptor"
        os.close(only)


@pytest.mark.parametrize(("tensor", "areas"), [
    (in_slot(slot=5), ()),
    (in_slot(offset=4), ()),
    (in_slot(offset=2**64 - 8), ()),
    (in_slot(length=2**64 - 1), ()),
    (in_slot(slot=1), ()),
    (in_slot(), (fast.Tensor("y", "", (), 0, 0, 8),)),
    (in_slot(), (fast.Tensor("y", "", (), 1, SIZE - 4, 8),)),
    (in_slot(), (fast.Tensor("y", "", (), 1, 2**63, 2**63),)),
])  # fmt: skip
def test_a_tensor_must_lie_in_a_slot_for_its_direction(raw, tensor, areas):
    """No such slot, past its end, with numbers that wrap, or the other direction: refused."""
    with memory() as fd, memory() as other:
        assert raw.slot(0, fd) is None
        assert raw.slot(1, other, access=fast.WRITE) is None
        number = raw.send(fast.INFER, head(tensor, areas=areas))
        assert raw.refusal(number).code == "bad_slot"


@pytest.mark.parametrize("tensor", [
    in_slot(length=SIZE - 4), in_slot(width=WIDE + 1), in_slot(width=2**62),
    fast.Tensor("x", "FP64", (1, WIDE), 0, 0, SIZE),
    fast.Tensor("z", "FP32", (1, WIDE), 0, 0, SIZE),
    fast.Tensor("x", "FP32", (2**32, 2**32), 0, 0, 0),
])  # fmt: skip
def test_a_tensor_must_fit_the_model(raw, tensor):
    """Datatype, shape and bytes are compared with the signature, and with one another."""
    with memory() as fd:
        assert raw.slot(0, fd) is None
        number = raw.send(fast.INFER, head(tensor))
        assert raw.refusal(number).code == "invalid_request"


def test_the_inline_part_is_as_long_as_the_head_says(raw):
    """Too few or too many bytes are refused, and the connection goes on."""
    one = fast.Tensor("x", "FP32", (1, WIDE), fast.INLINE, 0, SIZE)
    for length in (0, SIZE - 8, SIZE + 8):
        number = raw.send(fast.INFER, head(one), bytes(length))
        assert raw.refusal(number).code == "bad_frame"
    raw.send(fast.INFER, head(one), bytes(SIZE))
    assert raw.receive()[0] == fast.ANSWER


def test_slots_of_one_client_are_bounded_in_number_and_bytes(raw):
    """More than it may have is refused with a time to wait; what it has goes on."""
    with memory() as fd:
        for number in range(raw.limits.slots):
            assert raw.slot(number, fd) is None
        assert raw.slot(0, fd).code == "bad_slot"
        raw.send(fast.HOLD)
        assert raw.receive()[0] == fast.DONE
        asked = raw.send(fast.SLOT, struct.pack("<IIQ", fast.SLOTS_MAX, 0, SIZE), fds=[fd])
        assert raw.refusal(asked).code == "bad_frame"
    for number in range(raw.limits.slots):
        raw.send(fast.DROP, fast.offer(number, 0, 1))
        assert raw.receive()[0] == fast.DONE
    with memory(raw.limits.slot_bytes) as fd:
        assert raw.slot(0, fd, raw.limits.slot_bytes) is None
        with memory() as other:
            refused = raw.slot(1, other)
        assert (refused.status, refused.code) == (503, "slot_quota")
        assert refused.retry_after_ms > 0


def test_slots_of_all_clients_together_are_bounded(gateway):
    """Many clients with all their slots find an end before the gateway has no descriptor left."""
    clients, refused = [], None
    with memory() as fd:
        for _ in range(40):
            one = Raw(gateway)
            clients.append(one)
            for number in range(one.limits.slots):
                refused = one.slot(number, fd)
                if refused:
                    break
            if refused:
                break
    assert refused
    assert refused.code == "slot_quota"
    assert gateway.request("GET", "/v2/health/ready")[0] == 200
    for one in clients:
        one.close()
    wait_for(lambda: descriptors(gateway.process.pid) < 200, "the slots to be given back")


def descriptors(pid: int) -> int:
    """Return how many descriptors a process has."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def test_a_slot_comes_after_hold(raw):
    """Who does not wait until the gateway itself reads could lose a descriptor: it is refused."""
    with memory() as fd:
        for _ in range(2):
            raw.send(fast.SLOT, fast.offer(0, 0, SIZE), fds=[fd])
            assert raw.refusal().code == "bad_frame"
        assert raw.slot(0, fd) is None
        raw.send(fast.INFER, head(in_slot()))
        assert raw.receive()[0] == fast.ANSWER
        raw.send(fast.SLOT, fast.offer(1, 0, SIZE), fds=[fd])
        assert raw.refusal().code == "bad_frame"


def test_a_slot_needs_a_descriptor_and_gives_it_up_when_dropped(raw, gateway):
    """Without one it is refused; dropping what is not there is too."""
    before = descriptors(gateway.process.pid)
    raw.send(fast.HOLD)
    assert raw.receive()[0] == fast.DONE
    raw.send(fast.SLOT, fast.offer(0, 0, SIZE))
    assert raw.refusal().code == "bad_descriptor"
    raw.send(fast.DROP, fast.offer(0, 0, 1))
    assert raw.refusal().code == "bad_slot"
    with memory() as fd:
        assert raw.slot(0, fd) is None
    raw.send(fast.DROP, fast.offer(0, 0, 1))
    assert raw.receive()[0] == fast.DONE
    wait_for(lambda: descriptors(gateway.process.pid) <= before, "the descriptor to go")


def test_a_slot_in_use_is_not_dropped(raw):
    """While a request that names it is open it stays, so that the request can be asked again."""
    with memory(8) as fd:
        memory_view = np.array([2000], np.int64).tobytes()
        os.pwrite(fd, memory_view, 0)
        assert raw.slot(0, fd, 8) is None
        rounds = fast.Tensor("rounds", "INT64", (1,), 0, 0, 8)
        asked = raw.send(fast.INFER, head(rounds, model="slow"))
        dropped = raw.send(fast.DROP, fast.offer(0, 0, 1))
        answers = {number: kind for kind, number, _ in (raw.receive(), raw.receive())}
    assert answers == {asked: fast.ANSWER, dropped: fast.REFUSED}


def test_a_flood_of_descriptors_ends_the_connection(gateway):
    """Descriptors that belong to no slot are closed, and their sender is."""
    before = descriptors(gateway.process.pid)
    with memory() as fd:
        one = Raw(gateway)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(20):
                one.send(fast.DROP, fast.offer(0, 0, 1), fds=[fd] * 3)
        assert one.closed()
        many = Raw(gateway)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            many.send(fast.SLOT, fast.offer(0, 0, SIZE), fds=[fd] * 200)
        assert many.closed()
    one.close()
    many.close()
    wait_for(lambda: descriptors(gateway.process.pid) <= before, "no descriptor kept")


BROKEN = {
    "another version": b"\xef\x02" + bytes(22),
    "an unknown kind": fast.PREFIX.pack(0xEF, 1, 99, 0, 1, 0, 0, 0),
    "an answer": fast.prefix(fast.ANSWER, 1),
    "a second hello": fast.prefix(fast.HELLO, 1),
    "HTTP": b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n",
    "a head too long": fast.prefix(fast.INFER, 1, 2**32 - 8),
    "a head of odd length": fast.prefix(fast.INFER, 1, 7),
    "an endless inline part": fast.prefix(fast.INFER, 1, 8, 2**32 - 1),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_no_frame_ends_the_connection_with_a_reason(gateway, case):
    """Nobody guesses where the next frame would begin."""
    one = Raw(gateway)
    one.sock.sendall(BROKEN[case])
    assert one.refusal().code in {"bad_frame", "body_too_large"}
    assert one.closed()
    one.close()


def test_a_frame_before_hello_ends_the_connection(gateway):
    """The welcome tells the limits: nobody goes on without."""
    one = Raw(gateway, hello=False)
    one.send(fast.INFER, head(in_slot()))
    assert one.refusal().code == "bad_frame"
    assert one.closed()
    one.close()


def test_half_a_frame_is_given_so_much_time(gateway):
    """Whoever begins a frame and stops is closed after the gateway's patience."""
    one = Raw(gateway)
    one.sock.sendall(fast.prefix(fast.INFER, 1, 64, 1000) + bytes(100))
    assert one.closed()
    one.close()


def test_more_requests_than_may_be_open_wait_outside(gateway):
    """Beyond the bound the gateway stops reading; all are answered in the end."""
    one = Raw(gateway)
    rounds = fast.Tensor("rounds", "INT64", (1,), fast.INLINE, 0, 8)
    data = np.array([1], np.int64).tobytes()
    count = 3 * one.limits.open
    for _ in range(count):
        one.send(fast.INFER, head(rounds, model="slow"), data)
    answers = [one.receive() for _ in range(count)]
    assert {kind for kind, _, _ in answers} == {fast.ANSWER}
    assert sorted(number for _, number, _ in answers) == list(range(1, count + 1))
    one.close()


def test_a_client_that_reads_nothing_holds_little(gateway):
    """Its answers wait, and nothing more is read from it; memory stays bounded."""
    one = Raw(gateway)
    one.sock.setblocking(False)
    x = fast.Tensor("x", "FP32", (1, WIDE), fast.INLINE, 0, SIZE)
    frame = fast.prefix(fast.INFER, 1, len(head(x)), SIZE) + head(x) + bytes(SIZE)
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while sent < 200:
            one.sock.send(frame)
            sent += 1
    assert sent < 200
    one.close()


def test_a_client_that_changes_an_input_hurts_itself_alone(raw):
    """Values may be old or new; bounds were checked in numbers that it cannot reach."""
    with memory() as fd:
        assert raw.slot(0, fd) is None
        for value in range(20):
            raw.send(fast.INFER, head(in_slot()))
            os.pwrite(fd, np.full(WIDE, value, np.float32).tobytes(), 0)
            assert raw.receive()[0] == fast.ANSWER


def test_on_tcp_there_are_no_frames(gateway):
    """Descriptors cannot come there: the first byte is an HTTP error like any other."""
    host, _, port = gateway.address.rpartition(":")
    with socket.create_connection((host, int(port))) as sock:
        sock.sendall(fast.prefix(fast.HELLO, 0))
        assert sock.recv(1000).startswith(b"HTTP/1.1 400 ")
