"""The agent's own transport over mutual TLS: certificates from one CA, none from another."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from edgefleet_agent.transports.mqtt import MqttTransport, Tls
from edgefleet_cloud.broker import mosquitto
from edgefleet_cloud.transports.mqtt import MqttSettings
from edgefleet_shared import topics
from tests.cloud.certificates import Authority
from tests.cloud.mtls import Mtls, running, until

pytestmark = [
    pytest.mark.mosquitto,
    pytest.mark.skipif(not mosquitto.executable(), reason="mosquitto is not installed"),
]


class Heard:
    """What the transport tells."""

    def __init__(self) -> None:
        self.connected = threading.Event()
        self.refused = threading.Event()
        self.why = ""
        self.desired: list[bytes] = []
        self.asked: list[bytes] = []

    def on_connected(self) -> None:
        self.connected.set()

    def on_disconnected(self, reason: str) -> None:
        self.connected.clear()

    def on_refused(self, reason: str) -> None:
        self.why = reason
        self.refused.set()

    def on_desired(self, payload: bytes) -> None:
        self.desired.append(payload)

    def on_renew(self, payload: bytes) -> None:
        self.asked.append(payload)


def transport(settings: MqttSettings) -> MqttTransport:
    """Return the agent's transport for cam-1."""
    tls = Tls(Path(settings.ca), Path(settings.cert), Path(settings.key))
    return MqttTransport(settings.url, "cam-1", "boot-1", "0", tls, 60, 1.0)


@pytest.fixture
def mtls(tmp_path: Path):
    """Run mosquitto with certificates."""
    with running(tmp_path / "broker") as world:
        yield world


def test_an_enrolled_device_is_heard_and_hears(mtls: Mtls):
    """With its certificate it gets its desired document and its presence arrives."""
    heard = Heard()
    agent = transport(mtls.settings("cam-1"))
    with mtls.client(mosquitto.MANAGER) as (manager, got):
        manager.subscribe(topics.all_up(), qos=1)
        manager.publish(topics.desired("cam-1"), b"document", qos=1, retain=True)
        agent.start(heard)
        try:
            until(lambda: heard.desired == [b"document"])
            agent.request_desired(0)
            until(lambda: topics.get("cam-1") in got)
        finally:
            agent.stop()


def test_a_certificate_of_another_authority_opens_nothing(mtls: Mtls, tmp_path: Path):
    """The broker refuses it; the transport says so, and takes the right one once it lies there."""
    (tmp_path / "stranger").mkdir()
    heard, good = Heard(), mtls.settings("cam-1")
    settings = mtls.settings("cam-1", Authority(tmp_path / "stranger"))
    agent = transport(settings)
    agent.start(heard)
    try:
        assert heard.refused.wait(10)
        assert "refuses our certificate" in heard.why
        assert not heard.connected.is_set()
        # Key first, certificate later, as a renewal that power interrupts leaves them.
        Path(settings.key).write_bytes(Path(good.key).read_bytes())
        until(lambda: "cannot be used" in heard.why)
        Path(settings.cert).write_bytes(Path(good.cert).read_bytes())
        agent.renewed()
        assert heard.connected.wait(10)
    finally:
        agent.stop()


# paho leaves a socket whose handshake failed to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_broker_of_another_authority_is_not_believed(mtls: Mtls, tmp_path: Path):
    """It may hold any name; without a certificate of our authorities it learns nothing."""
    (tmp_path / "stranger").mkdir()
    heard = Heard()
    settings = mtls.settings("cam-1")._replace(ca=str(Authority(tmp_path / "stranger").path))
    agent = transport(settings)
    agent.start(heard)
    try:
        assert heard.refused.wait(10)
        assert "certificate verify failed" in heard.why
    finally:
        agent.stop()
