"""The embedded broker, and mosquitto with certificates as images/ ships it."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import paho.mqtt.client as paho
import pytest

from edgefleet_cloud.broker import command, mosquitto
from edgefleet_cloud.broker.embedded import EmbeddedBroker
from edgefleet_cloud.broker.probe import Address, Answer, connect
from edgefleet_cloud.transports.mqtt import MqttSettings, MqttTransport
from edgefleet_shared import topics
from edgefleet_shared.errors import InvalidInputError, UnavailableError
from tests.brokers import CALLBACKS, KINDS, until

IMAGES = Path(__file__).parents[2] / "images" / "mosquitto"
EACH = pytest.mark.parametrize("kind", KINDS)


def accepts(port: int) -> bool:
    """Return whether a broker without TLS takes a CONNECT."""
    return connect(Address("127.0.0.1", port)) is Answer.TAKEN


def alive(pid: int) -> bool:
    """Return whether a process runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie of an init that reaps late is dead for us.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


@EACH
def test_it_answers_once_started_and_is_gone_once_stopped(kind: str, tmp_path: Path) -> None:
    """`start` returns when an MQTT CONNECT is accepted, and says which broker runs where."""
    broker = EmbeddedBroker(kind, tmp_path)
    broker.start()
    port = int(broker.url.rpartition(":")[2])
    assert accepts(port)
    assert str(broker).startswith(f"embedded broker: {kind} ")
    assert f"127.0.0.1:{port}" in str(broker)
    broker.stop()
    assert not accepts(port)


@EACH
def test_devices_find_it_where_it_was(kind: str, tmp_path: Path) -> None:
    """Started anew on the same data, it has the port that devices were told."""
    urls = []
    for _ in range(2):
        broker = EmbeddedBroker(kind, tmp_path)
        broker.start()
        urls.append(broker.url)
        broker.stop()
    assert urls[0] == urls[1]


def test_a_damaged_port_file_is_refused(tmp_path: Path) -> None:
    """A guess would leave every device alone; the operator is asked."""
    (tmp_path / "port").write_text("soon")
    with pytest.raises(UnavailableError, match="does not hold a port"):
        EmbeddedBroker("auto", tmp_path)


@EACH
def test_it_is_started_again_when_it_dies(kind: str, tmp_path: Path) -> None:
    """A killed broker comes back on the same port."""
    broker = EmbeddedBroker(kind, tmp_path)
    broker.start()
    port, first = int(broker.url.rpartition(":")[2]), broker.pid
    assert first
    os.kill(first, signal.SIGKILL)
    until(lambda: broker.pid not in {first, None} and accepts(port))
    broker.stop()


@EACH
def test_it_ends_with_its_parent(kind: str, tmp_path: Path) -> None:
    """A kill -9 of the fleet manager leaves no broker behind."""
    program = (
        "import sys, time; from pathlib import Path\n"
        "from edgefleet_cloud.broker.embedded import EmbeddedBroker\n"
        "broker = EmbeddedBroker(sys.argv[1], Path(sys.argv[2])); broker.start()\n"
        "print(broker.pid, flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, kind, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout
        child = int(parent.stdout.readline())
        assert alive(child)
        parent.kill()
    until(lambda: not alive(child))


def test_a_taken_port_is_reported_with_what_the_broker_said(tmp_path: Path) -> None:
    """The message carries the broker's own last words."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        broker = EmbeddedBroker("amqtt", tmp_path, taken.getsockname()[1])
        with pytest.raises(UnavailableError, match="address already in use"):
            broker.start()


@pytest.mark.mosquitto
@pytest.mark.skipif(not mosquitto.executable(), reason="mosquitto is not installed")
def test_auto_prefers_mosquitto(tmp_path: Path) -> None:
    """Where both are installed the faster one is taken."""
    assert EmbeddedBroker("auto", tmp_path).kind == "mosquitto"


@pytest.mark.mosquitto
@pytest.mark.skipif(not mosquitto.executable(), reason="mosquitto is not installed")
def test_retained_documents_outlive_a_clean_restart(tmp_path: Path) -> None:
    """Persistence lies in the broker's folder, whoever the broker runs as."""
    broker = EmbeddedBroker("mosquitto", tmp_path)
    broker.start()
    transport = MqttTransport(MqttSettings(broker.url))
    transport.start(lambda _topic, _payload: None)
    transport.publish(topics.desired("cam-1"), b"kept", retain=True).result(10)
    transport.stop()
    broker.stop()
    again = EmbeddedBroker("mosquitto", tmp_path)
    again.start()
    got: list[bytes] = []
    client = paho.Client(*CALLBACKS)
    client.on_message = lambda _c, _d, message: got.append(message.payload)
    client.connect("127.0.0.1", int(again.url.rpartition(":")[2]))
    client.loop_start()
    client.subscribe(topics.desired("cam-1"), qos=1)
    until(lambda: got == [b"kept"])
    client.disconnect()
    client.loop_stop()
    again.stop()


def test_the_shipped_configuration_is_what_the_command_prints() -> None:
    """images/mosquitto holds the generator's output, byte for byte."""
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    for name, options in (("mosquitto.conf", ["--mtls"]), ("acl.txt", ["--mtls", "--acl"])):
        printed = command.text(parser.parse_args(["--kind", "mosquitto", *options]))
        assert (IMAGES / name).read_text() == printed


@pytest.mark.parametrize("options", [["--port", "70000"], ["--managers", "0"]])
def test_options_without_sense_are_refused(options: list[str]) -> None:
    """A number out of range is named."""
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    with pytest.raises(InvalidInputError, match=options[1]):
        command.text(parser.parse_args(options))
