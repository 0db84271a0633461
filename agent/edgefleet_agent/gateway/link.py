"""The gateway's end of the socketpair to one worker."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from typing import Protocol, cast

from edgefleet_agent.ipc import frames

FrameHandler = Callable[[frames.Frame], None]
_JOIN_BELOW = 64 * 1024


class HasDescriptor(Protocol):
    """Something with an open descriptor."""

    def fileno(self) -> int:
        """Return it; -1 if it is closed."""


class Link(asyncio.BufferedProtocol):
    """Sends frames, hands over the ones that come, tells once when the worker is gone.

    Args:
        on_frame: Called with each frame.
        on_lost: Called once when the worker is gone.
        longest: Bytes of the longest body that is taken; a worker that announces more is lost.
    """

    def __init__(self, on_frame: FrameHandler, on_lost: Callable[[], None], longest: int) -> None:
        self._longest = longest
        self.on_frame = on_frame
        self.on_lost = on_lost
        self._buffer = frames.FrameBuffer()
        self._transport: asyncio.WriteTransport | None = None
        self._socket: socket.socket | None = None  # for descriptors, which no transport sends

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.WriteTransport", transport)
        fd = transport.get_extra_info("socket").fileno()
        self._socket = socket.socket(fileno=os.dup(fd))

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where to receive."""
        del sizehint
        return self._buffer.space()

    def buffer_updated(self, nbytes: int) -> None:
        """Hand over every frame that is whole."""
        self._buffer.wrote(nbytes)
        while (frame := self._buffer.next()) is not None:
            self.on_frame(frame)
        if self._buffer.awaited > self._longest and self._transport is not None:
            self._transport.abort()  # before there is room for it

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell that the worker is gone."""
        del exc
        self._transport = None
        if self._socket is not None:
            self._socket.close()
        self.on_lost()

    def send(self, head: bytes, body: bytes) -> None:
        """Send one frame; does nothing once the worker is gone, `on_lost` tells that."""
        transport = self._transport
        if transport is None:
            return
        if len(body) < _JOIN_BELOW:
            transport.write(head + body)
        else:
            transport.write(head)
            transport.write(body)

    def send_descriptor(self, head: bytes, what: HasDescriptor) -> bool:
        """Send a frame without a body and a descriptor with it; return whether it is sent.

        It is not while anything else waits to be sent: it would come within that.
        """
        transport, sock, fd = self._transport, self._socket, what.fileno()
        if transport is None or sock is None or fd < 0 or transport.get_write_buffer_size():
            return False
        with contextlib.suppress(OSError):
            return socket.send_fds(sock, [head], [fd], socket.MSG_DONTWAIT) == len(head)
        return False

    def close(self) -> None:
        """Close the socket, which ends an idle worker."""
        if self._transport is not None:
            self._transport.close()
