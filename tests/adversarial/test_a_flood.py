"""Row 8 over a real broker: what is too large is cut, and the connection survives it."""

from __future__ import annotations

import base64
import json
import zlib
from pathlib import Path

import msgspec
import pytest

from edgefleet_shared.identifiers import new_id
from tests.adversarial.field import Field

pytestmark = pytest.mark.mosquitto


@pytest.fixture
def field():
    """A device that serves 1.0.0."""
    field = Field()
    try:
        field.one = field.publish("1.0.0", 1.0)
        field.start()
        field.thief.send(field.thief.order(field.one))
        field.serves("1.0.0")
        yield field
    finally:
        field.close()


def memory_kb(pid: int, what: str) -> int:
    """Return a figure of a process's memory, for example VmRSS."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(what)).split()[1])


def documents(field: Field) -> list[tuple[bytes, str]]:
    """Return documents that are too large, and by what code each is refused."""
    packer, mebibyte = zlib.compressobj(9), bytes(1 << 20)
    inflating = b"".join(packer.compress(mebibyte) for _ in range(64)) + packer.flush()
    bomb = {
        "v": 1, "counter": 9, "ts": "", "blobs": "", "assignment": "",
        "bundle": base64.b64encode(inflating).decode(),
    }  # fmt: skip
    return [
        (b"x" * 10_000_000, "malformed"),
        (b'{"v":1,"padding":"' + b"x" * 10_000_000 + b'"}', "malformed"),
        (b"[" * 10_000_000, "malformed"),
        (json.dumps(bomb).encode(), "bundle_too_large"),
    ]


def test_08_ten_megabytes_over_mqtt_are_cut_and_the_connection_survives(field):
    """Each is refused and told; the next honest document comes over the same connection."""
    pid = field.process.pid
    field.wait(lambda: field.told("connected"), "the first connection is told")
    resident = []
    for _ in range(2):
        for payload, code in documents(field):
            before = len(field.events)
            field.thief.say(payload)
            field.wait(lambda before=before, code=code: field.told(code, before), code)
            assert field.ask() == ("1.0.0", [4.0, 4.0])
        resident.append(memory_kb(pid, "VmRSS"))
    two = field.publish("2.0.0", 2.0)
    field.thief.send(field.thief.order(msgspec.structs.replace(two, deployment=new_id())))
    field.serves("2.0.0")
    assert len(field.told("connected")) == 1
    assert not field.told("disconnected")
    # What malloc has taken once it may keep; of 30 MB more nothing stays.
    assert resident[1] - resident[0] < 15_000
