"""One connection of a device: MQTT 3.1.1 as IoT Hub speaks it, whoever is behind it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from edgefleet_provisioning.iothub_double import codec
from edgefleet_provisioning.iothub_double.admission import RefusedError
from edgefleet_provisioning.iothub_double.codec import Kind, Packet, ProtocolError
from edgefleet_provisioning.iothub_double.faults import Faults
from edgefleet_provisioning.iothub_double.wire import Wire

LONGEST_S = 1767.0
"""Seconds without a packet after which every connection ends: 1.5 times the documented 1177."""
HELLO_S = 30.0
MAX_FILTERS = 5

Answers = list[tuple[str, bytes]]


class Peer(Protocol):
    """Who is at the other end: a device of a hub, or one that asks to be provisioned."""

    device: str
    expires: float | None

    def greet(self) -> bool:
        """Begin; return whether a session of old goes on."""

    def label(self, message: codec.Publish) -> str:
        """Return what a message is, one of `faults.PACKETS`.

        Raises:
            ProtocolError: Nothing that may be published.
        """

    async def publish(self, message: codec.Publish) -> Answers:
        """Do what a message asks; return what is answered, by label.

        Raises:
            ProtocolError: The connection ends.
        """

    def subscribe(self, name: str, qos: int) -> int:
        """Return the code of a SUBACK for a filter."""

    def subscribed(self) -> None:
        """Send what has waited for a subscription."""

    def unsubscribe(self, name: str) -> None:
        """Forget a filter."""

    def acknowledged(self, number: int) -> None:
        """Note that a message sent at QoS 1 has come."""

    def end(self, *, clean: bool) -> None:
        """End; `clean` after a DISCONNECT."""


class Link:
    """What a peer sends through: it counts on faults, and knows when it was last heard.

    Args:
        wire: The connection.
        faults: What shall go wrong.
        loop: Whose thread the wire belongs to.
    """

    def __init__(self, wire: Wire, faults: Faults, loop: asyncio.AbstractEventLoop) -> None:
        self.wire, self.faults = wire, faults
        self.heard = time.monotonic()
        self.device = ""
        self.muted = False
        self._loop = loop

    def send(self, label: str, data: bytes) -> None:
        """Send a packet, in the loop's thread."""
        if self.muted:
            return
        if cut := self.faults.due(label, "before", self.device):
            self.muted = True
            self.wire.abort()
            cut.done.set()
            return
        self.wire.write(data)
        if cut := self.faults.due(label, "after", self.device):
            self.muted = True
            self.wire.close()  # what was sent is to arrive
            cut.done.set()

    def soon(self, act: Callable[[], None]) -> None:
        """Have something done in the loop's thread, from any thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(act)

    def abort(self) -> None:
        """End the connection without a word, from any thread."""

        def act() -> None:
            self.muted = True
            self.wire.abort()

        self.soon(act)


class Connection:
    """A connection from its CONNECT to its end.

    Args:
        link: Where it comes from.
        admit: Finds out who a CONNECT is from, or raises RefusedError.
        refused: Told why somebody was not let in, or was thrown out.
    """

    def __init__(
        self, link: Link, admit: Callable[[codec.Connect, Link], Peer],
        refused: Callable[[str, str], None],
    ) -> None:  # fmt: skip
        self.link = link
        self.peer: Peer | None = None
        self.keep_alive = HELLO_S
        self._admit, self._refused = admit, refused
        self._clean = False
        self._handlers: dict[Kind, Callable[[Peer, Packet], Awaitable[None]]] = {
            Kind.PUBLISH: self._publish, Kind.SUBSCRIBE: self._subscribe,
            Kind.UNSUBSCRIBE: self._unsubscribe, Kind.PUBACK: self._puback,
            Kind.PINGREQ: self._ping, Kind.DISCONNECT: self._disconnect,
        }  # fmt: skip

    async def run(self) -> None:
        """Serve until one side ends it."""
        decoder = codec.Decoder(first=Kind.CONNECT)
        try:
            while not self.link.muted and not self._clean and (data := await self.link.wire.read()):
                self.link.heard = time.monotonic()
                for packet in decoder.feed(data):
                    await self._take(packet)
        except ProtocolError as error:
            self._refused(self.link.device, str(error))
        finally:
            if self.peer is not None:
                self.peer.end(clean=self._clean)
            self.link.wire.close()

    def overdue(self, now: float) -> str:
        """Return why the connection is to end, "" if it is not; `now` is the double's time."""
        if time.monotonic() - self.link.heard > self.keep_alive:
            return "Nothing came for one and a half keep-alives."
        if self.peer is not None and self.peer.expires is not None and self.peer.expires <= now:
            return "The token has expired."
        return ""

    async def _take(self, packet: Packet) -> None:
        if self.link.muted or self._clean:
            return
        if self.peer is None:
            await self._hello(packet)
            return
        handler = self._handlers.get(packet.kind)
        if handler is None:
            raise ProtocolError(f"A client sends no {packet.kind.name} here.")
        await self._with_faults(self._label(packet), lambda peer: handler(peer, packet))

    async def _with_faults(self, label: str, act: Callable[[Peer], Awaitable[None]]) -> None:
        assert self.peer is not None, "nothing but CONNECT comes before"
        if cut := self.link.faults.due(label, "before", self.link.device):
            self.link.muted = True
            self.link.wire.abort()
            cut.done.set()
            return
        cut = self.link.faults.due(label, "after", self.link.device)
        self.link.muted = cut is not None
        await act(self.peer)
        if cut is not None:
            self.link.wire.abort()
            cut.done.set()

    def _label(self, packet: Packet) -> str:
        if packet.kind is Kind.PUBLISH:
            assert self.peer is not None, "nothing but CONNECT comes before"
            return self.peer.label(codec.read_publish(packet))
        return {
            Kind.SUBSCRIBE: "in:subscribe", Kind.PUBACK: "in:puback", Kind.PINGREQ: "in:ping"
        }.get(packet.kind, "")  # fmt: skip

    async def _hello(self, packet: Packet) -> None:
        hello = codec.read_connect(packet)
        self.link.device = hello.client_id
        if cut := self.link.faults.due("in:connect", "before", self.link.device):
            self.link.muted = True
            self.link.wire.abort()
            cut.done.set()
            return
        try:
            self.peer = self._admit(hello, self.link)
        except RefusedError as error:
            self._refused(hello.client_id, str(error))
            self.link.send("out:connack", codec.connack(error.code))
            self._clean = True
            return
        self.keep_alive = min(1.5 * hello.keep_alive or LONGEST_S, LONGEST_S)
        cut = self.link.faults.due("in:connect", "after", self.link.device)
        self.link.muted = cut is not None
        present = self.peer.greet()
        if cut is not None:
            self.link.wire.abort()
            cut.done.set()
            return
        self.link.send("out:connack", codec.connack(0, present=present))
        self.peer.subscribed()

    async def _publish(self, peer: Peer, packet: Packet) -> None:
        message = codec.read_publish(packet)
        if message.qos > 1:
            raise ProtocolError("A message at QoS 2.")
        answers = await peer.publish(message)
        if message.qos:
            self.link.send("out:puback", codec.acknowledge(Kind.PUBACK, message.number))
        for label, data in answers:
            self.link.send(label, data)

    async def _subscribe(self, peer: Peer, packet: Packet) -> None:
        number, filters = codec.read_subscribe(packet)
        if len(filters) > MAX_FILTERS:
            raise ProtocolError(f"More than {MAX_FILTERS} filters.")
        codes = [peer.subscribe(name, qos) for name, qos in filters]
        self.link.send("out:suback", codec.suback(number, codes))
        peer.subscribed()

    async def _unsubscribe(self, peer: Peer, packet: Packet) -> None:
        number, names = codec.read_unsubscribe(packet)
        for name in names:
            peer.unsubscribe(name)
        self.link.send("out:suback", codec.acknowledge(Kind.UNSUBACK, number))

    async def _puback(self, peer: Peer, packet: Packet) -> None:
        peer.acknowledged(codec.read_number(packet))

    async def _ping(self, _: Peer, __: Packet) -> None:
        self.link.send("out:pong", codec.pingresp())

    async def _disconnect(self, _: Peer, __: Packet) -> None:
        self._clean = True
