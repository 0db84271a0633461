"""The demo's IoT hub: a double of Azure's as a process, for the real SDKs of both sides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from edgefleet_provisioning.demo.processes import Processes

Transport = Literal["mqtt", "iothub"]
MQTT: Transport = "mqtt"
IOTHUB: Transport = "iothub"
DOUBLE = ["-m", "edgefleet_provisioning.iothub_double"]
NAME = "azure"


class Hub:
    """One hub, told to the fleet manager and to the agents.

    Args:
        folder: The demo's.
        online: The online side of the fleet's folder: its device CA is the one that the hub trusts.
        processes: Runs it.
    """

    def __init__(self, folder: Path, online: Path, processes: Processes) -> None:
        self._folder = folder / NAME
        self._ready = folder / f"{NAME}.json"
        self._ca = online / "keys" / "device-ca.crt"
        self._processes = processes
        self._facts: dict[str, Any] = {}

    @property
    def host(self) -> str:
        """The host name that devices connect to."""
        return str(self._facts["host"])

    def start(self) -> None:
        """Start it and wait until it answers."""
        self._folder.mkdir()
        self._processes.start(
            NAME,
            [*DOUBLE, "--folder", str(self._folder), "--ready-file", str(self._ready),
             "--trust", str(self._ca), "--hub", NAME],
        )  # fmt: skip
        self._processes.wait_for(NAME, "it was ready", self._ready.exists, 30.0)
        self._facts = json.loads(self._ready.read_bytes())

    def join(self, cloud_toml: Path) -> None:
        """Tell the fleet manager of it, by its configuration: new devices are to use it."""
        facts = self._facts
        keys = {
            "name": NAME,
            "host": facts["host"],
            "gateway": facts["rest"],
            "connection_file": facts["connection_string_file"],
            "events_file": facts["events_connection_string_file"],
            "ca": self._facts["ca"],
        }
        lines = [f"{key} = {json.dumps(value)}\n" for key, value in keys.items()]
        with cloud_toml.open("a") as file:
            file.write("\n[[iothub]]\n" + "".join(lines) + "default = true\n")

    def agent_toml(self) -> str:
        """Return the lines of an agent's table `[transport]`: whom to believe is the hub."""
        return f"ca = {json.dumps(self._facts['ca'])}\n"
