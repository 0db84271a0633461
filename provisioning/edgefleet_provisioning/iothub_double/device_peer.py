"""A connected device or module: the topics of IoT Hub, and what they do."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, unquote

from edgefleet_provisioning.iothub_double import codec
from edgefleet_provisioning.iothub_double.admission import Admission
from edgefleet_provisioning.iothub_double.codec import Connect, ProtocolError, Publish
from edgefleet_provisioning.iothub_double.dialect import Answers, Link
from edgefleet_provisioning.iothub_double.refusals import HubError, bad
from edgefleet_provisioning.iothub_double.sessions import Message, Session

METHODS = "$iothub/methods/POST/#"
TWIN_ANSWERS = "$iothub/twin/res/#"
DESIRED = "$iothub/twin/PATCH/properties/desired/#"
_GET = "$iothub/twin/GET/?"
_REPORT = "$iothub/twin/PATCH/properties/reported/?"
_METHOD_ANSWER = "$iothub/methods/res/"
_SYSTEM = {
    "$.mid": "message_id", "$.cid": "correlation_id", "$.uid": "user_id",
    "$.ct": "content_type", "$.ce": "content_encoding",
}  # fmt: skip
SHAPED_S = 60.0
"""Seconds for which a message over the limit waits before the connection ends."""


class DevicePeer:
    """A device or a module of a hub.

    Args:
        admitted: Who it is.
        hello: Its CONNECT.
        link: Its connection.
    """

    def __init__(self, admitted: Admission, hello: Connect, link: Link) -> None:
        self._hub, self.device, self._module, self._auth, self.expires = admitted
        self._link, self._hello = link, hello
        where = f"devices/{self.device}" + (f"/modules/{self._module}" if self._module else "")
        self._events = f"{where}/messages/events"
        self._bound = f"{where}/inputs/#" if self._module else f"{where}/messages/devicebound/#"
        self._filters: set[str] = set()
        self._session: Session | None = None
        self._numbers = itertools.cycle(range(1, 65536))
        self._unacknowledged: dict[int, int] = {}

    @property
    def host(self) -> str:
        """Host name of its hub."""
        return self._hub.host

    def greet(self) -> bool:
        """See `Peer`: attach, and throw an older connection out."""
        sessions = self._hub.sessions
        self._filters = sessions.filters(self.device, self._module, clean=self._hello.clean)
        present = bool(self._filters)
        self._session = sessions.attach(self.device, self._module, self, self._auth)
        return present

    def end(self, *, clean: bool) -> None:
        """See `Peer`: detach; the will of who ends without a DISCONNECT is published."""
        if self._session is not None:
            self._hub.sessions.detach(self._session)
        will = self._hello.will
        if will is not None and not clean and will.topic.startswith(self._events):
            message = Publish(will.topic, will.payload, 1, retain=False, number=0)
            self._take_event(message, {"iothub-MessageType": "Will"})

    def subscribe(self, name: str, qos: int) -> int:
        """See `Peer`."""
        if name not in {self._bound, METHODS, TWIN_ANSWERS, DESIRED}:
            return 0x80
        self._filters.add(name)
        return min(qos, 1)

    def unsubscribe(self, name: str) -> None:
        """See `Peer`."""
        self._filters.discard(name)

    def subscribed(self) -> None:
        """See `Peer`: send cloud-to-device messages that have waited."""
        if self._bound in self._filters and not self._module:
            for message in self._hub.sessions.pending(self.device):
                self._deliver(message)

    def acknowledged(self, number: int) -> None:
        """See `Peer`."""
        known = self._unacknowledged.pop(number, None)
        if known is not None:
            self._hub.sessions.acknowledge(self.device, known)

    def label(self, message: Publish) -> str:
        """See `Peer`."""
        topic = message.topic
        if topic == self._events or topic.startswith(f"{self._events}/"):
            return "in:telemetry"
        for prefix, label in (
            (_GET, "in:twin-get"), (_REPORT, "in:report"), (_METHOD_ANSWER, "in:method-answer")
        ):  # fmt: skip
            if topic.startswith(prefix):
                return label
        raise ProtocolError(f"A message to {topic}.")

    async def publish(self, message: Publish) -> Answers:
        """See `Peer`."""
        label = self.label(message)
        if label == "in:telemetry":
            await self._event(message)
            return []
        if label == "in:method-answer":
            self._answer_method(message)
            return []
        rid = fields(message.topic.partition("?")[2]).get("$rid", "")
        try:
            if label == "in:twin-get":
                status, more, body = 200, "", self._get()
            else:
                status, more, body = 204, f"&$version={self._report(message.payload)}", b""
        except HubError as error:
            status, more = error.status, ""
            body = json.dumps({"errorCode": error.status * 1000, "message": str(error)}).encode()
        if TWIN_ANSWERS not in self._filters:
            return []
        topic = f"$iothub/twin/res/{status}/?$rid={quote(rid, safe='')}{more}"
        said = "out:twin" if label == "in:twin-get" else "out:reported"
        return [(said, codec.publish(topic, body))]

    def desired(self, patch: dict[str, Any]) -> None:
        """See `Listener`: only who has subscribed hears."""
        if DESIRED in self._filters:
            topic = f"{DESIRED[:-1]}?$version={patch['$version']}"
            self._push("out:desired", topic, json.dumps(patch).encode())

    def method(self, rid: str, name: str, payload: bytes) -> bool:
        """See `Listener`."""
        if METHODS not in self._filters:
            return False
        topic = f"$iothub/methods/POST/{quote(name, safe='')}/?$rid={rid}"
        self._push("out:method", topic, payload)
        return True

    def c2d(self, message: Message) -> None:
        """See `Listener`."""
        if self._bound in self._filters:
            self._link.soon(lambda: self._deliver(message))

    def thrown_out(self, reason: str) -> None:
        """See `Listener`."""
        del reason
        self._link.abort()

    def _push(self, label: str, topic: str, payload: bytes) -> None:
        data = codec.publish(topic, payload)
        self._link.soon(lambda: self._link.send(label, data))

    def _deliver(self, message: Message) -> None:
        if message.number in self._unacknowledged.values():
            return
        number = next(self._numbers)
        self._unacknowledged[number] = message.number
        to = {"$.to": f"/devices/{self.device}/messages/devicebound"}
        named = {"$.mid": str(message.number), **to, **message.properties}
        said = "&".join(f"{quote(k, safe='')}={quote(v, safe='')}" for k, v in named.items())
        data = codec.publish(f"{self._bound[:-1]}{said}", message.body, number)
        self._link.send("out:c2d", data)

    async def _event(self, message: Publish) -> None:
        """Take a message when the rate lets it pass: Azure shapes before it refuses."""
        waited = 0.0
        while wait := self._hub.throttles.ask("d2c"):
            step = min(wait, 0.5)
            waited += step
            if waited > SHAPED_S:
                raise ProtocolError("Messages over the limit for too long.")
            await asyncio.sleep(step)
        try:
            self._hub.throttles.count_message()
            self._take_event(message, {"mqtt-retain": "true"} if message.retain else {})
        except HubError as error:
            raise ProtocolError(str(error)) from error

    def _take_event(self, message: Publish, more: Mapping[str, str]) -> None:
        named = fields(message.topic[len(self._events) + 1 :])
        system = {_SYSTEM[key]: value for key, value in named.items() if key in _SYSTEM}
        own = {key: value for key, value in named.items() if not key.startswith("$.")}
        self._hub.send_event(
            self.device, self._module, message.payload, {**own, **more}, system, self._auth
        )

    def _get(self) -> bytes:
        self._hub.throttles.spend("twin_reads")
        return json.dumps(self._hub.device_twin(self.device, self._module)).encode()

    def _report(self, payload: bytes) -> int:
        self._hub.throttles.spend("twin_updates")
        try:
            patch = json.loads(payload)
        except ValueError as error:
            raise bad("The patch is no JSON.") from error
        return self._hub.report(self.device, self._module, patch)

    def _answer_method(self, message: Publish) -> None:
        path, _, query = message.topic.partition("?")
        status = path.removeprefix(_METHOD_ANSWER).rstrip("/")
        if not status.lstrip("-").isdigit():
            raise ProtocolError(f"A method's status {status!r}.")
        assert self._session is not None, "greeted before anything is published"
        try:
            rid = fields(query).get("$rid", "")
            self._hub.sessions.answer(self._session, rid, int(status), message.payload)
        except HubError:
            pass  # nobody waits any more; Azure takes a late answer in silence


def fields(text: str) -> dict[str, str]:
    """Return the properties of a topic; `+` is a plus there, not a space."""
    pairs = (part.partition("=") for part in text.removesuffix("/").split("&") if part)
    return {unquote(name): unquote(value) for name, _, value in pairs}
