"""The one transport that the fleet manager sees: each device is reached on its own way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future

from edgefleet_cloud.iothub.ways import heard_on, here
from edgefleet_cloud.ports import Disconnector, Handler, Transport
from edgefleet_shared import topics
from edgefleet_shared.errors import InvalidInputError


class RoutedTransport:
    """`ports.Transport` over several: an MQTT broker under '', hubs under their names.

    Messages of one device are handled in order as long as it stays on its way; those of different
    ways at the same time.

    Args:
        ways: The transports by way.
        way_of: Returns where a device is reached.
    """

    def __init__(self, ways: Mapping[str, Transport], way_of: Callable[[str], str]) -> None:
        self._ways, self._way_of = dict(ways), way_of

    @property
    def connected(self) -> bool:
        """Return whether messages flow now, on every way."""
        return all(each.connected for each in self._ways.values())

    @property
    def pending(self) -> int:
        """Return how many published messages the other sides do not have yet."""
        return sum(each.pending for each in self._ways.values())

    def start(self, handler: Handler) -> None:
        """Start every way; returns at once."""
        for way, transport in self._ways.items():
            transport.start(_on(way, handler))

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> Future[None]:
        """Send on the device's way.

        What answers a message is sent on the way on which that has come, too: the device may have
        moved, and its report, which proves it, comes after its question.

        Raises:
            InvalidInputError: It is no topic of ours.
        """
        parsed = topics.parse(topic)
        if parsed is None:
            raise InvalidInputError(f"{topic[:200]!r} is no topic of ours.")
        way, asked_on = self._way_of(parsed.device), here()
        if asked_on is not None and asked_on != way:
            self._ways[asked_on].publish(topic, payload, retain=retain)
        return self._ways[way].publish(topic, payload, retain=retain)

    def stop(self) -> None:
        """Stop every way."""
        for transport in self._ways.values():
            transport.stop()


class DisconnectorOfAll:
    """`ports.Disconnector` over those of every way: nobody knows on which a device comes back."""

    def __init__(self, disconnectors: Sequence[Disconnector]) -> None:
        self._all = tuple(disconnectors)

    def disconnect(self, device_id: str) -> None:
        """End a device's connections everywhere, in the background."""
        for each in self._all:
            each.disconnect(device_id)


def _on(way: str, handler: Handler) -> Handler:
    def handle(topic: str, payload: bytes) -> None:
        with heard_on(way):
            handler(topic, payload)

    return handle
