"""The demo's fleet: a fleet manager, its broker and N agents, all real, on this machine."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from edgefleet_provisioning.demo.hub import IOTHUB, MQTT, NAME, Hub, Transport
from edgefleet_provisioning.demo.narrator import Narrator
from edgefleet_provisioning.demo.processes import Processes, run, run_json
from edgefleet_shared.steps import Step

EDGEFLEET = ["-m", "edgefleet_provisioning"]
AGENT = ["-m", "edgefleet_agent"]
CLOUD = ["-m", "edgefleet_cloud"]
SITES = ("berlin", "oslo", "porto")

AGENT_TOML = """\
state_dir = "{state}"
run_dir = "{run}"

[inference]
tcp = "127.0.0.1:0"
orphan_timeout_s = 30.0

[transport]
backoff_max_s = 2.0
{transport}
[telemetry]
interval_s = 1.0
"""


class Fleet:
    """Starts the parts and talks to the fleet manager.

    Args:
        folder: Everything lies below it; short, because Unix socket paths are.
        devices: How many agents.
        narrator: Hears what happens.
        transport: `mqtt`, or `iothub`: the devices connect to a hub that plays Azure's.
    """

    def __init__(
        self, folder: Path, devices: int, narrator: Narrator, transport: Transport = MQTT
    ) -> None:
        self.folder = folder
        self.transport = transport
        self.names = [f"cam-{number + 1}" for number in range(devices)]
        self.processes = Processes(folder)
        self.ready: dict[str, Any] = {}
        self._narrator = narrator
        self._fleet = folder / "fleet"
        self._hub: Hub | None = None
        self._api: httpx.Client | None = None

    @property
    def api(self) -> httpx.Client:
        """The fleet manager's API, with the admin token."""
        assert self._api is not None, "start_cloud comes first"
        return self._api

    def edgefleet(self, *arguments: str, shown: Sequence[str] | None = None) -> Any:
        """Run one `edgefleet` command with --json, show it, return its result."""
        self._narrator.command(["edgefleet", *(shown or arguments)])
        return run_json([*EDGEFLEET, *arguments])

    def init(self) -> None:
        """Make keys and trust metadata; no passphrase, because the fleet is thrown away."""
        arguments = (
            "init", str(self._fleet), "--fleet", "demo", "--family", "digits",
            "--listen", f"127.0.0.1:{_free_port()}", "--insecure-no-passphrase",
        )  # fmt: skip
        self.edgefleet(*arguments)
        os.environ["EDGEFLEET_FLEET"] = str(self._fleet)  # later commands find keys and server
        if self.transport == IOTHUB:
            self._hub = Hub(self.folder, self._fleet / "online", self.processes)
            self._hub.start()
            self._hub.join(self._fleet / "online" / "cloud.toml")
            self._narrator.say(f"a hub that plays Azure's, for the real SDKs, at {self._hub.host}")

    def start_cloud(self) -> None:
        """Start the fleet manager with its embedded broker."""
        ready = self.folder / "ready.json"
        ready.unlink(missing_ok=True)
        self.close_api()
        config = self._fleet / "online" / "cloud.toml"
        self._narrator.command(["edgefleet-cloud", "serve", "--config", str(config)])
        self.processes.start(
            "cloud", [*CLOUD, "serve", "--config", str(config), "--ready-file", str(ready)]
        )
        self.processes.wait_for("cloud", "it was ready", ready.exists, 30.0)
        self.ready = httpx.Response(200, content=ready.read_bytes()).json()
        token = (self._fleet / "online" / "admin.token").read_text().strip()
        self._api = httpx.Client(
            base_url=self.ready["api"],
            headers={"Authorization": f"Bearer {token}"},
            timeout=30.0,
        )
        self._narrator.say(
            f"fleet manager at {self.ready['api']}, broker {self.ready['broker_kind']} at "
            f"{self.ready['broker']}"
        )

    def start_agents(self) -> None:
        """Enrol and start every agent, side by side."""
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(self._start_agent, range(len(self.names))))
        for name in self.names:
            self.processes.wait_for(name, "it answered", partial(self._online, name), 30.0)
        way = "an Azure IoT hub" if self._hub else "MQTT"
        self._narrator.say(f"{', '.join(self.names)} enrolled and connected through {way}")

    def publish(self, version: str, model: Path, *options: str) -> Any:
        """Package, sign and publish one version."""
        result = self.edgefleet(
            "model", "publish", str(model), "--name", "digits", "--version", version, *options,
            shown=["model", "publish", model.name, "--name", "digits", "--version", version],
        )  # fmt: skip
        self._narrator.say(f"digits {version} is {result['manifest'][:19]}…", Step.PUBLISH)
        return result

    def infer_socket(self, name: str) -> Path:
        """Return the Unix socket on which a device's applications find its models."""
        return self.folder / name / "run" / "infer.sock"

    def infer_address(self, name: str) -> str:
        """Return the loopback address of the same."""
        return (self.folder / name / "run" / "infer.addr").read_text().strip()

    def get(self, path: str, **query: str) -> Any:
        """GET a resource of the fleet manager."""
        response = self.api.get(path, params=query)
        response.raise_for_status()
        return response.json()

    def close(self) -> None:
        """End every process and the connection to the fleet manager."""
        self.processes.end_all()
        self.close_api()

    def close_api(self) -> None:
        """End the connection to the fleet manager, if there is one."""
        if self._api is not None:
            self._api.close()

    def _start_agent(self, index: int) -> None:
        name = self.names[index]
        home = self.folder / name
        home.mkdir()
        config = home / "agent.toml"
        transport = self._hub.agent_toml() if self._hub else ""
        config.write_text(
            AGENT_TOML.format(state=home / "state", run=home / "run", transport=transport)
        )
        ticket = home / "ticket.txt"
        enroll = ["device", "enroll", name, "--label", f"site={SITES[index % len(SITES)]}"]
        enroll += ["--iothub"] if self._hub else []
        self.edgefleet(*enroll, "--output", str(ticket), shown=enroll)
        run([*AGENT, "enroll", "--config", str(config), "--ticket-file", str(ticket)])
        self.processes.start(name, [*AGENT, "run", "--config", str(config)])

    def _online(self, name: str) -> bool:
        device = self.get(f"/v1/devices/{name}")
        here = bool(device["online"]) and device["way"] == (NAME if self._hub else MQTT)
        return here and bool(self.get(f"/v1/devices/{name}/state")["reported"])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
