"""A real fleet manager with its broker, and real agents, for the rows about the broker."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgefleet_cloud.broker.probe import Address, client_context
from edgefleet_shared.identifiers import MANAGER, sha256_digest
from edgefleet_shared.package import Manifest, encode_manifest
from tests.agent.world import a_variant
from tests.brokers import Client, any_certificate, until
from tests.cloud.running import RunningCloud
from tests.fleet_folder import CREATED, FleetFolder
from tests.models import linear

AGENT = [sys.executable, "-m", "edgefleet_agent"]
TOML = """\
state_dir = "state"
run_dir = "run"
[inference]
tcp = ""
[transport]
backoff_max_s = 2.0
[telemetry]
interval_s = 1.0
"""


class Agent:
    """One enrolled device: a folder, and agentd as a process."""

    def __init__(self, fleet: BrokerFleet, name: str) -> None:
        self.fleet, self.name = fleet, name
        self.folder = fleet.folder / name
        self.folder.mkdir()
        self.config = self.folder / "agent.toml"
        self.config.write_text(TOML)
        made = fleet.cloud.client.post("/v1/devices", json={"id": name})
        assert made.status_code == 201, made.text
        self.enroll()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def identity(self) -> Path:
        """Its identity folder: what a thief of the device has."""
        return self.folder / "state" / "identity"

    @property
    def pair(self) -> Path:
        """Its stolen key and certificate, in one file."""
        parts = [(self.identity / name).read_bytes() for name in ("device.key", "device.crt")]
        stolen = self.folder / "stolen.pem"
        stolen.write_bytes(b"".join(parts))
        return stolen

    def enroll(self) -> None:
        """Enrol with a new ticket."""
        answer = self.fleet.cloud.client.post(f"/v1/devices/{self.name}/tickets", json={})
        ticket = self.folder / "ticket"
        ticket.write_text(answer.json()["ticket"])
        command = [*AGENT, "enroll", "--config", str(self.config), "--ticket-file", str(ticket)]
        subprocess.run(command, check=True, capture_output=True, timeout=60)

    def start(self) -> None:
        """Start agentd and wait until it is connected."""
        log = (self.folder / "log").open("ab")
        command = [*AGENT, "run", "--config", str(self.config)]
        self.process = subprocess.Popen(command, stdout=log, stderr=log)
        log.close()
        until(self.connected, 40)

    def stop(self) -> None:
        """End agentd with everything that it started."""
        if self.process:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(30)
            self.process = None

    def status(self) -> dict[str, Any]:
        """Return what agentd says of itself; {} before it says anything."""
        path = self.folder / "run" / "status.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def connected(self) -> bool:
        """Return whether agentd stands in connection."""
        return bool(self.status().get("connected"))

    def events(self, code: str = "") -> list[dict[str, Any]]:
        """Return the events about this device, oldest first, of one kind or all."""
        subject = f"devices/{self.name}"
        query = {"page_size": "500", "order_by": "id asc"}
        found = self.fleet.cloud.client.get("/v1/events", params=query).json()["items"]
        kinds = {code, f"device.{code}"}
        return [e for e in found if e["subject"] == subject and (not code or e["type"] in kinds)]

    def hears_its_counter(self) -> bool:
        """Return whether it runs by the newest assignment."""
        return self.status().get("counter") == self.fleet.counter(self.name)


class BrokerFleet:
    """The fleet manager in this process, its broker as a child, agents as processes."""

    def __init__(self, kind: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ef-g-", dir="/tmp"))
        self.files = FleetFolder(self.folder / "fleet")
        text = self.files.config.read_text().replace("[broker]", f'[broker]\nkind = "{kind}"')
        self.files.config.write_text(text)
        self.cloud = RunningCloud(self.files, background=True)
        self.keys = self.files.online / "keys"
        self.agents: list[Agent] = []
        self.published = 0

    def agent(self, name: str) -> Agent:
        """Return a new device, enrolled and connected."""
        made = Agent(self, name)
        self.agents.append(made)
        made.start()
        return made

    def roll_out(self, device: str) -> int:
        """Publish another version and assign it to a device; return the assignment's counter."""
        self.published += 1
        version, body = f"1.0.{self.published}", linear(self.published)
        digest = sha256_digest(body)
        manifest = Manifest(
            1, "digits", version, self.published, 0, CREATED, [a_variant(digest, len(body))]
        )
        answer = self.cloud.publish(manifest, encode_manifest(manifest), {digest: body})
        assert answer.status_code == 201, answer.text
        wish = {"model": "digits", "version": version, "devices": [device]}
        before = self.counter(device)
        answer = self.cloud.client.post("/v1/rollouts", json=wish)
        assert answer.status_code == 201, answer.text
        until(lambda: self.counter(device) > before)
        return self.counter(device)

    def counter(self, device: str) -> int:
        """Return the newest counter that was given out for a device."""
        return int(self.cloud.client.get(f"/v1/devices/{device}").json()["counter"])

    @property
    def address(self) -> Address:
        """Where the broker listens."""
        return Address("127.0.0.1", int(self.cloud.facts["broker"].rpartition(":")[2]))

    def context(self, pair: Path) -> Any:
        """Return TLS with a pair."""
        return client_context((self.keys / "device-ca.crt").read_text(), pair)

    @contextlib.contextmanager
    def client(self, pair: Path, client_id: str = "any", **given: Any) -> Iterator[Client]:
        """Connect with a pair."""
        made = Client(self.keys / "device-ca.crt", self.address.port, pair, client_id, **given)
        try:
            yield made
        finally:
            made.close()

    @contextlib.contextmanager
    def hostile(self) -> Iterator[Client]:
        """Connect as whoever has the broker in his hands."""
        pair = any_certificate(self.keys, f"{MANAGER}-2", self.folder / "mallory.pem")
        with self.client(pair) as client:
            client.subscribe("f1/#")
            yield client

    def close(self) -> None:
        """End everything."""
        for agent in self.agents:
            agent.stop()
        self.cloud.stop()
        shutil.rmtree(self.folder, ignore_errors=True)
