"""The whole double as one context manager: its CA, its hubs, each with an address, its threads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from edgefleet_provisioning.iothub_double.addresses import loopback
from edgefleet_provisioning.iothub_double.authority import Authority, DeviceTls
from edgefleet_provisioning.iothub_double.device_peer import DevicePeer
from edgefleet_provisioning.iothub_double.faults import Faults
from edgefleet_provisioning.iothub_double.provisioning import Provisioning
from edgefleet_provisioning.iothub_double.server import HTTPS_PORT, MQTT_PORT, DeviceServer
from edgefleet_provisioning.iothub_double.service_side import ServiceSide
from edgefleet_provisioning.iothub_double.state import Azure, Hub


class AzureDouble:
    """Azure on this machine.

    A hub named without a dot gets its loopback address as host name, so that everybody reaches it
    by that name. One named with dots keeps it; devices then need a gateway, which `device_string`
    puts in.

    Args:
        folder: Its CA and its certificate lie there.
        hubs: Names.
        tier: Of each hub.
        units: Of each hub.
        websockets: Serve on port 443 too, which takes root.
        address: Of the first hub; "" = a free one.
    """

    def __init__(
        self, folder: Path, hubs: Sequence[str] = ("fleet-a",), *, tier: str = "S1",
        units: int = 1, websockets: bool = True, address: str = "",
    ) -> None:  # fmt: skip
        ports = (MQTT_PORT, HTTPS_PORT) if websockets else (MQTT_PORT,)
        self.azure = Azure()
        self.clock = self.azure.clock
        self.faults = Faults()
        self.websockets = websockets
        self._addresses: dict[str, str] = {}
        for name in hubs:
            address = address if address and not self._addresses else loopback(ports)
            host = name if "." in name else address
            hub = self.azure.add(host, tier, units, name=name.split(".", maxsplit=1)[0])
            self._addresses[hub.host] = address
        self.provisioning = Provisioning(self.azure, loopback(ports))
        names = {*self._addresses, *self._addresses.values(), self.provisioning.host}
        self.authority = Authority(folder, names)
        self.server = DeviceServer(self.azure, DeviceTls(self.authority), self.faults)
        self.server.provisioning = self.provisioning
        first = next(iter(self._addresses.values()))
        self.service = ServiceSide(
            self.azure, self.authority.server_file, first, provisioning=self.provisioning
        )

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.stop()

    def start(self) -> None:
        """Begin to serve.

        Raises:
            OSError: A port is taken, or 443 is not ours to take; nothing is left running.
        """
        self.service.start()
        self.server.forward = self.service.rest.plain
        self.server.start()
        try:
            for address in (*self._addresses.values(), self.provisioning.host):
                self.server.listen(address, websockets=self.websockets)
        except OSError:
            self.stop()
            raise

    def stop(self) -> None:
        """End all connections and threads."""
        self.server.stop()
        self.service.stop()

    @property
    def ca_pem(self) -> str:
        """The CA that signs the servers' certificates, as text."""
        return self.authority.ca_pem

    @property
    def ca_file(self) -> Path:
        """The same, as a file."""
        return self.authority.ca_file

    def hub(self, name: str = "") -> Hub:
        """Return a hub by its name or its host; "" is the first.

        Raises:
            HubError: 404, there is none.
        """
        for hub in self.azure.hubs.values():
            if name in {"", hub.name, hub.host}:
                return hub
        return self.azure.hub(name)

    def address(self, name: str = "") -> str:
        """Return the loopback address of a hub."""
        return self._addresses[self.hub(name).host]

    def gateway(self, name: str = "") -> str:
        """Return what devices give as gateway: "" if the hub's host name is its address."""
        host, address = self.hub(name).host, self.address(name)
        return "" if host == address else address

    def device_string(self, device: str, module: str = "", hub: str = "") -> str:
        """Return a connection string of a device with a symmetric key.

        Raises:
            HubError: 404, or 400 if it has no key.
        """
        made = self.hub(hub).device_string(device, module)
        gateway = self.gateway(hub)
        return f"{made};GatewayHostName={gateway}" if gateway else made

    def cut(self, device: str = "", hub: str = "") -> int:
        """End connections now, without a word; return how many.

        Args:
            device: Of one device alone; "" for all.
            hub: Of one hub alone; "" for all.
        """
        host = self.hub(hub).host if hub else ""

        def chosen(peer: object) -> bool:
            if not isinstance(peer, DevicePeer):
                return not device and not host
            return device in {"", peer.device} and host in {"", peer.host}

        return self.server.cut(chosen)

    def off_net(self, hub: str = "") -> None:
        """Take a hub off the net: its address refuses connections, and those there are end.

        Its REST interface answers 503. Its events can still be read: they lie elsewhere in Azure.
        """
        self.azure.away.add(self.hub(hub).host)
        self.server.unlisten(self.address(hub))
        self.cut(hub=self.hub(hub).host)

    def on_net(self, hub: str = "") -> None:
        """Bring a hub back."""
        self.azure.away.discard(self.hub(hub).host)
        self.server.listen(self.address(hub), websockets=self.websockets)

    def refuse(self, hub: str = "", *, refusing: bool = True) -> None:
        """Have a hub answer that it is unavailable to whoever connects, or end that."""
        host = self.hub(hub).host
        if refusing:
            self.server.refusing.add(host)
        else:
            self.server.refusing.discard(host)
