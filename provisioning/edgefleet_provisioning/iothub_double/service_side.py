"""The service side of the double as one thing: REST interfaces, issuer, Event Hubs endpoint."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from starlette.routing import BaseRoute

from edgefleet_provisioning.iothub_double import rest_dps
from edgefleet_provisioning.iothub_double.amqp_nodes import Entity, Namespace
from edgefleet_provisioning.iothub_double.amqp_server import EventHubsServer
from edgefleet_provisioning.iothub_double.entra import EVENTS, Issuer
from edgefleet_provisioning.iothub_double.provisioning import Provisioning
from edgefleet_provisioning.iothub_double.refusals import HubError
from edgefleet_provisioning.iothub_double.rest_hub import RIGHTS
from edgefleet_provisioning.iothub_double.rest_resources import Resources
from edgefleet_provisioning.iothub_double.rest_server import RestServer
from edgefleet_provisioning.iothub_double.state import Azure, Hub

DEFAULT_GROUP = "$Default"


class ServiceSide:
    """What services connect to. Hubs are added to `azure` before it starts.

    Args:
        azure: The hubs.
        certificate: PEM file with the server's certificate and its key.
        address: Where it listens.
        rest_port: REST's common port (issuer, provisioning service); 0: any.
        hub_ports: REST's port of each hub by host name; any for those that are not named.
        events_port: Of the Event Hubs endpoint over plain TCP; 0: any.
        events_tls_port: Of the same over TLS; None: not served.
        groups: Consumer groups beside `$Default`.
        provisioning: Its service interface is served too, on the common port.
    """

    def __init__(
        self,
        azure: Azure,
        certificate: Path,
        address: str = "127.0.0.1",
        *,
        rest_port: int = 0,
        hub_ports: Mapping[str, int] | None = None,
        events_port: int = 0,
        events_tls_port: int | None = None,
        groups: tuple[str, ...] = (),
        provisioning: Provisioning | None = None,
    ) -> None:
        self.address = address
        self.azure = azure
        self.issuer = Issuer(azure.clock)
        more: list[BaseRoute] = []
        if provisioning is not None:
            more += rest_dps.routes(provisioning, self.issuer)
            more += Resources(azure, provisioning, self.issuer).routes()
        self.rest = RestServer(
            azure, self.issuer, certificate, address,
            port=rest_port, hub_ports=hub_ports, more=more,
        )  # fmt: skip
        tls: ssl.SSLContext | None = None
        if events_tls_port is not None:
            tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            tls.load_cert_chain(certificate)
        self.events = EventHubsServer(
            Namespace(azure.clock, self._bearer),
            address,
            port=events_port,
            tls=tls,
            tls_port=events_tls_port or 0,
        )
        self._groups = groups

    def start(self) -> None:
        """Serve; ports and connection strings are known afterwards."""
        self.rest.start()
        self.events.start()
        for hub in self.azure.hubs.values():
            keys = {name: key for name, key in hub.policies.items() if _may_listen(name)}
            groups = {DEFAULT_GROUP, *self._groups}
            self.events.add(entity_of(hub), Entity(hub.log, keys, groups, hub.clock.now()))

    def stop(self) -> None:
        """End all connections and threads."""
        self.events.stop()
        self.rest.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.stop()

    def hub_url(self, hub: Hub) -> str:
        """Return where a hub's REST interface is."""
        return f"https://{self.address}:{self.rest.hub_port(hub.host)}"

    def events_string(self, hub: Hub, policy: str = "service", *, tls: bool = False) -> str:
        """Return the Event Hubs-compatible connection string of a hub.

        Args:
            hub: Which.
            policy: Whose key.
            tls: Over TLS: the client must be told the port by `custom_endpoint_address`, unless
                it is 5671, and the CA by `connection_verify`.
        """
        where = self.address if tls else f"{self.address}:{self.events.port}"
        said = (
            f"Endpoint=sb://{where}/;SharedAccessKeyName={policy};"
            f"SharedAccessKey={hub.policies[policy]};EntityPath={entity_of(hub)}"
        )
        return said if tls else f"{said};UseDevelopmentEmulator=true"

    def _bearer(self, token: str) -> float:
        if "listen" not in self.issuer.rights(token, EVENTS):
            raise HubError(401, "Unauthorized", "The role to receive events is missing.")
        return float(self.issuer.check(token, EVENTS)["exp"])


def entity_of(hub: Hub) -> str:
    """Return the name of a hub's event hub."""
    return f"iothub-ehub-{hub.name}-double"


def _may_listen(policy: str) -> bool:
    return "service" in RIGHTS.get(policy, frozenset())
