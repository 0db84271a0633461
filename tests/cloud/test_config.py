"""The configuration: one value, from a file and the environment."""

from __future__ import annotations

import pytest

from edgefleet_cloud import config
from edgefleet_cloud.broker.service import BrokerService
from edgefleet_shared.errors import InvalidInputError


@pytest.fixture
def path(tmp_path):
    """A configuration that holds only the fleet's name."""
    path = tmp_path / "online" / "cloud.toml"
    path.parent.mkdir()
    path.write_text('fleet = "demo"\n')
    return path


def test_paths_are_relative_to_the_file(path):
    """Every folder lies beside the file unless it is absolute."""
    found = config.load(path, {"EDGEFLEET_CLOUD_DATA_DIR": "/var/lib/x"})
    assert found.metadata == path.parent / "metadata"
    assert found.keys == path.parent / "keys"
    assert str(found.data) == "/var/lib/x"
    assert found.database == "sqlite:////var/lib/x/fleet.db"


def test_the_environment_wins(path):
    """Variables override the file, typed as the file's keys are, the broker's too."""
    environment = {
        "EDGEFLEET_CLOUD_LISTEN": "0.0.0.0:81",
        "EDGEFLEET_CLOUD_BROKER_PORT": "1884",
        "EDGEFLEET_CLOUD_BROKER_KIND": "amqtt",
        "UNRELATED": "x",
    }
    found = config.load(path, environment)
    assert found.address() == ("0.0.0.0", 81)
    assert (found.broker.port, found.broker.kind) == (1884, "amqtt")


def test_the_public_url_is_the_address_unless_it_is_given(path):
    """Devices are told public_url, without a slash at its end, or else the address itself."""
    assert config.load(path, {}).api_url == "http://127.0.0.1:8080"
    environment = {"EDGEFLEET_CLOUD_PUBLIC_URL": "https://fleet.example/"}
    assert config.load(path, environment).api_url == "https://fleet.example"


def test_an_ipv6_address(path):
    """An IPv6 address stands in brackets."""
    assert config.load(path, {"EDGEFLEET_CLOUD_LISTEN": "[::1]:80"}).address() == ("::1", 80)


def test_broker_files_are_relative_to_the_file_too(path):
    """Certificates of the broker lie beside the file; an empty one stays empty."""
    path.write_text('fleet = "demo"\n[broker]\nca = "ca.pem"\n')
    found = config.load(path, {})
    assert (found.broker.ca, found.broker.cert) == (str(path.parent / "ca.pem"), "")


@pytest.mark.parametrize(
    "text",
    [
        "",
        'fleet = "demo"\nx = 1',
        "fleet = 3",
        'fleet = "demo"\n[controller]\ninterval_s = "often"',
        'fleet = "demo"\npublic_url = "nonsense"',
        'fleet = "demo"\npublic_url = "http://here:99999"',
        'fleet = "demo"\n[broker]\nurl = "mqtt://here:-1"',
        'fleet = "demo"\n[broker]\nurl = "http://here"',
        'fleet = "demo"\n[broker]\nport = 70000',
        'fleet = "demo"\n[broker]\nlisten = "0.0.0.0"',
        'fleet = "demo"\n[broker]\nlisten = "0.0.0.0:0"',
        'fleet = "demo"\n[broker]\nlisten = "0.0.0.0:8883"\ntls = false',
        'fleet = "demo"\n[broker]\ncert = "manager.crt"',
    ],
)
def test_what_does_not_hold(path, text):
    """A missing, unknown or ill-typed key is refused with a hint."""
    path.write_text(text)
    with pytest.raises(InvalidInputError) as caught:
        config.load(path, {})
    assert caught.value.code == "configuration"
    assert caught.value.hint


def test_an_embedded_broker_for_the_network_is_told_by_the_public_host(path):
    """With `listen` devices are told the host of public_url, which its certificate names."""
    path.write_text(
        'fleet = "demo"\npublic_url = "https://Fleet.example.com"\n[broker]\nkind = "amqtt"\n'
        'listen = "0.0.0.0:8883"\n'
    )
    settings = config.load(path, {})
    broker = BrokerService(settings, lambda: None, None, None)
    assert broker.public_url == "mqtts://fleet.example.com:8883"
    assert broker.url == "mqtts://127.0.0.1:8883"
    assert broker.credentials._names == ["127.0.0.1", "localhost", "fleet.example.com"]


def test_a_plain_embedded_broker_stays_on_loopback(path):
    """`tls = false` is mqtt:// on this machine."""
    path.write_text('fleet = "demo"\n[broker]\nkind = "amqtt"\ntls = false\n')
    broker = BrokerService(config.load(path, {}), lambda: None, None, None)
    assert broker.url.startswith("mqtt://127.0.0.1:")
    assert broker.lists is None
