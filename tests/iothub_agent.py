"""An agent's transport on the double of Azure, and what the hub has got of it."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgefleet_agent.config import IotHub
from edgefleet_agent.tls import Tls
from edgefleet_agent.transports.iothub.clients import Credentials
from edgefleet_agent.transports.iothub.speech import Who
from edgefleet_agent.transports.iothub.transport import IotHubTransport
from edgefleet_cloud.authority.issuing import DeviceCa
from edgefleet_cloud.broker.credentials import write_pair
from edgefleet_cloud.broker.revocations import LIFE
from edgefleet_cloud.ports import system_clock
from edgefleet_provisioning.iothub_double.double import AzureDouble
from edgefleet_provisioning.iothub_double.state import Hub
from edgefleet_shared import twin
from tests.brokers import make_authority

DEVICE = "cam-1"


class HubWorld:
    """A hub that trusts the fleet's device CA, and one device in its registry.

    Args:
        folder: Everything lies below it.
        hubs: Names of hubs.
        given: For the double.
    """

    def __init__(self, folder: Path, hubs: tuple[str, ...] = ("fleet-a",), **given: Any) -> None:
        gc.freeze()  # what was before needs no look when we end
        self.folder = folder
        self.double = AzureDouble(folder / "azure", hubs, **{"websockets": False, **given})
        self.authority = folder / "keys"
        make_authority(self.authority)
        for name in hubs:
            hub = self.double.hub(name)
            hub.registry.trust((self.authority / "device-ca.crt").read_bytes())
            hub.registry.create(DEVICE, auth="certificateAuthority")
        self.pair = self.issue(self.authority)
        self.double.start()

    @property
    def hub(self) -> Hub:
        """The first hub."""
        return self.double.hub()

    def issue(self, authority: Path, name: str = DEVICE) -> Path:
        """Return a file with a new key and a certificate for it."""
        ca, path = (
            DeviceCa.load(authority),
            self.folder / f"{authority.name}-{name.replace('/', '-')}.pem",
        )
        write_pair(path, lambda key: ca.sign_client(key, name, system_clock(), LIFE))
        return path

    def agent(
        self,
        pair: Path | None = None,
        *,
        url: str = "",
        fetch: Callable[[], bytes | None] = lambda: None,
        ca: Path | None = None,
        **options: Any,
    ) -> IotHubTransport:
        """Return a transport, not started.

        Args:
            pair: Its key and certificate.
            url: Where to; "" = straight to the first hub.
            fetch: Over HTTPS.
            ca: Whom it believes.
            options: Of section `[iothub]`.
        """
        shown = pair or self.pair
        known = Credentials(
            DEVICE,
            IotHub(**{"report_min_s": 0.05, "gateway": self.double.gateway(), **options}),
            Tls(self.double.ca_file, shown, shown),
            ca or self.double.ca_file,
            60,
            "edgefleet-agent/9",
        )
        state = self.folder / "state"
        state.mkdir(exist_ok=True)
        return IotHubTransport(
            url or f"iothub://{self.hub.host}",
            Who(DEVICE, "boot-1", "9"),
            known,
            state,
            fetch,
            backoff_max_s=1.0,
        )

    def assign(self, payload: bytes, hub: str = "", **given: Any) -> None:
        """Write a document into the twin."""
        self.double.hub(hub).patch_twin(
            DEVICE, "", {"properties": {"desired": twin.document_patch(payload, **given)}}
        )

    def ask_to_renew(self, word: bytes) -> None:
        """Write a word that asks to renew."""
        self.hub.patch_twin(DEVICE, "", {"properties": {"desired": twin.renew_patch(word)}})

    def reported(self, hub: str = "") -> bytes | None:
        """Return the report that lies in the twin."""
        found = self.double.hub(hub).twin(DEVICE)["properties"]["reported"]
        document = twin.read_report(found)
        return document.payload if document else None

    def messages(self, hub: str = "") -> list[tuple[dict[str, str], bytes]]:
        """Return every message of the device, oldest first: properties and body."""
        found = [
            event
            for event in self.double.hub(hub).log.all()
            if event.annotations.get("iothub-message-source") == "Telemetry"
        ]
        return [(event.properties, event.body) for event in sorted(found, key=lambda e: e.sequence)]

    def bodies(self, kind: str, hub: str = "") -> list[bytes]:
        """Return the bodies of all messages of a kind."""
        return [body for named, body in self.messages(hub) if named.get(twin.KIND) == kind]

    def close(self) -> None:
        """End it, and let what the SDK leaves to the garbage collector be collected here."""
        self.double.stop()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()
        gc.unfreeze()
