"""An embedded broker with mutual TLS, its own authority and database, and clients for it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest

from edgefleet_agent.tls import Tls as AgentTls
from edgefleet_cloud import migrations
from edgefleet_cloud.authority.issuing import DeviceCa
from edgefleet_cloud.authority.service import Certificates
from edgefleet_cloud.broker import mosquitto
from edgefleet_cloud.broker.credentials import Credentials, write_pair
from edgefleet_cloud.broker.disconnect import Disconnections, Parts
from edgefleet_cloud.broker.embedded import EmbeddedBroker, Tls
from edgefleet_cloud.broker.revocations import LIFE, LIST, Places, RevocationLists
from edgefleet_cloud.database import Database
from edgefleet_cloud.devices.tables import ENROLLED, DeviceRow
from edgefleet_cloud.events.feed import EventFeed
from edgefleet_cloud.events.service import EventLog
from edgefleet_cloud.ports import Clock, Transport, system_clock
from edgefleet_cloud.transports.mqtt import MqttSettings, MqttTransport
from edgefleet_provisioning import certificates, keys
from edgefleet_shared.identifiers import MANAGER
from edgefleet_shared.times import format_time

NEEDS_MOSQUITTO = (
    pytest.mark.mosquitto,
    pytest.mark.skipif(not mosquitto.executable(), reason="mosquitto is not installed"),
)
KINDS = ["amqtt", pytest.param("mosquitto", marks=NEEDS_MOSQUITTO)]
# One suite runs on paho-mqtt 1.6.1 too, which has one kind of callbacks and does not ask.
CALLBACKS = [paho.CallbackAPIVersion.VERSION2] if hasattr(paho, "CallbackAPIVersion") else []


def until(true: Callable[[], object], seconds: float = 15) -> Any:
    """Wait for a condition with a deadline; return what came true."""
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline, "did not come true"
        time.sleep(0.02)
    return found


def make_authority(folder: Path, fleet: str = "demo") -> None:
    """Write a new device authority into a keys folder."""
    folder.mkdir(parents=True, exist_ok=True)
    key = keys.generate("device-ca", "device-ca")
    (folder / "device-ca.pem").write_bytes(keys.encode_private(key.signer, None))
    pem = certificates.device_ca(fleet, key.signer, datetime.now(UTC))
    (folder / "device-ca.crt").write_bytes(pem)


def any_certificate(keys_dir: Path, name: str, pair: Path) -> Path:
    """Write a new key and a certificate of this name, as whoever has the authority's key can.

    Args:
        keys_dir: Folder with the authority.
        name: Common name.
        pair: File to write.
    """
    ca = DeviceCa.load(keys_dir)
    write_pair(pair, lambda key: ca.sign_client(key, name, system_clock(), LIFE))
    return pair


class SecureBroker:
    """A broker with mutual TLS in a new folder; not started yet.

    Args:
        kind: mosquitto or amqtt.
        folder: Everything lies below it.
        clock: The authority's time.
    """

    def __init__(self, kind: str, folder: Path, clock: Clock = system_clock, port: int = 0) -> None:
        self.folder, self.keys, self.clock = folder, folder / "keys", clock
        if not self.keys.exists():
            make_authority(self.keys)
        self.ca = partial(DeviceCa.load, self.keys)
        self.database = Database(f"sqlite:///{folder / 'fleet.db'}")
        migrations.upgrade(self.database)
        self.events = EventLog(EventFeed())
        self.credentials = Credentials(self.ca, folder / "broker", ["127.0.0.1"], clock)
        tls = Tls(self.credentials, folder / "broker" / LIST)
        self.broker = EmbeddedBroker(kind, folder / "broker", port, tls=tls)
        places = Places(folder / "broker", None, self.broker.reload)
        self.lists = RevocationLists(self.ca, self.database, self.events, places, clock)

    def start(self) -> None:
        """Write what it needs and start it."""
        self.credentials.renew()
        self.lists.publish()
        self.broker.start()

    def close(self) -> None:
        """End it."""
        self.broker.stop()
        self.database.close()

    @property
    def port(self) -> int:
        """Where it listens, on 127.0.0.1."""
        return self.broker.address.port

    def issue(self, name: str) -> Path:
        """Return a file with a device's new key and certificate, remembered as the server does."""
        with self.database.write() as session:
            if session.get(DeviceRow, name) is None:
                now = format_time(self.clock())
                session.add(DeviceRow(id=name, created=now, hardware="x", state=ENROLLED))
                session.flush()
            authority = Certificates("demo", self.ca(), _Nobody(), self.clock)
            path = self.folder / f"{name}.pem"
            write_pair(path, lambda key: authority.issue(session, name, key))
        return path

    def sign(self, name: str) -> Path:
        """Return a file with a key and a certificate that names anybody, unremembered."""
        path = self.folder / f"{name.replace('/', '_')}-client.pem"
        write_pair(path, lambda key: self.ca().sign_client(key, name, self.clock(), LIFE))
        return path

    def revoke(self, name: str) -> None:
        """Revoke a device's certificates in the database; nobody is told."""
        with self.database.write() as session:
            authority = Certificates("demo", self.ca(), _Nobody(), self.clock)
            authority.revoke_device(session, name, "test")

    def settings(self, pair: Path, **given: Any) -> MqttSettings:
        """Return how the fleet manager's transport connects with a pair."""
        ca = str(self.credentials.authorities)
        mqtt5 = self.broker.kind != "amqtt"
        return MqttSettings(
            self.broker.url, ca=ca, cert=str(pair), key=str(pair), mqtt5=mqtt5, **given
        )

    def manager(self) -> MqttTransport:
        """Return the fleet manager's transport, not started."""
        return MqttTransport(self.settings(self.credentials.manager))

    def agent_tls(self, pair: Path) -> AgentTls:
        """Return how an agent connects with a pair."""
        return AgentTls(self.credentials.authorities, pair, pair)

    def disconnections(self, transport: Transport) -> Disconnections:
        """Return what ends the connections of revoked devices, not started."""
        parts = Parts(
            self.ca,
            self.lists,
            lambda: self.broker.address,
            transport,
            self.database,
            self.events,
        )
        return Disconnections(parts, self.clock)

    @contextmanager
    def client(self, pair: Path, client_id: str = "any", **given: Any) -> Iterator[Client]:
        """Connect a client; it ends with the block."""
        made = Client(self.credentials.authorities, self.port, pair, client_id, **given)
        try:
            yield made
        finally:
            made.close()


class _Nobody:
    def disconnect(self, device_id: str) -> None:
        del device_id


class Client:
    """A paho client with a certificate, and what it saw; MQTT 3.1.1, which both brokers speak."""

    def __init__(
        self,
        ca: Path,
        port: int,
        pair: Path | None,
        client_id: str,
        *,
        will: str = "",
        clean: bool = True,
        connect: bool = True,
    ) -> None:
        self.got: list[tuple[str, bytes]] = []
        self.joined, self.dropped, self.refused = (threading.Event() for _ in range(3))
        self.subscribed = threading.Event()
        self.session_present = False
        self.paho = paho.Client(
            *CALLBACKS, client_id=client_id, clean_session=clean, reconnect_on_failure=False
        )
        if pair is not None:
            self.paho.tls_set_context(AgentTls(ca, pair, pair).context())
        if will:
            self.paho.will_set(will, b"forged", qos=1, retain=True)
        self.paho.on_connect = self._on_connect
        self.paho.on_disconnect = lambda *_: self.dropped.set()
        self.paho.on_subscribe = lambda *_: self.subscribed.set()
        self.paho.on_message = lambda _c, _u, m: self.got.append((m.topic, m.payload))
        try:
            self.paho.connect("127.0.0.1", port)
        except OSError:
            self.dropped.set()
            return
        self.paho.loop_start()
        if connect:
            assert self.joined.wait(10), "was not let in"

    def _on_connect(self, _c: Any, _u: Any, flags: Any, code: Any, *_: Any) -> None:
        refused = code if isinstance(code, int) else code.is_failure
        if refused:
            self.refused.set()
            return
        present = getattr(flags, "session_present", None)
        self.session_present = bool(flags["session present"] if present is None else present)
        self.joined.set()

    @property
    def topics(self) -> list[str]:
        """The topics of what came."""
        return [topic for topic, _payload in self.got]

    def subscribe(self, topic: str) -> None:
        """Subscribe at QoS 1 and wait for the answer, whatever it is."""
        self.subscribed.clear()
        self.paho.subscribe(topic, qos=1)
        self.subscribed.wait(5)

    def publish(self, topic: str, payload: bytes = b"x", *, retain: bool = False) -> None:
        """Publish at QoS 1; wait for the answer or the end of the connection."""
        info = self.paho.publish(topic, payload, qos=1, retain=retain)
        deadline = time.monotonic() + 3
        while not info.is_published() and not self.dropped.is_set():
            assert time.monotonic() < deadline, "neither taken nor refused"
            time.sleep(0.01)

    def out(self, seconds: float = 5.0) -> bool:
        """Return whether it never got in, or is out again, within so many seconds."""
        return self.dropped.wait(seconds) or self.refused.is_set()

    def vanish(self) -> None:
        """End the connection without a word, so that the will is published."""
        sock = self.paho.socket()
        if sock is not None:
            self.paho.loop_stop()
            sock.close()

    def close(self) -> None:
        """Leave, if it has not vanished already."""
        with contextlib.suppress(OSError):
            self.paho.disconnect()
        self.paho.loop_stop()


__all__ = ["CALLBACKS", "KINDS", "MANAGER", "NEEDS_MOSQUITTO", "Client", "SecureBroker", "until"]
