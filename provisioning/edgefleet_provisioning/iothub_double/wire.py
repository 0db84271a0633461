"""How bytes come from a device and go to it: TLS, or WebSocket frames within TLS."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import ssl
from contextlib import suppress
from typing import Protocol

PATH = "/$iothub/websocket"
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_CHUNK = 64 * 1024
_HEAD = 16 * 1024
_FRAME = 1024 * 1024
_CONTINUED, _BINARY, _CLOSE, _PING, _PONG = 0, 2, 8, 9, 10


class Wire(Protocol):
    """Both directions of one connection, in the thread of its loop."""

    async def read(self) -> bytes:
        """Return what has come; b"" if nothing will come any more."""

    def write(self, data: bytes) -> None:
        """Send."""

    def leaf(self) -> bytes | None:
        """Return the certificate (DER) that the other side has presented."""

    def abort(self) -> None:
        """End the connection without a word."""

    def close(self) -> None:
        """End the connection when all is sent."""


class TlsWire:
    """The stream itself."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def read(self) -> bytes:
        """See `Wire`."""
        with suppress(OSError, ssl.SSLError):
            return await self.reader.read(_CHUNK)
        return b""

    def write(self, data: bytes) -> None:
        """See `Wire`."""
        if not self.writer.transport.is_closing():
            self.writer.write(data)

    def leaf(self) -> bytes | None:
        """See `Wire`."""
        tls = self.writer.get_extra_info("ssl_object")
        return tls.getpeercert(binary_form=True) if tls is not None else None

    def abort(self) -> None:
        """See `Wire`."""
        self.writer.transport.abort()

    def close(self) -> None:
        """See `Wire`."""
        self.writer.close()


class WebSocketWire:
    """Binary frames, as MQTT over WebSockets puts its packets."""

    def __init__(self, below: TlsWire) -> None:
        self._below = below
        self._buffer = bytearray()

    async def read(self) -> bytes:
        """See `Wire`."""
        while True:
            frame = self._frame()
            if frame is None:
                more = await self._below.read()
                if not more:
                    return b""
                self._buffer += more
                continue
            opcode, payload = frame
            if opcode == _PING:
                self._send(_PONG, payload)
            elif opcode == _CLOSE:
                self._send(_CLOSE, payload[:2])
                return b""
            elif opcode in {_BINARY, _CONTINUED} and payload:
                return payload

    def write(self, data: bytes) -> None:
        """See `Wire`."""
        self._send(_BINARY, data)

    def leaf(self) -> bytes | None:
        """See `Wire`."""
        return self._below.leaf()

    def abort(self) -> None:
        """See `Wire`."""
        self._below.abort()

    def close(self) -> None:
        """See `Wire`."""
        self._below.close()

    def _send(self, opcode: int, data: bytes) -> None:
        size = len(data)
        if size < 126:
            length = bytes([size])
        elif size < 65536:
            length = b"\x7e" + size.to_bytes(2, "big")
        else:
            length = b"\x7f" + size.to_bytes(8, "big")
        self._below.write(bytes([0x80 | opcode]) + length + data)

    def _frame(self) -> tuple[int, bytes] | None:
        """Take a whole frame from the buffer; a frame without a mask ends the connection."""
        if len(self._buffer) < 2:
            return None
        size, at = self._buffer[1] & 0x7F, 2
        extended = {126: 2, 127: 8}.get(size, 0)
        if extended:
            if len(self._buffer) < at + extended:
                return None
            size = int.from_bytes(self._buffer[at : at + extended], "big")
            at += extended
        if size > _FRAME or not self._buffer[1] & 0x80:
            return _CLOSE, b""
        if len(self._buffer) < at + 4 + size:
            return None
        mask = bytes(self._buffer[at : at + 4])
        masked = bytes(self._buffer[at + 4 : at + 4 + size])
        opcode = self._buffer[0] & 0x0F
        del self._buffer[: at + 4 + size]
        stream = int.from_bytes((mask * (size // 4 + 1))[:size], "big")
        plain = (int.from_bytes(masked, "big") ^ stream).to_bytes(size, "big")
        return opcode, plain


async def read_head(below: TlsWire) -> bytes:
    """Return an HTTP request's head with its empty line; b"" if none comes."""
    with suppress(asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
        head = await below.reader.readuntil(b"\r\n\r\n")
        return head if len(head) <= _HEAD else b""
    return b""


def upgrade(head: bytes) -> bytes | None:
    """Return the answer that makes a WebSocket of a request; None if it asks for something else."""
    request, *lines = head.decode("latin-1").split("\r\n")
    headers = {
        name.strip().lower(): value.strip() for name, _, value in (s.partition(":") for s in lines)
    }
    path = [*request.split(" "), "", ""][1].partition("?")[0].replace("%24", "$")
    if path != PATH or headers.get("upgrade", "").lower() != "websocket":
        return None
    key = headers.get("sec-websocket-key", "").encode()
    accept = base64.b64encode(hashlib.sha1(key + _GUID).digest())  # noqa: S324 - RFC 6455
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept + b"\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n"
    )
