"""The double's own AMQP 1.0: values, frames, and clients that do not keep to it."""

import socket
import struct
from contextlib import suppress
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefleet_provisioning.iothub_double import amqp_frames as amqp
from edgefleet_provisioning.iothub_double.amqp_codec import (
    AmqpError,
    Described,
    Int,
    Reader,
    Symbol,
    Symbols,
    Timestamp,
    UByte,
    UInt,
    ULong,
    UShort,
    encode,
)
from edgefleet_provisioning.iothub_double.amqp_session import Session
from tests.iothub.service_world import service_world, until

_SMALL = (
    st.none()
    | st.booleans()
    | st.text(max_size=300)
    | st.binary(max_size=300)
    | st.uuids()
    | st.floats(allow_nan=False)
    | st.integers(-(2**63), 2**63 - 1)
    | st.integers(0, 255).map(UByte)
    | st.integers(0, 2**16 - 1).map(UShort)
    | st.integers(0, 2**32 - 1).map(UInt)
    | st.integers(0, 2**64 - 1).map(ULong)
    | st.integers(-(2**31), 2**31 - 1).map(Int)
    | st.integers(-(2**63), 2**63 - 1).map(Timestamp)
    | st.text(st.characters(max_codepoint=127), max_size=20).map(Symbol)
)
_VALUES = st.recursive(
    _SMALL,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.text(max_size=8), inner, max_size=5)
        | st.builds(Described, st.integers(0, 300), inner)
    ),
    max_leaves=12,
)


@given(_VALUES)
def test_a_value_is_read_as_it_was_written(value):
    """Every type survives, with its kind, and nothing is left over."""
    reader = Reader(encode(value))
    found = reader.value()
    assert found == value
    assert type(found) is type(value) or isinstance(value, tuple)
    assert reader.rest == b""


@given(st.binary(max_size=200))
def test_no_bytes_break_the_reader(data):
    """What is no AMQP is said to be none; nothing else is raised."""
    for read in (Reader(data).value, lambda: amqp.read_message(data)):
        with suppress(AmqpError):
            read()
    with suppress(AmqpError):
        amqp.read_frame(struct.pack(">IBBH", len(data) + 8, 2, 0, 0), data)


def test_lists_are_written_whole():
    """Trailing nulls stay, for clients that index the fields of a frame by number."""
    body = amqp.performative(amqp.OPEN, container_id="x")
    assert Reader(body).value() == Described(amqp.OPEN, ["x", *[None] * 9])


def test_arrays_of_symbols_and_small_encodings_are_read():
    """What other writers prefer: list0, list8, map8, small numbers, arrays."""
    assert Reader(encode(Symbols(["a", "bc"]))).value() == ["a", "bc"]
    assert Reader(b"\x45").value() == []
    assert Reader(b"\xc0\x03\x02\x41\x42").value() == [True, False]
    assert Reader(b"\xc1\x05\x02\xa1\x01a\x41").value() == {"a": True}
    assert Reader(b"\x52\x07").value() == 7
    assert Reader(b"\xe0\x04\x02\x52\x01\x02").value() == [1, 2]
    assert Reader(b"\x98" + bytes(16)).value() == UUID(int=0)


@pytest.mark.parametrize("data", [b"", b"\xff", b"\xa1\x05ab", b"\xc0\xff\xff", b"\xa1\x01\xff",
                                  b"\x00" * 100, b"\xc1\x02\x01\x40"])  # fmt: skip
def test_broken_values_are_refused(data):
    """Too short, unknown, no UTF-8, too deep, a key without a value."""
    with pytest.raises(AmqpError):
        Reader(data).value()


@pytest.fixture
def world(tmp_path):
    """A double whose connections may be silent for a third of a second."""
    with service_world(tmp_path) as made:
        made.side.events.times.idle_s = 0.3
        yield made


def _connect(world):
    made = socket.create_connection((world.side.address, world.side.events.port), timeout=20)
    made.sendall(amqp.AMQP_HEADER)
    assert made.recv(8) == amqp.AMQP_HEADER
    return made


def _frames(sock):
    """Read frames until the other side ends the connection."""
    data = b""
    while True:
        try:
            more = sock.recv(65536)
        except ConnectionResetError:
            more = b""
        if not more:
            return
        data += more
        while len(data) >= 8 and len(data) >= struct.unpack(">I", data[:4])[0]:
            size = struct.unpack(">I", data[:4])[0]
            yield amqp.read_frame(data[:8], data[8:size])
            data = data[size:]


def test_a_silent_client_is_shown_the_door(world):
    """The double sends empty frames meanwhile, then closes with a word."""
    with _connect(world) as sock:
        told = amqp.performative(
            amqp.OPEN, container_id="c", hostname="h", max_frame_size=512, idle_time_out=100
        )
        sock.sendall(amqp.frame(0, told))
        heard = list(_frames(sock))
    assert heard[0].code == amqp.OPEN
    assert heard[0].fields["idle_time_out"] == 300
    assert any(frame.code == 0 for frame in heard)
    assert heard[-1].code == amqp.CLOSE
    assert heard[-1].fields["error"].value[0] == "amqp:connection:forced"
    until(lambda: not world.side.events.connections)


_RUDE = {
    "no frame": b"GET / HTTP/1.1\r\n\r\n",
    "a frame shorter than its header": struct.pack(">IBBH", 3, 2, 0, 0),
    "a frame without a performative": amqp.frame(0, encode("hello")),
    "a transfer on no session": amqp.frame(7, amqp.performative(amqp.TRANSFER, handle=1)),
    "a performative with too many fields": amqp.frame(
        0, encode(Described(amqp.CLOSE, [None, None]))
    ),
    "an attach without an address": amqp.frame(
        0, amqp.performative(amqp.BEGIN, next_outgoing_id=0, incoming_window=1, outgoing_window=1)
    ) + amqp.frame(0, amqp.performative(amqp.ATTACH, name="x", handle=0, role=True)),
    "an attach without a handle": amqp.frame(
        0, amqp.performative(amqp.BEGIN, next_outgoing_id=0, incoming_window=1, outgoing_window=1)
    ) + amqp.frame(0, amqp.performative(amqp.ATTACH, name="x", role=True)),
    "a number where a list should be": amqp.frame(0, encode(Described(amqp.OPEN, 7))),
    "a window that is text": amqp.frame(
        0, encode(Described(amqp.BEGIN, [None, "a", "b", "c"]))
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", _RUDE)
def test_a_rude_client_ends_alone(world, case):
    """Its connection is closed as a decoding error; the next client is served."""
    world.side.events.times.idle_s = 60.0
    with _connect(world) as sock:
        sock.sendall(_RUDE[case])
        heard = list(_frames(sock))
    assert heard[-1].code == amqp.CLOSE
    assert heard[-1].fields["error"].value[0] == "amqp:decode-error"
    with _connect(world):
        pass
    until(lambda: not world.side.events.connections)


def test_plain_sasl_takes_a_policys_key(world):
    """A name and its key over SASL PLAIN; a wrong key gets the code for it."""
    good = f"\0service\0{world.hub.policies['service']}".encode()
    for response, code in ((good, 0), (b"\0service\0wrong", 1), (b"nonsense", 1)):
        with socket.create_connection(
            (world.side.address, world.side.events.port), timeout=20
        ) as sock:
            sock.sendall(amqp.SASL_HEADER)
            init = amqp.performative(
                amqp.SASL_INIT, mechanism=Symbol("PLAIN"), initial_response=response
            )
            sock.sendall(amqp.frame(0, init, amqp.SASL_FRAME))
            assert sock.recv(8) == amqp.SASL_HEADER
            frames = _frames(sock)
            assert next(frames).code == amqp.SASL_MECHANISMS
            assert next(frames).fields["code"] == code


class _Wire:
    """Keeps what a session writes."""

    max_frame = 512

    def __init__(self):
        self.sent = []

    def send(self, channel, body):
        self.sent.append(amqp.read_frame(struct.pack(">IBBH", len(body) + 8, 2, 0, channel), body))

    def wake(self):
        pass


class _Desk:
    """Opens one source of messages."""

    def __init__(self, *messages):
        self._messages = list(messages)

    def open_source(self, ask):
        return self

    def take(self, most):
        taken, self._messages = self._messages[:most], self._messages[most:]
        return taken

    def release(self):
        pass


def test_a_session_heeds_credit_and_window():
    """One frame for each that the window allows, one message for each credit, none lost between."""
    wire, large = _Wire(), bytes(range(256)) * 6
    session = Session(wire, _Desk(large, b"second", b"third"), 1, _said(
        amqp.BEGIN, next_outgoing_id=0, incoming_window=2, outgoing_window=1
    ))  # fmt: skip
    source = Described(amqp.SOURCE, ["events"])
    session.hear(_said(amqp.ATTACH, name="l", handle=0, role=True, source=source))
    assert not session.pump()  # no credit yet
    for seen, sent in ((0, 2), (2, 4), (4, 5)):
        session.hear(
            _said(
                amqp.FLOW, next_incoming_id=seen, incoming_window=2, next_outgoing_id=0,
                outgoing_window=1, handle=0, delivery_count=0, link_credit=2,
            )
        )  # fmt: skip
        session.pump()
        assert len(_transfers(wire)) == sent
    first, second = _transfers(wire)[:4], _transfers(wire)[4]
    assert b"".join(frame.payload for frame in first) == large
    assert [frame.fields["more"] for frame in first] == [True, True, True, False]
    assert {frame.fields["delivery_id"] for frame in first} == {0}
    assert (second.fields["delivery_id"], second.payload) == (1, b"second")


def test_a_drained_link_gives_its_credit_back():
    """What is there is sent; the rest of the credit is used up and said so."""
    wire = _Wire()
    begin = _said(amqp.BEGIN, next_outgoing_id=0, incoming_window=99, outgoing_window=1)
    session = Session(wire, _Desk(b"only"), 1, begin)
    source = Described(amqp.SOURCE, ["events"])
    session.hear(_said(amqp.ATTACH, name="l", handle=0, role=True, source=source))
    session.hear(
        _said(
            amqp.FLOW, next_incoming_id=0, incoming_window=99, next_outgoing_id=0,
            outgoing_window=1, handle=0, delivery_count=0, link_credit=10, drain=True,
        )
    )  # fmt: skip
    assert [frame.payload for frame in _transfers(wire)] == [b"only"]
    told = wire.sent[-1]
    assert (told.fields["delivery_count"], told.fields["link_credit"]) == (10, 0)


def _said(code, /, **fields):
    return amqp.Frame(
        1, code, amqp.read_frame(bytes([0, 0, 0, 8, 2, 0, 0, 1]), amqp.performative(code, **fields))
        .fields, b"",
    )  # fmt: skip


def _transfers(wire):
    return [frame for frame in wire.sent if frame.code == amqp.TRANSFER]
