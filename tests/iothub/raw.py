"""A client of MQTT 3.1.1 that may break every rule: bytes over TLS, or over a WebSocket."""

from __future__ import annotations

import socket
import ssl
import time
from types import TracebackType
from typing import Self

from azure.iot.device import X509

from edgefleet_provisioning.iothub_double.codec import Decoder, Kind, Packet
from edgefleet_provisioning.iothub_double.credentials import make_token
from edgefleet_provisioning.iothub_double.double import AzureDouble


def text(said: str | bytes) -> bytes:
    """Return a string as MQTT writes it: its length, then itself."""
    data = said.encode() if isinstance(said, str) else said
    return len(data).to_bytes(2, "big") + data


def packet(kind: int, body: bytes, flags: int = 0) -> bytes:
    """Return a packet."""
    size, length = len(body), bytearray()
    while True:
        size, low = divmod(size, 128)
        length.append(low | (0x80 if size else 0))
        if not size:
            return bytes([kind << 4 | flags]) + bytes(length) + body


class Raw:
    """A connection to a hub of the double."""

    def __init__(self, double: AzureDouble, hub: str = "", shown: X509 | None = None) -> None:
        self.double, self.hub = double, double.hub(hub)
        context = ssl.create_default_context(cafile=str(double.ca_file))
        if shown is not None:
            context.load_cert_chain(shown.certificate_file, shown.key_file)
        plain = socket.create_connection((double.address(hub), 8883), timeout=15)
        self.socket = context.wrap_socket(plain, server_hostname=double.address(hub))
        self.decoder = Decoder()
        self.waiting: list[Packet] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.socket.close()

    def connect(
        self, device: str, *, clean: bool = False, keep_alive: int = 60, client_id: str = "",
        user: str = "", password: str | None = None, will: tuple[str, bytes] | None = None,
    ) -> int:  # fmt: skip
        """Introduce a device; return the code of the CONNACK."""
        where = f"{self.hub.host}/devices/{device}"
        if password is None:
            key = self.hub.registry.get(device).primary
            password = make_token(where, key, int(self.hub.clock.now()) + 3600)
        named = user or f"{self.hub.host}/{device}/?api-version=2021-04-12"
        flags = 0xC0 | (0x02 if clean else 0) | (0x0C if will else 0)
        body = text("MQTT") + bytes([4, flags]) + keep_alive.to_bytes(2, "big")
        body += text(client_id or device)
        body += text(will[0]) + text(will[1]) if will else b""
        self.send(packet(Kind.CONNECT, body + text(named) + text(password)))
        answer = self.next()
        assert answer.kind is Kind.CONNACK
        self.present = bool(answer.body[0])
        return answer.body[1]

    def send(self, data: bytes) -> None:
        """Send bytes."""
        self.socket.sendall(data)

    def subscribe(self, *filters: str) -> list[int]:
        """Subscribe at QoS 1; return the codes."""
        body = b"\x00\x01" + b"".join(text(name) + b"\x01" for name in filters)
        self.send(packet(Kind.SUBSCRIBE, body, 2))
        return list(self.next().body[2:])

    def publish(self, topic: str, payload: bytes, qos: int = 1, *, retain: bool = False) -> None:
        """Publish, with 7 as the number."""
        number = b"\x00\x07" if qos else b""
        flags = qos << 1 | int(retain)
        self.send(packet(Kind.PUBLISH, text(topic) + number + payload, flags))

    def next(self) -> Packet:
        """Return the next packet.

        Raises:
            EOFError: The server has ended the connection.
        """
        while not self.waiting:
            try:
                data = self.socket.recv(65536)
            except (ConnectionError, ssl.SSLError):
                data = b""
            if not data:
                raise EOFError
            self.waiting = self.decoder.feed(data)
        return self.waiting.pop(0)

    def closed(self, within_s: float = 15) -> bool:
        """Return whether the server ends the connection."""
        end = time.monotonic() + within_s
        try:
            while time.monotonic() < end:
                self.next()
        except EOFError:
            return True
        return False
