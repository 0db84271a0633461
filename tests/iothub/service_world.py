"""The double's service side in a test: a hub with devices, its servers, and clients for them."""

from __future__ import annotations

import gc
import ssl
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from azure.eventhub import CheckpointStore, EventData, EventHubConsumerClient, PartitionContext
from azure.identity import ClientSecretCredential

from edgefleet_provisioning.iothub_double.authority import Authority
from edgefleet_provisioning.iothub_double.credentials import make_token
from edgefleet_provisioning.iothub_double.provisioning import Provisioning
from edgefleet_provisioning.iothub_double.service_side import ServiceSide
from edgefleet_provisioning.iothub_double.state import Azure, Hub

HOST, OTHER = "fleet.azure-devices.test", "other.azure-devices.test"
GROUPS = tuple(f"group-{number}" for number in range(6))
DPS_HOST = "fleet.azure-devices-provisioning.test"
VERSION = {"api-version": "2021-04-12"}


@dataclass
class World:
    """A double whose service side runs."""

    azure: Azure
    side: ServiceSide
    ca: Path
    dps: Provisioning

    @property
    def hub(self) -> Hub:
        return self.azure.hub(HOST)

    def client(self, hub: Hub | None = None, policy: str = "iothubowner") -> httpx.Client:
        """Return a client of a hub's REST interface with a token of a policy."""
        hub = hub or self.hub
        expires = int(self.azure.clock.now()) + 3600
        token = make_token(hub.host, hub.policies[policy], expires, policy)
        context = ssl.create_default_context(cafile=str(self.ca))
        return httpx.Client(
            base_url=self.side.hub_url(hub),
            verify=context,
            headers={"Authorization": token},
            params=VERSION,
        )

    def common(self, authorization: str) -> httpx.Client:
        """Return a client of the common port: issuer, provisioning service, Resource Manager."""
        return httpx.Client(
            base_url=f"https://127.0.0.1:{self.side.rest.port}",
            verify=ssl.create_default_context(cafile=str(self.ca)),
            headers={"Authorization": authorization},
            params={"api-version": "2021-10-01"},
        )

    def credential(self, client: str, secret: str) -> ClientSecretCredential:
        """Return azure-identity's credential of a client of the double's issuer."""
        return ClientSecretCredential(
            self.side.issuer.tenant, client, secret,
            authority=f"127.0.0.1:{self.side.rest.port}", disable_instance_discovery=True,
            connection_verify=str(self.ca),
        )  # fmt: skip


@contextmanager
def service_world(folder: Path, *, tls: bool = False, hosts: tuple[str, ...] = (HOST,)):
    """Run the service side of a double."""
    azure = Azure()
    for host in hosts:
        azure.add(host, partitions=2)
    authority = Authority(folder, ["127.0.0.1", *hosts])
    port = 0 if tls else None
    dps = Provisioning(azure, DPS_HOST)
    with ServiceSide(
        azure, authority.server_file, events_tls_port=port, groups=GROUPS, provisioning=dps
    ) as side:
        yield World(azure, side, authority.ca_file, dps)


@dataclass
class Reading:
    """What a consumer has got, by partition, and what went wrong."""

    client: EventHubConsumerClient
    events: list[EventData] = field(default_factory=list)
    partitions: set[str] = field(default_factory=set)
    errors: list[Exception] = field(default_factory=list)

    def bodies(self) -> list[str]:
        return [event.body_as_str() for event in self.events]

    def on_batch(self, context: PartitionContext, batch: list[EventData]) -> None:
        self.partitions.add(context.partition_id)
        self.events.extend(batch)
        if batch:
            context.update_checkpoint(batch[-1])

    def on_error(self, _: PartitionContext | None, error: Exception) -> None:
        self.errors.append(error)


@contextmanager
def reading(
    text: str | EventHubConsumerClient, *, group: str = "$Default", **options: Any
) -> Iterator[Reading]:
    """Consume events in a thread, as a service does, by a connection string or a client.

    With `retry_total=0` errors of a link are told; else the SDK tries again for ever, in silence.
    """
    made = {name: options.pop(name) for name in list(options) if name in _OF_CLIENT}
    if isinstance(text, str):
        text = EventHubConsumerClient.from_connection_string(
            text, group, retry_backoff_factor=0.05, **{"retry_total": 3, **made}
        )
    client = text
    found = Reading(client)
    asked = {"max_wait_time": 0.2, "max_batch_size": 100, "starting_position": "-1", **options}
    thread = threading.Thread(
        target=client.receive_batch,
        args=(found.on_batch,),
        kwargs={"on_error": found.on_error, **asked},
    )
    with warnings.catch_warnings():
        # The SDK forgets to close the socket of a connection that broke; it goes with the garbage.
        warnings.simplefilter("ignore", ResourceWarning)
        thread.start()
        try:
            yield found
        finally:
            client.close()
            thread.join(20)
            gc.collect()


def close(readings: Iterable[Reading]) -> None:
    """Close several consumers at a time; each takes a second."""
    threads = [threading.Thread(target=one.client.close) for one in readings]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


_OF_CLIENT = {
    "retry_total",
    "checkpoint_store",
    "load_balancing_interval",
    "partition_ownership_expiration_interval",
    "connection_verify",
    "custom_endpoint_address",
    "idle_timeout",
}


class MemoryStore(CheckpointStore):
    """A checkpoint store that several consumers share; etags keep them apart."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owned: dict[str, dict[str, Any]] = {}
        self.kept: dict[str, dict[str, Any]] = {}
        self._number = 0

    def list_ownership(self, *_: str, **__: Any) -> list[dict[str, Any]]:
        with self._lock:
            return [dict(one) for one in self._owned.values()]

    def claim_ownership(self, ownership_list, **_: Any) -> list[dict[str, Any]]:
        claimed = []
        with self._lock:
            for wanted in ownership_list:
                there = self._owned.get(wanted["partition_id"])
                if there is not None and there["etag"] != wanted.get("etag"):
                    continue
                self._number += 1
                stamped = {"etag": str(self._number), "last_modified_time": time.time()}
                self._owned[wanted["partition_id"]] = {**wanted, **stamped}
                claimed.append(dict(self._owned[wanted["partition_id"]]))
        return claimed

    def update_checkpoint(self, checkpoint, **_: Any) -> None:
        with self._lock:
            self.kept[checkpoint["partition_id"]] = dict(checkpoint)

    def list_checkpoints(self, *_: str, **__: Any) -> list[dict[str, Any]]:
        with self._lock:
            return [dict(one) for one in self.kept.values()]


def until(condition: Callable[[], Any], what: str = "it", seconds: float = 30) -> None:
    """Wait for a condition."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what} did not come in {seconds} s"
        time.sleep(0.02)
