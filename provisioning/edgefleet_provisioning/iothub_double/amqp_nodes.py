"""What lies behind the addresses of the Event Hubs-compatible endpoint.

| address | what |
|---|---|
| `$cbs` | tokens are put there |
| `$management` | properties of an event hub and of its partitions |
| `{hub}/ConsumerGroups/{group}/Partitions/{n}` | the events |
"""

from __future__ import annotations

import base64
import hmac
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from edgefleet_provisioning.iothub_double.amqp_codec import AmqpError, Int, Timestamp
from edgefleet_provisioning.iothub_double.amqp_frames import Message, read_message, write_message
from edgefleet_provisioning.iothub_double.amqp_links import Ask, LinkError, Sink, Source
from edgefleet_provisioning.iothub_double.amqp_receivers import (
    NO_TIME,
    PartitionSource,
    Place,
    Receiver,
    Receivers,
    start,
)
from edgefleet_provisioning.iothub_double.clock import Clock, millis
from edgefleet_provisioning.iothub_double.credentials import check_token, read_token, refused
from edgefleet_provisioning.iothub_double.events import EventLog
from edgefleet_provisioning.iothub_double.refusals import HubError

_EPOCH = "com.microsoft:epoch"
_METRICS = "com.microsoft:enable-receiver-runtime-metric"
_ALWAYS = float("inf")


class Entity(NamedTuple):
    """An event hub.

    Attributes:
        log: Its events.
        keys: Names and keys of the policies that may read it.
        groups: Its consumer groups.
        created: When it was made, in seconds since 1970.
    """

    log: EventLog
    keys: Mapping[str, str]
    groups: set[str]
    created: float


class Namespace:
    """All event hubs of an endpoint. Its readers are known to the server's thread alone.

    Args:
        clock: The double's time.
        bearer: Checks a token of Entra ID; raises `HubError`. Returns when it expires.
    """

    def __init__(self, clock: Clock, bearer: Callable[[str], float]) -> None:
        self.clock = clock
        self.bearer = bearer
        self.entities: dict[str, Entity] = {}
        self.receivers = Receivers()


class _Mailbox:
    """Answers of `$cbs` or `$management`, until their link takes them."""

    def __init__(self) -> None:
        self.waiting: deque[bytes] = deque()

    def take(self, most: int) -> list[bytes]:
        return [self.waiting.popleft() for _ in range(min(most, len(self.waiting)))]

    def release(self) -> None:
        self.waiting.clear()


class _Office:
    """Takes requests and puts the answers into a mailbox."""

    def __init__(self, answer: Callable[[Message], Message], mailbox: _Mailbox) -> None:
        self._answer = answer
        self._mailbox = mailbox

    def receive(self, payload: bytes) -> None:
        try:
            request = read_message(payload)
        except AmqpError as error:
            raise LinkError("amqp:decode-error", str(error)) from error
        answer = self._answer(request)
        number = (request.properties or {}).get("message_id")
        self._mailbox.waiting.append(
            write_message(answer._replace(properties={"correlation_id": number}))
        )


class EventDesk:
    """What one connection may do, by the tokens that it has put.

    Args:
        namespace: The endpoint.
        wake: Lets the connection's sources be asked again.
    """

    def __init__(self, namespace: Namespace, wake: Callable[[], None]) -> None:
        self._namespace = namespace
        self._wake = wake
        self._granted: dict[str, float] = {}
        self._mailboxes: dict[str, _Mailbox] = {}

    def plain(self, policy: str, key: str) -> bool:
        """Take a policy's name and key for all hubs that know it."""
        good = False
        for name, entity in self._namespace.entities.items():
            known = entity.keys.get(policy)
            if known is not None and hmac.compare_digest(known.encode(), key.encode()):
                self._granted[name] = _ALWAYS
                good = True
        return good

    def open_sink(self, address: str) -> Sink:
        """Return where requests go; nobody sends events to this endpoint."""
        offices = {"$cbs": self._put_token, "$management": self._manage}
        path = _path(address)
        if path not in offices:
            raise LinkError("amqp:not-allowed", "Events of an IoT hub come from its devices alone.")
        return _Office(offices[path], self._mailboxes.setdefault(path, _Mailbox()))

    def open_source(self, ask: Ask) -> Source:
        """Return answers, or the events of a partition."""
        path = _path(ask.address)
        if path in {"$cbs", "$management"}:
            return self._mailboxes.setdefault(path, _Mailbox())
        place, log = self._place(path)
        self._check(path)
        epoch = ask.properties.get(_EPOCH)
        if epoch is not None and not isinstance(epoch, int):
            raise LinkError("amqp:invalid-field", "The epoch is no number.")
        receiver = Receiver(ask.name, epoch, self._wake)
        after = start(log, place.partition, ask.filters)
        self._namespace.receivers.join(place, receiver)

        def check() -> None:
            if receiver.fault is not None:
                raise receiver.fault
            self._check(path)

        return PartitionSource(
            log,
            after,
            lambda: self._namespace.receivers.leave(place, receiver),
            check,
            place,
            metrics=_METRICS in ask.capabilities,
        )

    def _place(self, path: str) -> tuple[Place, EventLog]:
        parts = path.split("/")
        if len(parts) != 5 or parts[1].lower() != "consumergroups" or parts[3] != "Partitions":
            raise _missing(path)
        entity = self._namespace.entities.get(parts[0])
        if entity is None or parts[2].lower() not in {one.lower() for one in entity.groups}:
            raise _missing(path)
        if not parts[4].isdecimal() or int(parts[4]) >= entity.log.partitions:
            raise LinkError(
                "com.microsoft:argument-out-of-range",
                f"The specified partition is invalid for an EventHub partition sender or "
                f"receiver. It should be between 0 and {entity.log.partitions - 1}.",
            )
        return Place(parts[0], parts[2].lower(), int(parts[4])), entity.log

    def _check(self, path: str) -> None:
        now = self._namespace.clock.now()
        covering = [at for granted, at in self._granted.items() if _covers(granted, path)]
        if not covering:
            raise LinkError("amqp:unauthorized-access", f"No token was put for {path}.")
        if max(covering) <= now:
            raise LinkError("amqp:unauthorized-access", f"The token for {path} has expired.")

    def _put_token(self, request: Message) -> Message:
        said = request.application or {}
        name, kind = str(said.get("name", "")), str(said.get("type", ""))
        if said.get("operation") != "put-token" or not isinstance(request.body, str):
            return _answer(400, "This is no put-token.")
        try:
            self._granted[_path(name)] = self._expiry(request.body, kind, name)
        except HubError as error:
            return _answer(error.status, str(error))
        self._wake()
        return _answer(202, "Accepted")

    def _expiry(self, token: str, kind: str, name: str) -> float:
        if kind == "jwt":
            return self._namespace.bearer(token)
        entity = self._namespace.entities.get(_path(name).split("/")[0])
        if entity is None:
            raise HubError(404, "NotFound", f"There is no event hub for {name}.")
        found = read_token(token)
        key = entity.keys.get(found.policy)
        if key is None:
            raise refused(f"There is no policy {found.policy!r} that may listen.")
        # Event Hubs signs with the text of the key, a hub with what it stands for.
        text = base64.b64encode(key.encode()).decode()
        check_token(found, name, [text], self._namespace.clock.now())
        return float(found.expires)

    def _manage(self, request: Message) -> Message:
        said = request.application or {}
        name, kind = str(said.get("name", "")), said.get("type")
        entity = self._namespace.entities.get(name)
        if entity is None:
            return _answer(404, f"The messaging entity {name} could not be found.")
        try:
            self._check(name)
        except LinkError as error:
            return _answer(401, str(error))
        if said.get("operation") != "READ":
            return _answer(400, "Only READ is known.")
        if kind == "com.microsoft:eventhub":
            return _answer(200, "OK")._replace(body=_about(name, entity))
        number = str(said.get("partition", ""))
        if kind == "com.microsoft:partition" and number in _numbers(entity):
            return _answer(200, "OK")._replace(body=_about_partition(name, entity, int(number)))
        return _answer(400, "There is no such partition or type.")


def _about(name: str, entity: Entity) -> dict[str, Any]:
    return {
        "name": name,
        "type": "com.microsoft:eventhub",
        "created_at": Timestamp(millis(entity.created)),
        "partition_count": Int(entity.log.partitions),
        "partition_ids": _numbers(entity),
        "georeplication_factor": Int(1),
    }


def _about_partition(name: str, entity: Entity, partition: int) -> dict[str, Any]:
    first, last = entity.log.first(partition), entity.log.last(partition)
    return {
        "name": name,
        "type": "com.microsoft:partition",
        "partition": str(partition),
        "begin_sequence_number": first.sequence if first else 0,
        "last_enqueued_sequence_number": last.sequence if last else -1,
        "last_enqueued_offset": last.offset if last else "-1",
        "last_enqueued_time_utc": Timestamp(millis(last.enqueued) if last else NO_TIME),
        "is_partition_empty": last is None,
    }


def _numbers(entity: Entity) -> list[str]:
    return [str(number) for number in range(entity.log.partitions)]


def _answer(status: int, description: str) -> Message:
    # Both spellings: $cbs and $management have been read with either.
    application = {"status-code": Int(status), "status-description": description}
    return Message(None, application=application)


def _path(address: str) -> str:
    return (urlsplit(address).path if "://" in address else address).strip("/")


def _covers(granted: str, path: str) -> bool:
    return path.lower() == granted.lower() or path.lower().startswith(granted.lower() + "/")


def _missing(path: str) -> LinkError:
    return LinkError("amqp:not-found", f"The messaging entity '{path}' could not be found.")
