"""azure-eventhub, as far as we use it: the client of an endpoint, and its store over our tables.

The asynchronous client, because the synchronous one serves all partitions in one thread, where one
that waits holds up all, and turns a core's full speed while it has none.
"""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from edgefleet_cloud.hub_config import IotHub
from edgefleet_cloud.iothub.checkpoints import Checkpoints, Position, Source
from edgefleet_cloud.iothub.translate import Event, plain
from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.times import format_time

if TYPE_CHECKING:
    from azure.eventhub import EventData
    from azure.eventhub.aio import CheckpointStore, EventHubConsumerClient

Audit = Callable[[Mapping[str, Position]], Awaitable[Mapping[str, Position]]]
"""Looks at positions before they are used; returns those that still mean something."""


class Endpoint(NamedTuple):
    """An Event Hubs-compatible endpoint, by its connection string.

    Attributes:
        text: The connection string.
        namespace: Its host.
        eventhub: Its `EntityPath`.
        keyless: Whether there is no key in it, so that Entra ID is asked for tokens.
    """

    text: str
    namespace: str
    eventhub: str
    keyless: bool

    def source(self, hub: str, consumer_group: str) -> Source:
        """Return under which name its positions lie."""
        return Source(hub, self.namespace, self.eventhub, consumer_group)


class Times(NamedTuple):
    """How often what is looked at, in seconds.

    Attributes:
        balance_s: Between two looks at who has which.
        lease_s: After which a claim that was not renewed is free.
        file_s: Between two looks at the file that names the endpoint.
        look_s: Between two looks at how far behind we are, while the hub answers.
    """

    balance_s: float = 3.0
    lease_s: float = 15.0
    file_s: float = 5.0
    look_s: float = 10.0


def endpoint(text: str, what: str) -> Endpoint:
    """Read the connection string of an Event Hubs-compatible endpoint.

    Args:
        text: `Endpoint=sb://HOST/;SharedAccessKeyName=..;SharedAccessKey=..;EntityPath=NAME`.
        what: Where it came from, for the error.

    Raises:
        InvalidInputError: It is none (code `iothub_events`).
    """
    pairs = (part.partition("=") for part in text.strip().split(";") if part)
    fields = {name.strip().lower(): value.strip() for name, _, value in pairs}
    host = fields.get("endpoint", "").partition("://")[2].rstrip("/")
    name = fields.get("entitypath", "")
    keys = [fields.get(key, "") for key in ("sharedaccesskeyname", "sharedaccesskey")]
    if not host or not name or any(keys) != all(keys):
        raise InvalidInputError(
            f"{what} is no connection string of an Event Hubs-compatible endpoint.",
            code="iothub_events",
            hint="The portal shows it under Built-in endpoints, with EntityPath: "
            "Endpoint=sb://...;SharedAccessKeyName=service;SharedAccessKey=...;EntityPath=...",
        )
    keyless = not any(keys) and not fields.get("sharedaccesssignature")
    return Endpoint(text.strip(), host, name, keyless)


def check_installed() -> None:
    """Refuse to begin where the library is missing.

    Raises:
        InvalidInputError: azure-eventhub is not installed (code `iothub_extra`).
    """
    if importlib.util.find_spec("azure.eventhub") is None:
        raise InvalidInputError(
            "The events of an IoT Hub need azure-eventhub, which is not installed.",
            code="iothub_extra",
            hint="pip install 'edgefleet-cloud[iothub]'",
        )


def client(
    where: Endpoint,
    checkpoints: Checkpoints,
    audit: Audit,
    hub: IotHub,
    times: Times,
) -> EventHubConsumerClient:
    """Return a client that shares the partitions with other servers; it opens no connection yet."""
    from azure.eventhub.aio import EventHubConsumerClient

    options: dict[str, Any] = {
        "checkpoint_store": _store(checkpoints, audit),
        "load_balancing_interval": times.balance_s,
        "partition_ownership_expiration_interval": times.lease_s,
        # Else it retries for ever what is refused for good, as an offset that is there no more,
        # and tells nobody; a partition that is given up is claimed anew at the next balance.
        "retry_total": 0,
        **({"connection_verify": hub.ca} if hub.ca else {}),
    }
    if where.keyless:
        return EventHubConsumerClient(
            where.namespace, where.eventhub, hub.consumer_group, _Entra(), **options
        )
    return EventHubConsumerClient.from_connection_string(where.text, hub.consumer_group, **options)


def event_of(found: EventData) -> tuple[Event, Position | None]:
    """Return an event in our terms, and where it lies; whatever its body, it does not raise."""
    try:
        chunks: Any = found.body
        body = b"".join([chunks] if isinstance(chunks, bytes) else list(chunks))
    except (TypeError, ValueError):  # a sequence, or a value: no device's message is one
        body = b""
    event = Event(plain(found.system_properties), plain(found.properties), body)
    offset, sequence, enqueued = found.offset, found.sequence_number, found.enqueued_time
    if offset is None or sequence is None:
        return event, None
    return event, Position(offset, sequence, format_time(enqueued) if enqueued else "")


def _store(checkpoints: Checkpoints, audit: Audit) -> CheckpointStore:
    from azure.eventhub.aio import CheckpointStore

    class Store(CheckpointStore):
        """The library's view of `Checkpoints`; names in its calls are its own and left aside."""

        async def list_ownership(self, *_: str, **__: Any) -> Iterable[dict[str, Any]]:
            return await asyncio.to_thread(checkpoints.claims)

        async def claim_ownership(
            self, ownership_list: Iterable[dict[str, Any]], **_: Any
        ) -> Iterable[dict[str, Any]]:
            return await asyncio.to_thread(checkpoints.claim, list(ownership_list))

        async def list_checkpoints(self, *_: str, **__: Any) -> Iterable[dict[str, Any]]:
            found = await audit(await asyncio.to_thread(checkpoints.positions))
            return [
                {"partition_id": number, "offset": at.offset, "sequence_number": at.sequence}
                for number, at in found.items()
            ]

        async def update_checkpoint(self, checkpoint: Mapping[str, Any], **_: Any) -> None:
            # The base class wants it; `Partition` saves positions itself, and nobody calls this.
            raise NotImplementedError

    return Store()


class _Entra:
    """Tokens of Entra ID for the asynchronous client, by azure-identity's synchronous one."""

    def __init__(self) -> None:
        from azure.identity import DefaultAzureCredential

        self._credential = DefaultAzureCredential()

    async def get_token(self, *scopes: str, **kwargs: Any) -> Any:
        return await asyncio.to_thread(self._credential.get_token, *scopes, **kwargs)

    async def close(self) -> None:
        self._credential.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
