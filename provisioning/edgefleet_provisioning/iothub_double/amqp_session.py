"""A session of AMQP 1.0: its links, their credit, and transfers both ways.

It says nothing of what lies behind a link: a `Desk` opens a `Source` or a `Sink` for an address.
"""

from __future__ import annotations

from typing import Any

from edgefleet_provisioning.iothub_double import amqp_frames as amqp
from edgefleet_provisioning.iothub_double.amqp_codec import AmqpError, Described, ULong
from edgefleet_provisioning.iothub_double.amqp_links import Ask, Desk, Link, LinkError, Wire

WINDOW = 5000
SINK_CREDIT = 300
_TURN = 64
MESSAGE_MAX = 1024 * 1024
_TRANSFER_ROOM = 80  # bytes of a transfer's own fields and the frame's header, at most
_UNSETTLED, _SETTLED = 0, 1
_SOURCE_FIELDS, _TARGET_FIELDS = 11, 7


class Session:
    """One session, on the channel on which the client began it.

    Args:
        wire: The connection.
        desk: Who opens links.
        channel: The channel's number, used for both directions.
        begin: The client's begin.
    """

    def __init__(self, wire: Wire, desk: Desk, channel: int, begin: amqp.Frame) -> None:
        self._wire = wire
        self._desk = desk
        self._channel = channel
        self._links: dict[int, Link] = {}
        self._next_incoming = int(begin.fields["next_outgoing_id"] or 0)
        self._next_outgoing = 0  # counts frames with transfers
        self._deliveries = 0  # counts messages
        self._window = int(begin.fields["incoming_window"] or 0)
        self._say(
            amqp.BEGIN,
            remote_channel=channel,
            next_outgoing_id=0,
            incoming_window=WINDOW,
            outgoing_window=WINDOW,
            handle_max=255,
        )

    def hear(self, frame: amqp.Frame) -> None:
        """Act on a frame of this session.

        Raises:
            AmqpError: The client breaks the protocol.
        """
        if frame.code == amqp.ATTACH:
            self._attach(frame.fields)
        elif frame.code == amqp.FLOW:
            self._flow(frame.fields)
        elif frame.code == amqp.TRANSFER:
            self._transfer(frame)
        elif frame.code == amqp.DETACH:
            self._drop(int(frame.fields["handle"]), None)
        # A disposition settles what nobody waits for: an event hub keeps its events.

    def pump(self) -> bool:
        """Send what sources have; return whether something went out."""
        return sum(self._push(link) for link in list(self._links.values())) > 0

    def end(self) -> None:
        """Let go of every link: the session or its connection is over."""
        for link in self._links.values():
            if link.source is not None:
                link.source.release()
        self._links.clear()

    def _attach(self, fields: Any) -> None:
        handle, to_us = int(fields["handle"]), fields["role"] is False
        if handle in self._links:
            raise AmqpError(f"Handle {handle} is in use.")
        link = Link(handle, settled=fields["snd_settle_mode"] == _SETTLED)
        refused: LinkError | None = None
        try:
            if to_us:
                link.sink = self._desk.open_sink(_address(fields["target"]))
            else:
                link.source = self._desk.open_source(_ask(fields))
        except LinkError as error:
            refused = error
        source, target = (
            _padded(fields["source"], _SOURCE_FIELDS),
            _padded(fields["target"], _TARGET_FIELDS),
        )
        self._say(
            amqp.ATTACH,
            name=fields["name"],
            handle=handle,
            role=to_us,
            snd_settle_mode=fields["snd_settle_mode"] or _UNSETTLED,
            rcv_settle_mode=fields["rcv_settle_mode"] or 0,
            source=None if refused else source,
            target=None if refused else target,
            initial_delivery_count=None if to_us else 0,
            max_message_size=ULong(MESSAGE_MAX),
            properties={},
        )
        self._links[handle] = link
        if refused:
            self._drop(handle, refused)
        elif to_us:
            self._grant(link)

    def _flow(self, fields: Any) -> None:
        seen = fields["next_incoming_id"]
        self._window = int(seen or 0) + int(fields["incoming_window"] or 0) - self._next_outgoing
        link = self._links.get(fields["handle"]) if fields["handle"] is not None else None
        if link is None:
            if fields["echo"]:
                self._say_flow()
        elif link.source is not None and fields["link_credit"] is not None:
            counted = int(fields["delivery_count"] or 0)
            link.credit = counted + int(fields["link_credit"]) - link.count
            if fields["drain"]:
                while self._push(link):
                    pass
                link.count, link.credit = link.count + max(link.credit, 0), 0
            if fields["drain"] or fields["echo"]:
                count, credit = link.count, link.credit
                self._say_flow(handle=link.handle, delivery_count=count, link_credit=credit)
        self._wire.wake()

    def _transfer(self, frame: amqp.Frame) -> None:
        link = self._links.get(frame.fields["handle"])
        if link is None or link.sink is None:
            raise AmqpError("A transfer names a handle that takes none.")
        self._next_incoming += 1
        if frame.fields["aborted"]:
            link.partial.clear()
            return
        link.partial += frame.payload
        if len(link.partial) > MESSAGE_MAX:
            told = LinkError("amqp:link:message-size-exceeded", "The message is over 1 MB.")
            self._drop(link.handle, told)
            return
        if frame.fields["more"]:
            return
        payload, link.partial = bytes(link.partial), bytearray()
        link.count += 1
        try:
            link.sink.receive(payload)
        except LinkError as error:
            self._drop(link.handle, error)
            return
        if not frame.fields["settled"]:
            first = frame.fields["delivery_id"]
            state = Described(amqp.ACCEPTED, [])
            self._say(
                amqp.DISPOSITION, role=True, first=first, last=first, settled=True, state=state
            )
        self._grant(link)
        self._wire.wake()

    def _grant(self, link: Link) -> None:
        self._say_flow(handle=link.handle, delivery_count=link.count, link_credit=SINK_CREDIT)

    def _push(self, link: Link) -> int:
        """Send a turn's worth of frames of a link, as its credit and the window allow."""
        sent = 0
        while link.source is not None and self._window > 0 and sent < _TURN:
            if not link.frames and not link.messages and link.credit > 0:
                try:
                    link.messages.extend(link.source.take(min(link.credit, _TURN)))
                except LinkError as error:
                    self._drop(link.handle, error)
                    return sent
            if not link.frames and link.credit > 0 and link.messages:
                link.frames.extend(self._begin(link, link.messages.popleft()))
            if not link.frames:
                return sent
            self._wire.send(self._channel, link.frames.popleft())
            self._next_outgoing += 1
            self._window -= 1
            sent += 1
        return sent

    def _begin(self, link: Link, payload: bytes) -> list[bytes]:
        """Return the transfers of a message; it takes a credit and a number."""
        room = self._wire.max_frame - _TRANSFER_ROOM
        parts = [payload[at : at + room] for at in range(0, len(payload), room)] or [b""]
        number = self._deliveries
        self._deliveries += 1
        link.credit -= 1
        link.count += 1
        return [
            amqp.performative(
                amqp.TRANSFER,
                handle=link.handle,
                delivery_id=number,
                delivery_tag=number.to_bytes(4, "big"),
                message_format=0,
                settled=link.settled,
                more=at + 1 < len(parts),
                batchable=True,
            )
            + part
            for at, part in enumerate(parts)
        ]

    def _drop(self, handle: int, error: LinkError | None) -> None:
        link = self._links.pop(handle, None)
        if link is None:
            return  # the answer to our own detach
        if link.source is not None:
            link.source.release()
        told = amqp.error(error.condition, str(error)) if error else None
        self._say(amqp.DETACH, handle=handle, closed=True, error=told)

    def _say_flow(self, **fields: Any) -> None:
        self._say(
            amqp.FLOW,
            next_incoming_id=self._next_incoming,
            incoming_window=WINDOW,
            next_outgoing_id=self._next_outgoing,
            outgoing_window=WINDOW,
            **fields,
        )

    def _say(self, code: int, /, **fields: Any) -> None:
        self._wire.send(self._channel, amqp.performative(code, **fields))


def _ask(fields: Any) -> Ask:
    source = _padded(fields["source"], _SOURCE_FIELDS)
    filters = source.value[7] if source and isinstance(source.value[7], dict) else {}
    wanted = fields["desired_capabilities"] or []
    capabilities = [str(one) for one in (wanted if isinstance(wanted, list) else [wanted])]
    name = str(fields["name"])
    return Ask(_address(fields["source"]), name, filters, fields["properties"] or {}, capabilities)


def _address(terminus: Any) -> str:
    if not isinstance(terminus, Described) or not terminus.value:
        raise AmqpError("An attach names no address.")
    return str(terminus.value[0])


def _padded(terminus: Any, count: int) -> Described | None:
    if not isinstance(terminus, Described) or not isinstance(terminus.value, list):
        return None
    missing = [None] * (count - len(terminus.value))
    return Described(terminus.descriptor, terminus.value + missing)
