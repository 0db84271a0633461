"""Large requests lie in memory that their worker reads: each its own, freed, given back."""

from __future__ import annotations

import json
import os
import signal
import struct
import threading

import numpy as np
import pytest

from edgefleet_agent.ipc import bodies
from edgefleet_agent.ipc.frames import NO_JSON, PLACE
from tests.models import linear, package

WIDTH = 50_000
PAGES = 64 * 4096


@pytest.fixture
def memory():
    """Both sides of fresh memory, and its descriptor."""
    fd = bodies.make()
    yield bodies.Bodies(fd), bodies.read(fd), fd
    os.close(fd)


def test_what_is_laid_down_is_read_where_the_frame_says(memory):
    """Byte for byte, tensors aligned whatever the length of the JSON before them."""
    ours, theirs, _ = memory
    for number, json_length in enumerate((NO_JSON, 0, 1, 63, 64, 12_345)):
        body = bytes([number]) * 100_001
        at, length = PLACE.unpack(ours.lay(number, body, json_length))
        assert theirs[at : at + length] == body
        assert (at + (0 if json_length == NO_JSON else json_length)) % 64 == 0
    assert theirs.readonly


def test_room_is_found_lowest_first_and_ends(memory):
    """Nobody's body is laid over another's; without room the answer is None."""
    ours, theirs, _ = memory
    size = bodies.BYTES // 4
    places = [PLACE.unpack(ours.lay(n, bytes([n + 1]) * size, NO_JSON))[0] for n in range(4)]
    assert places == [0, size, 2 * size, 3 * size]
    assert ours.lay(9, bytes(bodies.LEAST), NO_JSON) is None
    ours.free(1)
    ours.free(9)
    assert PLACE.unpack(ours.lay(5, bytes(size - 64), NO_JSON)) == (size, size - 64)
    assert ours.lay(6, bytes(65), NO_JSON) is None
    assert [theirs[at] for at in places] == [1, 0, 3, 4]


def test_pages_go_back_once_nothing_lies_there(memory):
    """As the kernel counts the blocks of the memory."""
    ours, _, fd = memory
    ours.lay(1, b"x" * PAGES, NO_JSON)
    ours.empty()
    assert os.fstat(fd).st_blocks * 512 >= PAGES
    ours.free(1)
    ours.empty()
    assert os.fstat(fd).st_blocks == 0


def test_a_worker_can_neither_shrink_nor_grow_it(memory):
    """So that it cannot take the gateway's pages away under it."""
    for size in (0, bodies.BYTES * 2):
        with pytest.raises(PermissionError):
            os.ftruncate(memory[2], size)


def _request(at: int, value: float) -> tuple[bytes, dict[str, str]]:
    """Return a body of 200 kB whose sum is `value`, and its headers."""
    data = np.zeros(WIDTH, np.float32)
    data[at] = value
    tensor = {
        "name": "x", "datatype": "FP32", "shape": [1, WIDTH],
        "parameters": {"binary_data_size": data.nbytes},
    }  # fmt: skip
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    return head + data.tobytes(), {"Inference-Header-Content-Length": str(len(head))}


def _ask(gateway, at: int, value: float) -> list[float]:
    connection = gateway.connect()
    connection.request("POST", "/v2/models/m/infer", *_request(at, value))
    answer = connection.getresponse()
    data = answer.read()
    connection.close()
    assert answer.status == 200, data
    return list(struct.unpack("<2f", data[-8:]))


def test_each_client_gets_the_answer_to_its_own(gateway, tmp_path):
    """Six at once, each with its own numbers, while the worker is killed twice."""
    one = package(tmp_path, linear(1.0, WIDTH))
    pid = gateway.control.serve(one).pid
    wrong: list = []
    halfway = threading.Barrier(7)

    def client(index: int) -> None:
        for count in range(40):
            value = float(1000 * index + count)
            found = _ask(gateway, (index * 7919 + count) % WIDTH, value)
            if found != [value, value]:
                wrong.append((found, value))
            if count in {10, 20}:
                halfway.wait(20)

    threads = [threading.Thread(target=client, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for _ in range(2):
        halfway.wait(20)
        os.kill(pid, signal.SIGKILL)
        gateway.control.wait_event("restarted")
        pid = gateway.control.load(one).pid
    for thread in threads:
        thread.join()
    assert wrong == []
