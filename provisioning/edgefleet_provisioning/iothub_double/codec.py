"""MQTT 3.1.1 packets, a server's half of them. Pure."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

MAX_PACKET = 256 * 1024 + 8 * 1024
"""Bytes: a message of 256 KiB and its topic."""


class Kind(IntEnum):
    """The kinds of packets."""

    CONNECT = 1
    CONNACK = 2
    PUBLISH = 3
    PUBACK = 4
    SUBSCRIBE = 8
    SUBACK = 9
    UNSUBSCRIBE = 10
    UNSUBACK = 11
    PINGREQ = 12
    PINGRESP = 13
    DISCONNECT = 14


class ProtocolError(Exception):
    """What has come is no packet that a client may send; the connection ends."""


class Packet(NamedTuple):
    """One packet: its kind, its flags, and what follows its length."""

    kind: Kind
    flags: int
    body: bytes


class Will(NamedTuple):
    """What is to be published when a connection ends without a DISCONNECT."""

    topic: str
    payload: bytes


class Connect(NamedTuple):
    """How a client introduces itself; `keep_alive` in seconds, 0 for none."""

    client_id: str
    clean: bool
    keep_alive: int
    username: str
    password: str
    will: Will | None


class Publish(NamedTuple):
    """A message; `number` is 0 at QoS 0."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    number: int


class Decoder:
    """Cuts a stream of bytes into packets.

    Args:
        first: What the first packet must be.
    """

    def __init__(self, first: Kind | None = None) -> None:
        self._first = first
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Packet]:
        """Take bytes; return the packets that are whole now.

        Raises:
            ProtocolError: A packet of no known kind, or of more than `MAX_PACKET` bytes.
        """
        if self._first is not None and data:
            if data[0] >> 4 != self._first:
                raise ProtocolError(f"The first packet is no {self._first.name}.")
            self._first = None
        self._buffer += data
        found = []
        while (packet := self._next()) is not None:
            found.append(packet)
        return found

    def _next(self) -> Packet | None:
        size, at = 0, 1
        while True:
            if len(self._buffer) <= at:
                return None
            byte = self._buffer[at]
            size |= (byte & 0x7F) << 7 * (at - 1)
            at += 1
            if byte < 0x80:
                break
            if at > 4:
                raise ProtocolError("A length of more than four bytes.")
        if size > MAX_PACKET:
            raise ProtocolError(f"A packet of {size} bytes.")
        if len(self._buffer) < at + size:
            return None
        first, body = self._buffer[0], bytes(self._buffer[at : at + size])
        del self._buffer[: at + size]
        try:
            return Packet(Kind(first >> 4), first & 0x0F, body)
        except ValueError:
            raise ProtocolError(f"A packet of kind {first >> 4}.") from None


class _Reader:
    def __init__(self, body: bytes) -> None:
        self.body, self.at = body, 0

    def take(self, size: int) -> bytes:
        if self.at + size > len(self.body):
            raise ProtocolError("A packet ends too early.")
        self.at += size
        return self.body[self.at - size : self.at]

    def number(self) -> int:
        return int.from_bytes(self.take(2), "big")

    def data(self) -> bytes:
        return self.take(self.number())

    def text(self) -> str:
        try:
            return self.data().decode()
        except UnicodeDecodeError:
            raise ProtocolError("Text that is not UTF-8.") from None

    def rest(self) -> bytes:
        return self.take(len(self.body) - self.at)

    @property
    def more(self) -> bool:
        return self.at < len(self.body)


def read_connect(packet: Packet) -> Connect:
    """Read a CONNECT.

    Raises:
        ProtocolError: It is none of MQTT 3.1.1.
    """
    reader = _Reader(packet.body)
    if packet.kind is not Kind.CONNECT or reader.text() != "MQTT" or reader.take(1) != b"\x04":
        raise ProtocolError("No CONNECT of MQTT 3.1.1.")
    flags = reader.take(1)[0]
    keep_alive = reader.number()
    client_id = reader.text()
    will = Will(reader.text(), reader.data()) if flags & 0x04 else None
    username = reader.text() if flags & 0x80 else ""
    password = reader.text() if flags & 0x40 else ""
    return Connect(client_id, bool(flags & 0x02), keep_alive, username, password, will)


def read_publish(packet: Packet) -> Publish:
    """Read a PUBLISH.

    Raises:
        ProtocolError: It is cut short.
    """
    reader = _Reader(packet.body)
    topic = reader.text()
    qos = packet.flags >> 1 & 3
    number = reader.number() if qos else 0
    return Publish(topic, reader.rest(), qos, bool(packet.flags & 1), number)


def read_subscribe(packet: Packet) -> tuple[int, list[tuple[str, int]]]:
    """Read a SUBSCRIBE: its number, its filters with the QoS that each asks for.

    Raises:
        ProtocolError: It is cut short, or names no filter.
    """
    reader = _Reader(packet.body)
    number = reader.number()
    filters = []
    while reader.more:
        filters.append((reader.text(), reader.take(1)[0]))
    if not filters:
        raise ProtocolError("A subscription to nothing.")
    return number, filters


def read_unsubscribe(packet: Packet) -> tuple[int, list[str]]:
    """Read an UNSUBSCRIBE: its number and its filters."""
    reader = _Reader(packet.body)
    number = reader.number()
    filters = []
    while reader.more:
        filters.append(reader.text())
    return number, filters


def read_number(packet: Packet) -> int:
    """Read the number of an acknowledgement."""
    return _Reader(packet.body).number()


def connack(code: int, *, present: bool = False) -> bytes:
    """Return a CONNACK with a return code; `present`: a session of old goes on."""
    return _packet(Kind.CONNACK, bytes([int(present and not code), code]))


def publish(topic: str, payload: bytes, number: int = 0) -> bytes:
    """Return a PUBLISH: QoS 1 with a number, QoS 0 without."""
    named = number.to_bytes(2, "big") if number else b""
    said = topic.encode()
    body = len(said).to_bytes(2, "big") + said + named + payload
    return _packet(Kind.PUBLISH, body, 2 if number else 0)


def suback(number: int, codes: list[int]) -> bytes:
    """Return a SUBACK with a code for each filter; 0x80 refuses."""
    return _packet(Kind.SUBACK, number.to_bytes(2, "big") + bytes(codes))


def acknowledge(kind: Kind, number: int) -> bytes:
    """Return a PUBACK or an UNSUBACK."""
    return _packet(kind, number.to_bytes(2, "big"))


def pingresp() -> bytes:
    """Return a PINGRESP."""
    return _packet(Kind.PINGRESP, b"")


def _packet(kind: Kind, body: bytes, flags: int = 0) -> bytes:
    size, length = len(body), bytearray()
    while True:
        size, low = divmod(size, 128)
        length.append(low | (0x80 if size else 0))
        if not size:
            return bytes([kind << 4 | flags]) + bytes(length) + body
