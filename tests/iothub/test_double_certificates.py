"""Devices that show who they are by a certificate, through the unmodified SDK."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from azure.iot.device import X509, IoTHubDeviceClient, IoTHubModuleClient
from azure.iot.device.exceptions import CredentialError
from cryptography.hazmat.primitives import hashes

from edgefleet_provisioning.iothub_double.double import AzureDouble
from tests.iothub import pki


@pytest.fixture(scope="module")
def double(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AzureDouble]:
    """Run a double with one hub."""
    with AzureDouble(tmp_path_factory.mktemp("azure"), websockets=False) as made:
        yield made


@pytest.fixture
def clients() -> Iterator[list[Any]]:
    """Collect SDK clients, and shut them down."""
    made: list[Any] = []
    yield made
    for client in made:
        client.shutdown()


def connect(
    double: AzureDouble, clients: list[Any], device: str, shown: X509, module: str = ""
) -> Any:
    """Return a connected client with a certificate."""
    known = {
        "server_verification_cert": double.ca_pem, "connection_retry": False,
        "auto_connect": False, "ensure_desired_properties": False,
    }  # fmt: skip
    host = double.hub().host
    if module:
        client = IoTHubModuleClient.create_from_x509_certificate(
            shown, host, device, module, **known
        )
    else:
        client = IoTHubDeviceClient.create_from_x509_certificate(shown, host, device, **known)
    clients.append(client)
    client.connect()
    return client


@pytest.mark.parametrize("kind", [hashes.SHA1(), hashes.SHA256()], ids=["sha1", "sha256"])
def test_a_thumbprint_lets_in(
    double: AzureDouble, clients: list[Any], tmp_path: Path, kind: hashes.HashAlgorithm
) -> None:
    """A self-signed certificate lets in by its thumbprint; another of its name does not."""
    device = f"own-{kind.name}"
    mine, other = pki.make(device), pki.make(device)
    double.hub().registry.create(
        device, auth="selfSigned", thumbprints=("", mine.thumbprint(kind).lower())
    )
    client = connect(double, clients, device, mine.files(tmp_path))
    client.send_message("by thumbprint")
    (event,) = [e for e in double.hub().log.all()
                if e.annotations.get("iothub-connection-device-id") == device
                and e.body == b"by thumbprint"]  # fmt: skip
    assert json.loads(event.annotations["iothub-connection-auth-method"])["type"] == "x509"
    with pytest.raises(CredentialError):
        connect(double, clients, device, other.files(tmp_path))


def test_an_uploaded_ca_lets_in(double: AzureDouble, clients: list[Any], tmp_path: Path) -> None:
    """A certificate of an uploaded CA lets in, straight or below another CA, renewed or not."""
    hub = double.hub()
    root = pki.make("root", ca=True)
    middle = pki.make("middle", root, ca=True)
    hub.registry.create("signed", auth="certificateAuthority")
    with pytest.raises(CredentialError):
        connect(double, clients, "signed", pki.make("signed", root).files(tmp_path))
    hub.registry.trust(root.pem)
    for pair, chain in [
        (pki.make("signed", root), ()), (pki.make("signed", middle), (middle,))
    ]:  # fmt: skip
        connect(double, clients, "signed", pair.files(tmp_path, *chain))
    with pytest.raises(CredentialError):
        connect(double, clients, "signed", pki.make("signed", middle).files(tmp_path))


def test_a_certificate_is_for_one_name(
    double: AzureDouble, clients: list[Any], tmp_path: Path
) -> None:
    """A certificate of the right CA for another device does not let in, nor does a forged one."""
    hub = double.hub()
    root, forged = pki.make("ca-2", ca=True), pki.make("ca-2", ca=True)
    hub.registry.trust(root.pem)
    hub.registry.create("one", auth="certificateAuthority")
    with pytest.raises(CredentialError):
        connect(double, clients, "one", pki.make("two", root).files(tmp_path))
    with pytest.raises(CredentialError):
        connect(double, clients, "one", pki.make("one", forged).files(tmp_path))
    leaf = pki.make("one", root)
    with pytest.raises(CredentialError):  # a device's certificate signs no other
        connect(double, clients, "one", pki.make("one", leaf).files(tmp_path, leaf))
    connect(double, clients, "one", leaf.files(tmp_path))


def test_a_module_by_certificate(double: AzureDouble, clients: list[Any], tmp_path: Path) -> None:
    """A module's certificate names device and module; the device's own is not enough."""
    hub = double.hub()
    root = pki.make("ca-3", ca=True)
    hub.registry.trust(root.pem)
    hub.registry.create("box", auth="certificateAuthority")
    hub.registry.create("box", "agent", auth="certificateAuthority")
    with pytest.raises(CredentialError):
        connect(double, clients, "box", pki.make("box", root).files(tmp_path), "agent")
    client = connect(double, clients, "box", pki.make("box/agent", root).files(tmp_path), "agent")
    client.patch_twin_reported_properties({"n": 1})


def test_a_certificate_does_not_open_a_device_with_a_key(
    double: AzureDouble, clients: list[Any], tmp_path: Path
) -> None:
    """Who is registered with a key does not get in by a certificate, and the other way round."""
    hub = double.hub()
    root = pki.make("ca-4", ca=True)
    hub.registry.trust(root.pem)
    hub.registry.create("keyed")
    with pytest.raises(CredentialError):
        connect(double, clients, "keyed", pki.make("keyed", root).files(tmp_path))
    text = double.device_string("keyed")
    hub.registry.update("keyed", auth="certificateAuthority")
    client = IoTHubDeviceClient.create_from_connection_string(
        text, server_verification_cert=double.ca_pem, connection_retry=False
    )
    clients.append(client)
    with pytest.raises(CredentialError):
        client.connect()


def test_an_expired_certificate_is_refused(
    double: AzureDouble, clients: list[Any], tmp_path: Path
) -> None:
    """A certificate that does not hold by the hub's clock does not let in."""
    root = pki.make("ca-5", ca=True, days=400)
    double.hub().registry.trust(root.pem)
    double.hub().registry.create("old", auth="certificateAuthority")
    shown = pki.make("old", root).files(tmp_path)
    double.clock.advance(40 * 86400)
    try:
        with pytest.raises(CredentialError):
            connect(double, clients, "old", shown)
    finally:
        double.clock.advance(-40 * 86400)
    connect(double, clients, "old", shown)
