"""A hub to run the same tests on: the double, or a real one that the environment names."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

import pytest

from edgefleet_agent.config import IotHub as AgentOptions
from edgefleet_agent.tls import Tls
from edgefleet_agent.transports.iothub.clients import Credentials
from edgefleet_agent.transports.iothub.speech import Who
from edgefleet_agent.transports.iothub.transport import IotHubTransport
from edgefleet_cloud.hub_config import IotHub
from edgefleet_cloud.iothub.rest import HubRest
from edgefleet_provisioning.azure_iot.credentials import ConnectionString
from edgefleet_provisioning.iothub_double.double import AzureDouble

PREFIX = "edgefleet-test-"
HUB = ("EDGEFLEET_IOTHUB_CONNECTION", "EDGEFLEET_IOTHUB_EVENTS")
DPS = ("EDGEFLEET_DPS_CONNECTION", "EDGEFLEET_DPS_SCOPE")
T = TypeVar("T")


def until(ready: Callable[[], T], what: str, seconds: float) -> T:
    """Wait until `ready()` is true, and return it."""
    deadline = time.monotonic() + seconds
    while not (found := ready()):
        assert time.monotonic() < deadline, f"not in {seconds} s: {what}"
        time.sleep(0.05)
    return found


class Dps(NamedTuple):
    """A Device Provisioning Service.

    Attributes:
        file: Holds its service connection string.
        api: HOST:PORT of its service API; '' = the one in the connection string.
        url: What devices are told.
    """

    file: Path
    api: str
    url: str


class HubWorld:
    """A hub, the fleet manager's way to it, and agents on it; a context manager.

    What it makes in the hub is named `edgefleet-test-...` and is removed at the end.

    Attributes:
        config: The hub as cloud.toml would name it.
        rest: The fleet manager's client of its service API.
        patience: Seconds that something may take there.
        dps: The Device Provisioning Service, None if there is none.
    """

    patience = 20.0

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ends = ExitStack()
        self.config: IotHub
        self.rest: HubRest
        self.ca: Path | None = None
        self.dps: Dps | None = None
        self._transports: list[IotHubTransport] = []

    def __enter__(self) -> Self:
        self.rest = HubRest(self.config)
        self.ends.callback(self.rest.close)
        return self

    def __exit__(self, *_: object) -> None:
        for transport in self._transports:
            transport.stop()
        self.ends.close()

    def name(self) -> str:
        """Return a new device's id."""
        return f"{PREFIX}{secrets.token_hex(5)}"

    def device(self, name: str = "", **authentication: Any) -> str:
        """Make a device in the registry and return its id; '' = a new one."""
        name = name or self.name()
        self.ends.callback(self.rest.delete_device, name)
        self.rest.put_device({"deviceId": name, "authentication": authentication})
        return name

    def device_by_key(self) -> tuple[str, dict[str, Any]]:
        """Make a device with a key that the hub chooses; return its id and the agent's options."""
        name = self.device(type="sas")
        key = self.rest.device(name)["authentication"]["symmetricKey"]["primaryKey"]
        return name, {"auth": "sas", "key_file": self.secret(key)}

    def secret(self, text: str) -> str:
        """Return a file that holds it."""
        path = self.folder / f"secret-{secrets.token_hex(4)}"
        path.write_text(text)
        return str(path)

    def agent(
        self, name: str, events: Any, *, pair: Path | None = None, url: str = "", **options: Any
    ) -> IotHubTransport:
        """Start an agent's transport; `pair` is a file with key and certificate."""
        shown = pair or self.folder / "no-pair.pem"
        known = Credentials(
            name, AgentOptions(**{"report_min_s": 0.1, **options}), Tls(shown, shown, shown),
            self.ca, 60, "edgefleet-agent/test",
        )  # fmt: skip
        state = self.folder / f"state-{name}"
        state.mkdir(exist_ok=True)
        transport = IotHubTransport(
            url or f"iothub://{self.config.host}", Who(name, f"boot-{name}", "9"), known, state,
            lambda: None, backoff_max_s=2.0,
        )  # fmt: skip
        self._transports.append(transport)
        transport.start(events)
        return transport

    def wait(self, ready: Callable[[], T], what: str) -> T:
        """Wait until `ready()` is true, and return it."""
        return until(ready, what, self.patience)


class DoubleWorld(HubWorld):
    """The double, with Azure's own SDKs at both ends."""

    double: AzureDouble

    def __enter__(self) -> Self:
        double = self.ends.enter_context(AzureDouble(self.folder / "azure", websockets=False))
        hub = double.hub()
        self.ca = double.ca_file
        self.config = IotHub(
            "test", hub.host, self.secret(hub.connection_string()),
            self.secret(double.service.events_string(hub)), ca=str(double.ca_file),
            gateway=double.service.hub_url(hub).removeprefix("https://"),
        )  # fmt: skip
        dps = double.provisioning
        self.dps = Dps(
            Path(self.secret(dps.connection_string())),
            f"{double.service.address}:{double.service.rest.port}",
            f"dps://{dps.host}/{dps.id_scope}",
        )
        self.double = double
        return super().__enter__()


class AzureWorld(HubWorld):
    """A hub of Azure's, by the environment; skips by name where that does not say which."""

    patience = 150.0  # connection states are told up to a minute late

    def __enter__(self) -> Self:
        lacking = [name for name in HUB if not os.environ.get(name)]
        if lacking:
            pytest.skip(f"needs a real IoT hub: {', '.join(lacking)} not set; docs/iothub.md")
        connection, events = (os.environ[name] for name in HUB)
        host = ConnectionString.parse(connection, HUB[0]).host
        group = os.environ.get("EDGEFLEET_IOTHUB_CONSUMER_GROUP", "$Default")
        self.config = IotHub(
            "test", host, self.secret(connection), self.secret(events), consumer_group=group
        )
        if all(os.environ.get(name) for name in DPS):
            self.dps = Dps(Path(self.secret(os.environ[DPS[0]])), "", f"dps://{os.environ[DPS[1]]}")
        return super().__enter__()


WORLDS = {"double": DoubleWorld, "azure": AzureWorld}
