"""Control messages on a SOCK_SEQPACKET Unix socket: each one packet of MessagePack."""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Sequence

import msgspec

from edgefleet_agent.ipc.control import MAX_FDS, Message
from edgefleet_shared.errors import UnavailableError

MESSAGE_MAX_BYTES = 160 * 1024

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> bytes:
    """Return a message's bytes.

    Raises:
        UnavailableError: Longer than one packet may be (code `too_large`).
    """
    data = _encoder.encode(message)
    if len(data) > MESSAGE_MAX_BYTES:
        raise UnavailableError(
            f"A control message has {len(data)} bytes; {MESSAGE_MAX_BYTES} is the limit.",
            code="too_large",
        )
    return data


def send(sock: socket.socket, message: Message, fds: Sequence[int] = ()) -> None:
    """Send one message with descriptors; blocks while the peer's queue is full.

    Raises:
        OSError: The peer is gone.
    """
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([encode(message)], ancillary)


def receive(sock: socket.socket) -> tuple[Message, list[int]] | None:
    """Receive one message and its descriptors (close-on-exec, now the caller's); None at the end.

    Raises:
        OSError: The socket failed; BlockingIOError if it is non-blocking and empty.
        msgspec.ValidationError: The peer does not speak this protocol; descriptors are closed.
    """
    room = socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize)
    data, ancillary, _, _ = sock.recvmsg(MESSAGE_MAX_BYTES, room, socket.MSG_CMSG_CLOEXEC)
    fds: list[int] = []
    for level, kind, body in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers = array.array("i")
            numbers.frombytes(body[: len(body) - len(body) % numbers.itemsize])
            fds.extend(numbers)
    if not data:
        return None
    try:
        return _decoder.decode(data), fds
    except msgspec.DecodeError:
        for fd in fds:
            os.close(fd)
        raise
