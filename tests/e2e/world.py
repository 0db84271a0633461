"""What an end-to-end test can do to a real fleet, and see of it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import paho.mqtt.client as mqtt

from edgefleet_agent.tls import Tls
from edgefleet_provisioning.demo.digits import Digits, build
from edgefleet_provisioning.demo.fleet import AGENT, Fleet
from edgefleet_provisioning.demo.hub import MQTT, Transport
from edgefleet_provisioning.demo.load import Client, UnixConnection
from edgefleet_provisioning.demo.narrator import Narrator
from edgefleet_provisioning.demo.processes import PIDS, run_json
from edgefleet_shared import topics
from edgefleet_shared.identifiers import MANAGER
from tests.brokers import CALLBACKS, any_certificate

ENDED = {"completed", "stopped", "rolled_back", "paused"}


def until(what: str, condition: Callable[[], Any], seconds: float = 30.0) -> Any:
    """Wait for a truthy value and return it, or fail with what was waited for."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what} did not come within {seconds:.0f} s"
        time.sleep(0.05)
    return found


@contextlib.contextmanager
def whole_fleet(
    prefix: str, versions: tuple[str, ...], transport: Transport = MQTT
) -> Iterator[World]:
    """Start a fleet of two devices, publish versions of digits, and roll the first one out."""
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir="/tmp"))
    before = dict(os.environ)
    fleet = Fleet(folder, 2, Narrator(to_stderr=True), transport)
    try:
        digits = build(folder)
        fleet.init()
        fleet.start_cloud()
        fleet.start_agents()
        whole = World(fleet, digits)
        for version in versions:
            whole.publish(version)
        assert whole.roll_out(versions[0])["state"] == "completed"
        yield whole
    finally:
        fleet.close()
        os.environ.clear()
        os.environ.update(before)
        shutil.rmtree(folder, ignore_errors=True)


class World:
    """A fleet in which digits 1.0.0, 2.0.0 and 3.0.0 are published."""

    def __init__(self, fleet: Fleet, digits: Digits) -> None:
        self.fleet, self.digits = fleet, digits
        self.names = fleet.names

    def publish(self, version: str) -> Any:
        """Publish one version through the CLI."""
        return self.fleet.publish(
            version, self.digits.models[version], "--golden", str(self.digits.golden)
        )

    def roll_out(self, version: str, *options: str, seconds: float = 60.0) -> dict[str, Any]:
        """Roll one version out to everything and wait for the end; return the rollout."""
        created = self.start_rollout(version, *options)
        path = f"/v1/rollouts/{created['id']}"
        return until(
            f"the end of the rollout of {version}",
            lambda: (r := self.fleet.get(path))["state"] in ENDED and r,
            seconds,
        )

    def start_rollout(self, version: str, *options: str) -> dict[str, Any]:
        """Start a rollout and return at once."""
        return self.fleet.edgefleet(
            "rollout", "create", "digits", version, "--probation-s", "1", *options
        )

    def ask(self, name: str, path: str = "/v2/models/digits/infer") -> tuple[int, dict[str, Any]]:
        """Ask a device about the first held-out digit in JSON; return status and answer."""
        pixels = np.load(self.digits.held_out)["pixels"][0].tolist()
        body = {
            "inputs": [{"name": "pixels", "shape": [1, 64], "datatype": "FP32", "data": pixels}]
        }
        connection = UnixConnection(str(self.fleet.infer_socket(name)), 10.0)
        with contextlib.closing(connection):
            connection.request("POST", path, json.dumps(body))
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())

    def version(self, name: str) -> str:
        """Return the version that answers on a device; '' when it does not answer 200."""
        try:
            status, answer = self.ask(name)
        except (OSError, http.client.HTTPException):
            return ""
        return answer["model_version"] if status == 200 else ""

    def events(self, **query: str) -> list[dict[str, Any]]:
        """Return the newest events."""
        return self.fleet.get("/v1/events", page_size="500", order_by="id desc", **query)["items"]

    def last_event(self) -> int:
        """Return the newest event's number."""
        return max((event["id"] for event in self.events()), default=0)

    def refusal(self, code: str, after: int, device: str) -> dict[str, Any]:
        """Wait for the device's event that says why it refused."""
        return until(
            f"{device}'s event {code}",
            lambda: next(
                (
                    event
                    for event in self.events()
                    if event["id"] > after
                    and event["type"] == f"device.{code}"
                    and event["subject"].endswith(device)
                ),
                None,
            ),
        )

    def agent_pid(self, name: str) -> int:
        """Return agentd's process id."""
        return self.pid(name)

    def pid(self, name: str) -> int:
        """Return the process id of a device's agentd, or of the fleet manager, `cloud`."""
        return int(json.loads((self.fleet.folder / PIDS).read_text())[name])

    def restart_agent(self, name: str) -> None:
        """Start agentd again after it was killed."""
        config = self.fleet.folder / name / "agent.toml"
        self.fleet.processes.start(name, [*AGENT, "run", "--config", str(config)])

    def worker(self, name: str) -> int:
        """Return the process id of a device's serving worker; 0 while there is none."""
        config = self.fleet.folder / name / "agent.toml"
        found = run_json([*AGENT, "status", "--config", str(config)])["workers"] or []
        return next((w["pid"] for w in found if w["role"] == "active"), 0)

    @contextlib.contextmanager
    def load(self, name: str) -> Iterator[Client]:
        """Ask one device all the while; afterwards `rows` and `errors` tell what came back."""
        stop = threading.Event()
        socket = str(self.fleet.infer_socket(name))
        client = Client(0, socket, "digits", self.digits.held_out, stop)
        client.start()
        try:
            yield client
        finally:
            stop.set()
            client.join(15.0)

    @contextlib.contextmanager
    def broker(self) -> Iterator[Broker]:
        """Connect to the broker as whoever has the fleet manager's rights there can."""
        keys = self.fleet.folder / "fleet" / "online" / "keys"
        pair = any_certificate(keys, f"{MANAGER}-2", self.fleet.folder / "mallory.pem")
        client = Broker(self.fleet.ready["broker"], keys / "device-ca.crt", pair)
        try:
            yield client
        finally:
            client.close()


class Broker:
    """A hostile party with the broker in its hands: reads and writes any topic."""

    def __init__(self, url: str, ca: Path, pair: Path) -> None:
        self.messages: dict[str, bytes] = {}
        self._client = mqtt.Client(*CALLBACKS, client_id="mallory")
        self._client.on_message = lambda _c, _u, m: self.messages.update({m.topic: m.payload})
        address = urlsplit(url)
        self._client.tls_set_context(Tls(ca, pair, pair).context())
        self._client.connect(address.hostname or "127.0.0.1", address.port or 8883)
        self._client.loop_start()

    def desired(self, device: str) -> dict[str, Any]:
        """Return the device's retained desired document."""
        topic = topics.desired(device)
        self._client.subscribe(topic, 1)
        return json.loads(until("the retained document", lambda: self.messages.get(topic)))

    def send(self, device: str, document: dict[str, Any] | bytes) -> None:
        """Publish a desired document in the fleet manager's place; not retained."""
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        self._client.publish(topics.desired(device), body, 1).wait_for_publish(5.0)

    def close(self) -> None:
        """Disconnect."""
        self._client.disconnect()
        self._client.loop_stop()
