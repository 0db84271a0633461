"""mosquitto as images/ configures it, with the certificates of a test authority."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import paho.mqtt.client as paho

from edgefleet_cloud.broker import mosquitto
from edgefleet_cloud.broker.mosquitto import MtlsPaths
from edgefleet_cloud.broker.probe import free_port
from edgefleet_cloud.transports.mqtt import MqttSettings
from tests.cloud.certificates import Authority


def until(true: Callable[[], object], seconds: float = 15) -> None:
    """Wait for a condition, with a deadline."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "did not come true"
        time.sleep(0.02)


class Mtls:
    """mosquitto with mutual TLS on loopback, and clients known by their certificates."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port = folder, port
        self.authority = Authority(folder)

    def listening(self) -> bool:
        with socket.socket() as link:
            return link.connect_ex(("127.0.0.1", self.port)) == 0

    def settings(self, name: str, authority: Authority | None = None) -> MqttSettings:
        cert, key = (authority or self.authority).issue(name)
        url = f"mqtts://127.0.0.1:{self.port}"
        return MqttSettings(url, ca=str(self.authority.path), cert=str(cert), key=str(key))

    @contextmanager
    def client(self, name: str, client_id: str = "") -> Iterator[tuple[paho.Client, list[str]]]:
        settings = self.settings(name)
        client = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id=client_id or name)
        client.tls_set(settings.ca, settings.cert, settings.key)
        got: list[str] = []
        joined = threading.Event()
        client.on_connect = lambda *_: joined.set()
        client.on_message = lambda _c, _d, message: got.append(message.topic)
        client.connect("127.0.0.1", self.port)
        client.loop_start()
        assert joined.wait(10)
        try:
            yield client, got
        finally:
            client.disconnect()
            client.loop_stop()


@contextmanager
def running(folder: Path) -> Iterator[Mtls]:
    """Run the broker in a new folder."""
    folder.mkdir()
    world = Mtls(folder, free_port())
    cert, key = world.authority.issue("localhost")
    paths = MtlsPaths(
        str(world.authority.path), str(cert), str(key), "", str(folder / "acl.txt"), str(folder)
    )
    # Run as ourselves: the private key is ours to read.
    user = "user root\n" if os.geteuid() == 0 else ""
    (folder / "acl.txt").write_text(mosquitto.acl())
    (folder / "mosquitto.conf").write_text(user + mosquitto.mtls_config(paths, world.port))
    log = (folder / "log").open("wb")
    path = mosquitto.executable()
    assert path
    child = subprocess.Popen([path, "-c", str(folder / "mosquitto.conf")], stderr=log)
    try:
        until(world.listening)
        yield world
    finally:
        child.terminate()
        child.wait(10)
        log.close()
