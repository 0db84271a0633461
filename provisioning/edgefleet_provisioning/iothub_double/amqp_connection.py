"""One connection of AMQP 1.0 as Event Hubs serves it: SASL, open, sessions, idle time-out."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from edgefleet_provisioning.iothub_double import amqp_frames as amqp
from edgefleet_provisioning.iothub_double.amqp_codec import AmqpError, Symbols, UByte
from edgefleet_provisioning.iothub_double.amqp_links import Desk
from edgefleet_provisioning.iothub_double.amqp_session import Session

MAX_FRAME = 65536
_BUFFERED_MAX = 512 * 1024  # bytes that may wait for a slow client before no more events are read
_MECHANISMS = Symbols(["ANONYMOUS", "PLAIN", "EXTERNAL", "MSSBCBS"])
_SASL_OK, _SASL_AUTH = 0, 1
_SASL_FRAME_MAX = 512 * 16


@dataclass
class Times:
    """How long a connection may be silent, in seconds; settable so that tests need not wait."""

    idle_s: float = 240.0


class PlainCheck(Protocol):
    """A desk that also takes a policy's name and key over SASL PLAIN."""

    def plain(self, policy: str, key: str) -> bool:
        """Return whether they are right."""
        ...


class ConnectionDesk(Desk, PlainCheck, Protocol):
    """What a connection needs of the side that knows event hubs."""


class Connection:
    """Serves one client until it leaves.

    Args:
        reader: Bytes from the client.
        writer: Bytes to it.
        make_desk: Makes the desk of this connection.
        times: Time limits.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        make_desk: Callable[[Connection], ConnectionDesk],
        times: Times,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._desk = make_desk(self)
        self._times = times
        self._sessions: dict[int, Session] = {}
        self._awake = asyncio.Event()
        self._beat_s = times.idle_s / 2
        self._closed = False
        self.max_frame = MAX_FRAME

    async def serve(self) -> None:
        """Talk to the client; return when the connection is over."""
        pump = asyncio.ensure_future(self._pump())
        try:
            await self._talk()
        except TimeoutError:
            self._close("amqp:connection:forced", "The connection was inactive for too long.")
        except (asyncio.IncompleteReadError, OSError):
            pass  # it left without a word
        except AmqpError as error:
            self._close("amqp:decode-error", str(error))
        finally:
            pump.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await pump
            self.abandon()
            self._writer.close()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()

    def send(self, channel: int, body: bytes) -> None:
        """Write one frame."""
        if not self._closed:
            self._writer.write(amqp.frame(channel, body))

    def wake(self) -> None:
        """Let sources be asked for messages."""
        self._awake.set()

    def cut(self) -> None:
        """End the connection as a broken cable does: without a word."""
        self._closed = True
        self._writer.transport.abort()

    def abandon(self) -> None:
        """Let go of all links."""
        for session in self._sessions.values():
            session.end()
        self._sessions.clear()
        self._closed = True

    def force(self, condition: str, description: str) -> None:
        """End the connection with a word."""
        self._close(condition, description)
        self._writer.close()

    async def _talk(self) -> None:
        async with asyncio.timeout(60):
            if not await self._handshake():
                return
        while True:
            async with asyncio.timeout(self._times.idle_s * 2):
                frame = await self._frame(MAX_FRAME)
            if frame.code == amqp.CLOSE:
                self.abandon()
                self._writer.write(amqp.frame(0, amqp.performative(amqp.CLOSE)))
                await self._writer.drain()
                return
            self._hear(frame)
            await self._writer.drain()

    async def _handshake(self) -> bool:
        header = await self._reader.readexactly(8)
        if header == amqp.SASL_HEADER:
            self._writer.write(header)
            told = amqp.performative(amqp.SASL_MECHANISMS, mechanisms=_MECHANISMS)
            self._writer.write(amqp.frame(0, told, amqp.SASL_FRAME))
            init = await self._frame(_SASL_FRAME_MAX)
            good = init.code == amqp.SASL_INIT and self._sasl(init)
            code = UByte(_SASL_OK if good else _SASL_AUTH)
            outcome = amqp.performative(amqp.SASL_OUTCOME, code=code)
            self._writer.write(amqp.frame(0, outcome, amqp.SASL_FRAME))
            await self._writer.drain()
            if not good:
                return False
            header = await self._reader.readexactly(8)
        self._writer.write(amqp.AMQP_HEADER)
        return header == amqp.AMQP_HEADER

    def _sasl(self, init: amqp.Frame) -> bool:
        mechanism = str(init.fields["mechanism"])
        if mechanism == "PLAIN":
            said = init.fields["initial_response"]
            parts = said.split(b"\0") if isinstance(said, bytes) else []
            return len(parts) == 3 and self._desk.plain(
                parts[1].decode("utf-8", "replace"), parts[2].decode("utf-8", "replace")
            )
        return mechanism in _MECHANISMS

    async def _frame(self, most: int) -> amqp.Frame:
        header = await self._reader.readexactly(8)
        (size,) = struct.unpack(">I", header[:4])
        if not 8 <= size <= most:
            raise AmqpError("A frame is longer than was agreed, or shorter than its header.")
        return amqp.read_frame(header, await self._reader.readexactly(size - 8))

    def _hear(self, frame: amqp.Frame) -> None:
        if frame.code == 0:
            return
        if frame.code == amqp.OPEN:
            self._open(frame)
        elif frame.code == amqp.BEGIN:
            self._sessions[frame.channel] = Session(self, self._desk, frame.channel, frame)
        elif frame.code == amqp.END:
            session = self._sessions.pop(frame.channel, None)
            if session is not None:
                session.end()
                self.send(frame.channel, amqp.performative(amqp.END))
        elif frame.channel not in self._sessions:
            raise AmqpError(f"Channel {frame.channel} has no session.")
        else:
            self._sessions[frame.channel].hear(frame)

    def _open(self, frame: amqp.Frame) -> None:
        self.max_frame = min(MAX_FRAME, int(frame.fields["max_frame_size"] or MAX_FRAME))
        theirs = frame.fields["idle_time_out"]
        if theirs:
            self._beat_s = min(self._beat_s, int(theirs) / 2000)
        self.wake()  # the pump learns the new pace
        told = amqp.performative(
            amqp.OPEN,
            container_id="edgefleet-iothub-double",
            hostname=frame.fields["hostname"],
            max_frame_size=MAX_FRAME,
            channel_max=4999,
            idle_time_out=int(self._times.idle_s * 1000),
            properties={},
        )
        self.send(0, told)

    async def _pump(self) -> None:
        """Send events as they come, and an empty frame where nothing else was said for long."""
        while True:
            try:
                async with asyncio.timeout(self._beat_s):
                    await self._awake.wait()
            except TimeoutError:
                if not self._closed:
                    self._writer.write(amqp.EMPTY)
                continue
            self._awake.clear()
            busy = True
            while busy and not self._closed:
                # Each session has its turn; `any` over a generator would stop at the first.
                busy = sum(session.pump() for session in list(self._sessions.values())) > 0
                if self._writer.transport.get_write_buffer_size() > _BUFFERED_MAX:
                    with contextlib.suppress(OSError):
                        await self._writer.drain()
                await asyncio.sleep(0)

    def _close(self, condition: str, description: str) -> None:
        told = amqp.performative(amqp.CLOSE, error=amqp.error(condition, description))
        if not self._closed and not self._writer.is_closing():
            self._writer.write(amqp.frame(0, told))
        self._closed = True
