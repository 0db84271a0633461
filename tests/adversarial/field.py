"""A device in the field: real agentd, gateway, worker and broker, and a fleet with real keys.

The owner's side is here (offline keys publish and sign); what a thief of the server has is in
`thief.py`, which sees the online folder alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import paho.mqtt.client as paho

from edgefleet_agent.identity import Enrollment, Identity, TransportInfo, load_or_make_key
from edgefleet_agent.trust.floors import Floors, FloorStore
from edgefleet_cloud.broker.probe import free_port
from edgefleet_cloud.trust import chain, online
from edgefleet_cloud.trust.key_folder import KeyFolder
from edgefleet_provisioning.demo.load import UnixConnection
from edgefleet_shared import dsse, strict_json, topics
from edgefleet_shared.identifiers import new_id, sha256_digest
from edgefleet_shared.messages import BATCH_TYPE, SlotAssignment
from edgefleet_shared.package import Manifest, encode_manifest, publisher_role
from tests.adversarial.thief import Thief
from tests.agent.blob_server import BlobServer
from tests.agent.world import QUICK, a_variant, until
from tests.brokers import CALLBACKS
from tests.fleet_folder import CREATED, FleetFolder
from tests.models import linear

DEVICE = "cam-1"
UNIT = Path(__file__).parents[2] / "images" / "agent" / "edgefleet-agent.service"
UNIT_ENVIRONMENT = dict(re.findall(r"^Environment=(\w+)=(\S*)$", UNIT.read_text(), re.MULTILINE))
"""What systemd gives agentd on a device: without it, malloc keeps what a flood has once taken."""
ONES = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 1, 1, 1]}]}


class Field:
    """One fleet, its broker and one device.

    Attributes:
        fleet: The fleet's folder; `fleet.online` is what the server has.
        thief: Holds the broker, the blob server and everything in `fleet.online`.
        signed: Every digest that a publisher has signed.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ef", dir="/tmp"))
        self.fleet = FleetFolder(self.folder / "fleet", ("digits", "audio"))
        self.blobs: dict[str, bytes] = {}
        self.server = BlobServer(self.blobs)
        self.signed: set[str] = set()
        self.events: list[dict[str, Any]] = []
        self._broker, self._port = self._start_broker()
        self.identity = self._enrolled()
        self._client = self._listen()
        self.thief = Thief(
            self.fleet.online, self.identity.who, self.server, self.blobs, self._client
        )
        self._log = (self.folder / "log").open("ab")
        self.process: subprocess.Popen[bytes] | None = None

    def _start_broker(self) -> tuple[subprocess.Popen[bytes], int]:
        port = free_port()
        config = self.folder / "mosquitto.conf"
        config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n")
        path = shutil.which("mosquitto", path=os.environ["PATH"] + ":/usr/sbin:/usr/local/sbin")
        process = subprocess.Popen([str(path), "-c", str(config)], stderr=subprocess.DEVNULL)
        return process, port

    def _enrolled(self) -> Identity:
        folder = self.folder / "state" / "identity"
        folder.mkdir(parents=True)
        (self.folder / "state" / "trust").mkdir()
        load_or_make_key(folder)
        (folder / "root.json").write_bytes((self.fleet.metadata / "1.root.json").read_bytes())
        FloorStore(self.folder / "state" / "trust").commit(Floors(root=1))
        where = TransportInfo("mqtt", f"mqtt://127.0.0.1:{self._port}")
        told = Enrollment(1, "demo", DEVICE, where, self.server.url)
        (folder / "enrollment.json").write_bytes(strict_json.encode(told))
        return Identity(folder)

    def _listen(self) -> Any:
        client = paho.Client(*CALLBACKS, client_id="mallory")
        client.on_message = self._hear
        until(lambda: _reached(client, self._port), "the broker")
        client.loop_start()
        client.subscribe(topics.all_up(), 1)
        return client

    def _hear(self, _client: Any, _user: Any, message: Any) -> None:
        kind = topics.parse(message.topic)
        if kind is not None and message.topic == topics.stream(DEVICE, "events"):
            key = self.identity.signer.public_key
            body = json.loads(dsse.open_sealed(message.payload, BATCH_TYPE, key))
            self.events += body["items"]

    def publish(self, version: str, scale: float) -> SlotAssignment:
        """Publish a version with the publisher's offline key, and have the server take it in."""
        weights = linear(scale)
        counter = len(self.fleet.current(publisher_role("digits")).signed.targets) + 1
        variant = a_variant(sha256_digest(weights), len(weights))
        manifest = Manifest(1, "digits", version, counter, 0, CREATED, [variant])
        data = encode_manifest(manifest)
        for body in (weights, data):
            self.blobs[sha256_digest(body)] = body
            self.signed.add(sha256_digest(body))
        role = publisher_role("digits")
        number = self.fleet.current(role).signed.version + 1
        (self.fleet.metadata / chain.file_name(role, number)).write_bytes(
            self.fleet.release(manifest, data)
        )
        self._take_in({role: number})
        return SlotAssignment(
            "run", new_id(), "digits", version, sha256_digest(data), len(data), counter,
            policy=QUICK,
        )  # fmt: skip

    def _take_in(self, versions: dict[str, int]) -> None:
        files = {path.name: path.read_bytes() for path in self.fleet.metadata.iterdir()}
        now = chain.read(files)
        keys = KeyFolder(self.fleet.online / "keys").choose(now.root, now.targets)
        made = online.sign_next(now, versions, keys, datetime.now(UTC), snapshot=True)
        for name, data in made.items():
            (self.fleet.metadata / name).write_bytes(data)

    def start(self, *before: str) -> None:
        """Start agentd, perhaps behind another command such as faketime."""
        toml = self.folder / "agent.toml"
        toml.write_text(
            f'state_dir = "{self.folder}/state"\nrun_dir = "{self.folder}/run"\n'
            '[inference]\ntcp = "127.0.0.1:0"\norphan_timeout_s = 20.0\n'
            "[transport]\nbackoff_max_s = 1.0\n[store]\nfetch_stall_s = 2.0\n"
        )
        command = [sys.executable, "-m", "tests.adversarial.spied_agentd", str(toml)]
        self.process = subprocess.Popen(
            [*before, *command, str(self.folder / "opened")],
            stdout=self._log,
            stderr=self._log,
            env={**os.environ, **UNIT_ENVIRONMENT},
            start_new_session=True,
        )

    def stop(self) -> None:
        """End agentd and its gateway."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            self.process.wait(30)

    def forget_cache(self) -> None:
        """Lose the cached metadata, so that one attack does not stand in the next one's way.

        A stolen snapshot key can freeze a device by versions that nobody can serve, until the
        owners replace the key by a new root; then no later forgery would be looked at.
        """
        for path in (self.folder / "state" / "trust" / "metadata").glob("*.json"):
            path.unlink()

    def kill_agentd(self) -> None:
        """Kill agentd alone; the gateway serves on."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def cut(self) -> None:
        """Kill agentd, gateway and workers at once."""
        assert self.process is not None
        pids = [int((self.folder / "run" / "gateway.pid").read_text()), self.process.pid]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def ask(self) -> tuple[str, list[float]]:
        """Return the version that answers and what it says of four ones; '' if none answers."""
        connection = UnixConnection(str(self.folder / "run" / "infer.sock"), 10.0)
        try:
            connection.request("POST", "/v2/models/digits/infer", json.dumps(ONES))
            answer = connection.getresponse()
            body = json.loads(answer.read())
        except OSError:
            return "", []
        finally:
            connection.close()
        if answer.status != 200:
            return "", []
        return body["model_version"], body["outputs"][0]["data"]

    def serves(self, version: str, seconds: float = 40.0) -> None:
        """Wait until a version answers."""
        self.wait(lambda: self.ask()[0] == version, version, seconds)

    def opened(self) -> set[str]:
        """Return every digest whose file agentd has opened."""
        path = self.folder / "opened"
        lines = path.read_text().split() if path.exists() else []
        return {f"sha256:{name}" for name in lines}

    def stored(self) -> set[str]:
        """Return every digest that lies complete in the store."""
        folder = self.folder / "state" / "store" / "blobs" / "sha256"
        return {f"sha256:{path.name}" for path in folder.iterdir()}

    def told(self, code: str, after: int = 0) -> list[dict[str, Any]]:
        """Return the signed events with that code."""
        return [event for event in self.events[after:] if event["code"] == code]

    def wait(self, condition: Any, what: str, seconds: float = 30.0) -> None:
        """Wait until something is true; if it never is, say what the device did instead."""
        try:
            until(condition, what, seconds)
        except AssertionError as error:
            codes = [event["code"] for event in self.events[-10:]]
            raise AssertionError(f"{error}; {codes}; {self.tail()}") from None

    def tail(self) -> str:
        """Return the end of agentd's log."""
        return (self.folder / "log").read_text()[-3000:]

    def close(self) -> None:
        """End everything."""
        self.stop()
        self._client.disconnect()
        self._client.loop_stop()
        self._broker.terminate()
        self._broker.wait()
        self.server.close()
        self._log.close()
        shutil.rmtree(self.folder, ignore_errors=True)


class Asker:
    """Asks the device all the while and remembers every answer."""

    def __init__(self, field: Field) -> None:
        self.answers: set[tuple[str, tuple[float, ...]]] = set()
        self.failed = 0
        self._field, self._over = field, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.is_set():
            version, values = self._field.ask()
            if version:
                self.answers.add((version, tuple(values)))
            else:
                self.failed += 1
            time.sleep(0.02)


def _reached(client: Any, port: int) -> bool:
    try:
        client.connect("127.0.0.1", port)
    except OSError:
        return False
    return True
