"""The double's Device Provisioning Service, through the unmodified provisioning client."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from azure.iot.device import X509, IoTHubDeviceClient, ProvisioningDeviceClient
from azure.iot.device.exceptions import ClientError, CredentialError
from cryptography.hazmat.primitives.serialization import Encoding

from edgefleet_provisioning.iothub_double.credentials import derived_key
from edgefleet_provisioning.iothub_double.double import AzureDouble
from edgefleet_provisioning.iothub_double.provisioning import Proof
from edgefleet_provisioning.iothub_double.refusals import HubError
from tests.iothub import pki


@pytest.fixture(scope="module")
def double(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AzureDouble]:
    """Run a double with two hubs behind one provisioning service."""
    folder = tmp_path_factory.mktemp("azure")
    with AzureDouble(folder, ("fleet-a", "fleet-b"), websockets=False) as made:
        yield made


@pytest.fixture
def clients() -> Iterator[list[Any]]:
    """Collect SDK clients, and shut them down."""
    made: list[Any] = []
    yield made
    for client in made:
        close(client)


def close(client: Any) -> None:
    """Shut a client down; the provisioning client has no word for it where it has failed."""
    if isinstance(client, IoTHubDeviceClient):
        client.shutdown()
    elif client._pipeline._running:
        done = threading.Event()
        client._pipeline.shutdown(callback=lambda **_: done.set())
        assert done.wait(15)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the client look after its assignment every 50 ms instead of every 2 s."""
    module = "azure.iot.device.provisioning.pipeline.constant.DEFAULT_POLLING_INTERVAL"
    monkeypatch.setattr(module, 0.05)


def by_key(double: AzureDouble, clients: list[Any], registration: str, key: str) -> Any:
    """Register by a symmetric key and return the result."""
    client = ProvisioningDeviceClient.create_from_symmetric_key(
        double.provisioning.host, registration, double.provisioning.id_scope, key,
        server_verification_cert=double.ca_pem,
    )  # fmt: skip
    clients.append(client)
    return client.register()


def by_certificate(double: AzureDouble, clients: list[Any], registration: str, x509: X509) -> Any:
    """Register by a certificate and return the result."""
    client = ProvisioningDeviceClient.create_from_x509_certificate(
        double.provisioning.host, registration, double.provisioning.id_scope, x509,
        server_verification_cert=double.ca_pem,
    )  # fmt: skip
    clients.append(client)
    return client.register()


def test_a_group_key_lets_its_devices_in(double: AzureDouble, clients: list[Any]) -> None:
    """A derived key registers a device and opens its hub; the group's own key does not."""
    service = double.provisioning
    service.enrolments.put(
        "enrollmentGroups", "keys", {"attestation": {"type": "symmetricKey"},
        "initialTwin": {"tags": {"site": "x"}, "properties": {"desired": {"n": 1}}}},
    )  # fmt: skip
    group = service.enrolments.whole("enrollmentGroups", "keys")
    key = derived_key(group["attestation"]["symmetricKey"]["primaryKey"], "line-1")
    result = by_key(double, clients, "line-1", key)
    assert result.status == "assigned"
    assert result.registration_state.device_id == "line-1"
    hub = double.hub(result.registration_state.assigned_hub)
    assert hub.twin("line-1")["tags"] == {"site": "x"}
    client = IoTHubDeviceClient.create_from_symmetric_key(
        key, hub.host, "line-1", server_verification_cert=double.ca_pem
    )
    clients.append(client)
    client.connect()
    assert client.get_twin()["desired"]["n"] == 1
    with pytest.raises(CredentialError):
        by_key(double, clients, "line-2", key)
    service.enrolments.delete("enrollmentGroups", "keys")


def test_a_group_ca_lets_its_devices_in_and_a_renewed_one_comes_again(
    double: AzureDouble, clients: list[Any], tmp_path: Path
) -> None:
    """The hub knows a device by the thumbprint it registered with, so a new one registers again."""
    service = double.provisioning
    root = pki.make("group root", ca=True)
    service.enrolments.trust("root", root.pem)
    x509 = {"caReferences": {"primary": "root"}}
    service.enrolments.put(
        "enrollmentGroups", "certs", {"attestation": {"type": "x509", "x509": x509}}
    )
    first = pki.make("cam-1", root).files(tmp_path)
    result = by_certificate(double, clients, "cam-1", first)
    host = result.registration_state.assigned_hub

    def connect(shown: X509) -> None:
        client = IoTHubDeviceClient.create_from_x509_certificate(
            shown, host, "cam-1", server_verification_cert=double.ca_pem, connection_retry=False
        )
        clients.append(client)
        client.connect()

    connect(first)
    renewed = pki.make("cam-1", root).files(tmp_path)
    with pytest.raises(CredentialError):
        connect(renewed)
    assert by_certificate(double, clients, "cam-1", renewed).registration_state.assigned_hub == host
    connect(renewed)
    with pytest.raises(CredentialError):
        other = pki.make("other root", ca=True)
        by_certificate(double, clients, "cam-1", pki.make("cam-1", other).files(tmp_path))
    service.enrolments.delete("enrollmentGroups", "certs")


def test_an_enrolment_of_one_device(
    double: AzureDouble, clients: list[Any], tmp_path: Path
) -> None:
    """An individual enrolment names the certificate, the device's id and its hub."""
    mine = pki.make("box-7")
    text = mine.certificate.public_bytes(Encoding.PEM).decode()
    double.provisioning.enrolments.put("enrollments", "box-7", {
        "attestation": {
            "type": "x509", "x509": {"clientCertificates": {"primary": {"certificate": text}}}
        },
        "deviceId": "Box7", "allocationPolicy": "static", "iotHubs": [double.hub("fleet-b").host],
    })  # fmt: skip
    result = by_certificate(double, clients, "box-7", mine.files(tmp_path))
    assert result.registration_state.device_id == "Box7"
    assert result.registration_state.assigned_hub == double.hub("fleet-b").host
    assert double.hub("fleet-b").registry.get("Box7").auth == "selfSigned"


def test_a_stranger_gets_401_and_a_busy_service_is_asked_again(
    double: AzureDouble, clients: list[Any]
) -> None:
    """Who is in no enrolment is answered 401; after 429 the client asks again by itself."""
    service = double.provisioning
    with pytest.raises(ClientError) as refused:
        by_key(double, clients, "stranger", "c3RyYW5nZXIgZGFuZ2VyISEhIQ==")
    assert "401" in str(refused.value.__cause__)
    service.enrolments.put("enrollments", "busy", {"attestation": {"type": "symmetricKey"}})
    key = service.enrolments.whole("enrollments", "busy")["attestation"]["symmetricKey"]
    service.busy = 1
    retry = pytest.MonkeyPatch()
    with retry.context() as patched:
        name = "edgefleet_provisioning.iothub_double.dps_peer.RETRY_AFTER_S"
        patched.setattr(name, 0)
        assert by_key(double, clients, "busy", key["secondaryKey"]).status == "assigned"
    assert service.busy == 0


def test_a_disabled_enrolment_lets_nobody_in(double: AzureDouble, clients: list[Any]) -> None:
    """A disabled enrolment refuses with the right key too."""
    kept = double.provisioning.enrolments
    kept.put("enrollments", "shut", {
        "attestation": {"type": "symmetricKey"}, "provisioningStatus": "disabled"
    })  # fmt: skip
    key = kept.whole("enrollments", "shut")["attestation"]["symmetricKey"]["primaryKey"]
    with pytest.raises(CredentialError):
        by_key(double, clients, "shut", key)


@pytest.mark.parametrize("migrate", [True, False])
def test_a_device_moves_when_its_hub_is_unlinked(double: AzureDouble, migrate: bool) -> None:
    """Registering again after its hub is gone moves a device, with or without its twin."""
    service = double.provisioning
    name = f"mover-{migrate}".lower()
    service.enrolments.put("enrollments", name, {
        "attestation": {"type": "symmetricKey"},
        "reprovisionPolicy": {"updateHubAssignment": True, "migrateDeviceData": migrate},
        "initialTwin": {"properties": {"desired": {"first": True}}},
    })  # fmt: skip
    document = service.enrolments.whole("enrollments", name)
    proof = Proof(document, "", {"auth": "sas"})
    service.register(name, proof)
    old = double.hub(service.state(name)["assignedHub"])
    old.patch_twin(name, "", {"properties": {"desired": {"later": True}}})
    service.register(name, proof)
    assert service.state(name)["assignedHub"] == old.host
    service.unlinked.add(old.host)
    try:
        service.register(name, proof)
        state = service.state(name)
        assert state["assignedHub"] != old.host
        assert state["substatus"] == ("deviceDataMigrated" if migrate else "deviceDataReset")
        desired = double.hub(state["assignedHub"]).twin(name)["properties"]["desired"]
        assert desired["first"] is True
        assert ("later" in desired) == migrate
        with pytest.raises(HubError):
            old.registry.get(name)
    finally:
        service.unlinked.clear()


def test_enrolments_have_etags_and_hide_keys(double: AzureDouble) -> None:
    """An enrolment is changed by its etag alone, and its keys are shown to nobody who lists it."""
    kept = double.provisioning.enrolments
    made = kept.put("enrollmentGroups", "g", {"attestation": {"type": "symmetricKey"}})
    assert made["attestation"]["symmetricKey"]["primaryKey"] is None
    keys = kept.whole("enrollmentGroups", "g")["attestation"]
    with pytest.raises(HubError) as refused:
        kept.put("enrollmentGroups", "g", {"attestation": {"type": "symmetricKey"}})
    assert refused.value.status == 409
    kept.put("enrollmentGroups", "g", {**made, "provisioningStatus": "disabled"}, made["etag"])
    assert kept.whole("enrollmentGroups", "g")["attestation"] == keys
    with pytest.raises(HubError) as changed:
        kept.put("enrollmentGroups", "g", made, made["etag"])
    assert changed.value.status == 412
    kept.delete("enrollmentGroups", "g")
    for bad in ({"type": "tpm"}, {"type": "x509"}, {}):
        with pytest.raises(HubError):
            kept.put("enrollmentGroups", "bad", {"attestation": bad})
