"""The broker as the fleet manager sees it: one of its own, or somebody else's by URL."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from edgefleet_cloud import config
from edgefleet_cloud.broker.embedded import EmbeddedBroker, Kind
from edgefleet_cloud.config import Config

EXTERNAL = "external"


class BrokerService:
    """A `ports.BackgroundService`: runs the embedded broker if no URL is configured.

    Args:
        settings: The configuration.

    Raises:
        UnavailableError: Code `broker_missing`: the embedded broker asked for is not installed.
    """

    def __init__(self, settings: Config) -> None:
        self._broker: config.Broker = settings.broker
        kind: Kind = self._broker.kind
        self._embedded = (
            None
            if self._broker.url
            else EmbeddedBroker(kind, settings.data / "broker", self._broker.port)
        )

    @property
    def url(self) -> str:
        """Return where the fleet manager connects."""
        return self._embedded.url if self._embedded else self._broker.url

    @property
    def public_url(self) -> str:
        """Return what devices are told."""
        return self._broker.public_url or self.url

    @property
    def kind(self) -> str:
        """Return mosquitto or amqtt, or external."""
        return self._embedded.kind if self._embedded else EXTERNAL

    async def start(self) -> None:
        """Start the embedded broker; return once it answers an MQTT CONNECT.

        Raises:
            UnavailableError: Code `broker`: it does not answer.
        """
        if self._embedded:
            await asyncio.to_thread(self._embedded.start)

    async def stop(self) -> None:
        """End the embedded broker."""
        if self._embedded:
            await asyncio.to_thread(self._embedded.stop)

    def facts(self) -> Mapping[str, str]:
        """Return the broker's address and kind."""
        return {"broker": self.public_url, "broker_kind": self.kind}
