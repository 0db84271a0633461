"""Receivers of a partition: where each begins, and which may stay (epochs, "owner levels")."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from edgefleet_provisioning.iothub_double.amqp_codec import Described, Timestamp
from edgefleet_provisioning.iothub_double.amqp_frames import Message, write_message
from edgefleet_provisioning.iothub_double.amqp_links import LinkError
from edgefleet_provisioning.iothub_double.clock import millis
from edgefleet_provisioning.iothub_double.events import Event, EventLog

MOST_WITHOUT_EPOCH = 5
"""Receivers without an epoch that a partition takes in one consumer group."""
NO_TIME = -62_135_596_800_000
"""Milliseconds of the year 1: what Event Hubs says for "never"."""
_SELECTOR = "apache.org:selector-filter:string"
_TERM = re.compile(r"amqp\.annotation\.x-opt-([a-z-]+)\s*(>=|>)\s*'([^']*)'\Z")


class Place(NamedTuple):
    """One partition, as one consumer group sees it."""

    entity: str
    group: str
    partition: int


@dataclass(eq=False)
class Receiver:
    """One link that reads a partition."""

    name: str
    epoch: int | None
    wake: Callable[[], None]
    fault: LinkError | None = None


class Receivers:
    """Who reads what. Used by one thread alone."""

    def __init__(self) -> None:
        self._at: dict[Place, list[Receiver]] = {}

    def join(self, place: Place, new: Receiver) -> None:
        """Let a receiver in; the same or a higher epoch throws the others out.

        Raises:
            LinkError: There is one with a higher epoch, or there are too many without.
        """
        present = self._at.setdefault(place, [])
        highest = max((one.epoch for one in present if one.epoch is not None), default=None)
        if highest is not None and (new.epoch is None or new.epoch < highest):
            raise LinkError(
                "amqp:link:stolen",
                f"At least one receiver for the endpoint is created with epoch of '{highest}', and "
                f"so this receiver is not allowed to connect.",
            )
        if new.epoch is None and len(present) >= MOST_WITHOUT_EPOCH:
            raise LinkError(
                "amqp:resource-limit-exceeded",
                "Exceeded the maximum number of allowed receivers per partition in a consumer "
                f"group which is {MOST_WITHOUT_EPOCH}.",
            )
        if new.epoch is not None:
            for one in list(present):
                one.fault = LinkError(
                    "amqp:link:stolen",
                    f"New receiver '{new.name}' with higher epoch of '{new.epoch}' is created "
                    f"hence current receiver '{one.name}' is getting disconnected.",
                )
                present.remove(one)
                one.wake()
        present.append(new)

    def epochs(self, entity: str) -> list[int | None]:
        """Return the epochs of all readers of an event hub."""
        places = (found for place, found in self._at.items() if place.entity == entity)
        return [one.epoch for found in places for one in found]

    def leave(self, place: Place, receiver: Receiver) -> None:
        """Forget a receiver."""
        present = self._at.get(place, [])
        if receiver in present:
            present.remove(receiver)


def start(log: EventLog, partition: int, filters: Mapping[Any, Any]) -> int:
    """Return the sequence number behind which a receiver begins.

    Args:
        log: The hub's events.
        partition: Which.
        filters: Of the link's source; none: from the oldest event.

    Raises:
        LinkError: The filter is none that Event Hubs knows, or points behind the last event.
    """
    found = filters.get(_SELECTOR)
    value = found.value if isinstance(found, Described) else found
    if value is None:
        return -1
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    match = _TERM.match(text.strip())
    if match is None:
        raise LinkError("amqp:not-implemented", f"The filter {text!r} is not supported.")
    what, inclusive, wanted = match[1], match[2] == ">=", match[3]
    if what == "offset" and wanted == "@latest":
        last = log.last(partition)
        return (last.sequence if last else -1) - (1 if inclusive else 0)
    try:
        limit = int(wanted) - (1 if inclusive else 0)
    except ValueError as error:
        raise LinkError("com.microsoft:argument-error", f"{wanted!r} is no {what}.") from error
    return _behind(log, partition, what, limit)


def _behind(log: EventLog, partition: int, what: str, limit: int) -> int:
    counted: dict[str, Callable[[Event], int]] = {
        "offset": lambda event: int(event.offset),
        "sequence-number": lambda event: event.sequence,
        "enqueued-time": lambda event: millis(event.enqueued),
    }
    if what not in counted:
        raise LinkError("amqp:not-implemented", f"There is no filter by {what}.")
    count, last = counted[what], log.last(partition)
    end = count(last) if last else -1
    if what != "enqueued-time" and limit > end:
        raise LinkError(
            "com.microsoft:argument-error",
            f"The supplied {what} '{limit}' is invalid. The last {what} in the system is '{end}'.",
        )
    at = -1
    while page := log.read(partition, at):
        for event in page:
            if count(event) > limit:
                return event.sequence - 1
        at = page[-1].sequence
    return at


class PartitionSource:
    """The events of a partition, for one link.

    Args:
        log: The hub's events.
        after: The sequence number behind which it begins.
        leave: Called once when the link is gone.
        check: Raises `LinkError` when the link may read no more.
        place: Which partition.
        metrics: Whether each event says what the partition's last one is.
    """

    def __init__(
        self,
        log: EventLog,
        after: int,
        leave: Callable[[], None],
        check: Callable[[], None],
        place: Place,
        *,
        metrics: bool = False,
    ) -> None:
        self._log = log
        self._after = after
        self._leave = leave
        self._check = check
        self._place = place
        self._metrics = metrics

    def take(self, most: int) -> list[bytes]:
        """Return up to `most` events as messages."""
        self._check()
        events = self._log.read(self._place.partition, self._after, most)
        if not events:
            return []
        self._after = events[-1].sequence
        last = self._log.last(self._place.partition) if self._metrics else None
        return [write_message(_message(event, last)) for event in events]

    def release(self) -> None:
        """Leave the partition."""
        self._leave()


def _message(event: Event, last: Event | None) -> Message:
    annotations = {
        "x-opt-sequence-number": event.sequence,
        "x-opt-offset": event.offset,
        "x-opt-enqueued-time": Timestamp(millis(event.enqueued)),
        **event.annotations,
    }
    if "iothub-enqueuedtime" in annotations:
        annotations["iothub-enqueuedtime"] = Timestamp(annotations["iothub-enqueuedtime"])
    device = event.annotations.get("iothub-connection-device-id")
    if device is not None:
        annotations["x-opt-partition-key"] = device
    told = last and {
        "last_enqueued_sequence_number": last.sequence,
        "last_enqueued_offset": last.offset,
        "last_enqueued_time_utc": Timestamp(millis(last.enqueued)),
        "runtime_info_retrieval_time_utc": Timestamp(millis(last.enqueued)),
    }
    system = {name: value for name, value in event.system.items() if value is not None}
    if isinstance(system.get("user_id"), str):
        system["user_id"] = system["user_id"].encode()  # type: ignore[assignment]
    return Message(event.body, system, event.properties, annotations, told)
