"""`edgefleet iothub dps-group` and `ca` against the double, and devices that come in by them."""

from __future__ import annotations

import json
import os
import sys
from types import SimpleNamespace

import pytest

from edgefleet_cloud.authority.issuing import DeviceCa
from edgefleet_cloud.broker.credentials import write_pair
from edgefleet_cloud.broker.revocations import LIFE
from edgefleet_cloud.ports import system_clock
from edgefleet_provisioning.commands import completion
from tests.contracts.test_agent_transport import Events
from tests.iothub.hub_worlds import DoubleWorld
from tests.provisioning.conftest import Cli
from tests.provisioning.test_iothub_ca import rotate

DEVICE = "cam-1"


@pytest.fixture
def world(tmp_path):
    """A hub with a DPS."""
    with DoubleWorld(tmp_path) as made:
        yield made


@pytest.fixture
def dps(world):
    """`edgefleet iothub dps-group`, connected."""
    made = Cli()
    made.arguments = [
        "--connection-file", str(world.dps.file), "--dps", world.dps.api, "--tls-ca", str(world.ca)
    ]  # fmt: skip
    made.group = ("iothub", "dps-group")
    return made


def connects(world, **options):
    """Start the device's agent; wait until it is connected, and return what it hears."""
    events = Events()
    world.agent(DEVICE, events, **options)
    world.wait(lambda: events.connected, "connected")
    return events


def certificate(world, keys):
    """Return a file with a new key and the certificate that the fleet gives for it."""
    ca, path = DeviceCa.load(keys), world.folder / "device.pem"
    write_pair(path, lambda key: ca.sign_client(key, DEVICE, system_clock(), LIFE))
    return path


def test_a_group_of_the_fleets_ca_lets_its_devices_register(dps, world, fleet):
    """A device with the fleet's certificate is assigned a hub by DPS and connects there."""
    made = dps.json(*dps.group, "create", "plant", "--fleet", fleet)
    assert made["attestation"]["type"] == "x509"
    pair = certificate(world, fleet / "online" / "keys")
    connects(world, url=world.dps.url, pair=pair)
    found = world.rest.device(DEVICE)
    assert found["status"] == "enabled"
    assert world.rest.twin(DEVICE)["tags"] == {"edgefleet": {"fleet": "test"}}


def test_a_rotated_ca_is_sent_by_an_update(dps, world, fleet):
    """Only after `update --ca` does a device with a certificate of the new authority come in."""
    keys = fleet / "online" / "keys"
    dps.run(*dps.group, "create", "plant", "--fleet", fleet)
    rotate(keys)
    pair, events = certificate(world, keys), Events()
    world.agent(DEVICE, events, url=world.dps.url, pair=pair)
    world.wait(lambda: events.refused, "refused")
    changed = dps.json(*dps.group, "update", "plant", "--ca", "--fleet", fleet)
    assert set(changed["attestation"]["x509"]["signingCertificates"]) == {"primary", "secondary"}
    world.wait(lambda: events.connected, "connected")


def test_a_symmetric_group_keeps_its_keys_to_itself(dps, world, tmp_path):
    """A derived key lets a device in; no command shows a key, and an update does not change it."""
    create = dps.run(*dps.group, "create", "plant", "--symmetric", "--hub", world.config.host)
    out = tmp_path / "device.key"
    dps.run(*dps.group, "key", "plant", DEVICE, "-o", out)
    before = out.read_text()
    connects(world, url=world.dps.url, auth="sas", key_file=str(out))
    update = dps.run(*dps.group, "update", "plant", "--allocation", "static")
    dps.run(*dps.group, "key", "plant", DEVICE, "-o", out)
    assert out.read_text() == before
    document = world.double.provisioning.enrolments.whole("enrollmentGroups", "plant")
    secrets = list(document["attestation"]["symmetricKey"].values())
    assert len(secrets) == 2
    seen = [create, update, dps.run(*dps.group, "show", "plant"), dps.run(*dps.group, "list")]
    seen += [dps.run(*dps.group, verb, "plant", "--json") for verb in ("show", "update")]
    for secret in (*secrets, before.strip()):
        assert secret not in "".join(one.stdout + one.stderr for one in seen)


def test_a_group_lives_its_life(dps, world):
    """Made once, changed in what is named, disabled, listed, completed and deleted."""
    dps.run(*dps.group, "create", "plant", "--symmetric")
    assert dps.error(*dps.group, "create", "plant", "--symmetric", code=1)["code"] == "azure_409"
    tried = dps.json(*dps.group, "update", "plant", "--disable", "--dry-run")
    assert tried["body"]["provisioningStatus"] == "disabled"
    assert dps.json(*dps.group, "show", "plant")["provisioningStatus"] == "enabled"
    changed = dps.json(*dps.group, "update", "plant", "--disable", "--reprovision", "never")
    assert changed["provisioningStatus"] == "disabled"
    assert changed["reprovisionPolicy"] == {
        "updateHubAssignment": False,
        "migrateDeviceData": False,
    }
    assert changed["allocationPolicy"] == "hashed"
    assert [one["enrollmentGroupId"] for one in dps.json(*dps.group, "list")] == ["plant"]
    given = {"connection_file": world.dps.file, "dps": world.dps.api, "tls_ca": world.ca}
    assert completion.dps_groups(SimpleNamespace(params=given), "pl") == ["plant"]
    assert completion.dps_groups(SimpleNamespace(params=given), "x") == []
    assert dps.json(*dps.group, "delete", "plant")["deleted"]
    assert dps.error(*dps.group, "show", "plant", code=1)["code"] == "azure_404"
    assert dps.json(*dps.group, "list") == []


def test_what_dps_refuses_is_explained(dps, world, fleet):
    """A group by keys that is to get a CA, and a connection string whose key was regenerated."""
    dps.run(*dps.group, "create", "plant", "--symmetric")
    assert dps.error(*dps.group, "update", "plant", "--ca", "--fleet", fleet)["code"] == "usage"
    text = world.dps.file.read_text()
    world.dps.file.write_text(text.partition("SharedAccessKey=")[0] + "SharedAccessKey=AAAA")
    wrong = dps.error(*dps.group, "list", code=1)
    assert wrong["code"] == "azure_401"
    assert "connection string" in wrong["hint"]


@pytest.fixture
def azure_login(world, tmp_path, monkeypatch):
    """An `az` on PATH that is logged in at the double's issuer, as azure-identity asks it."""
    issuer = world.double.service.issuer
    roles = ("Contributor", "Device Provisioning Service Data Contributor")
    secret = issuer.register("operator", *roles)
    az = tmp_path / "bin" / "az"
    az.parent.mkdir()
    answers = {}
    for audience in ("https://management.azure.com", "https://azure-devices-provisioning.net"):
        where = f"{world.double.service.address}:{world.double.service.rest.port}"
        given = issuer.token("operator", secret, f"{audience}/.default", where)
        answers[audience] = json.dumps(
            {"accessToken": given["access_token"], "expires_on": 4070908800, "tokenType": "Bearer",
             "expiresOn": "2099-01-01 00:00:00.000000"}
        )  # fmt: skip
    az.write_text(
        f"#!{sys.executable}\nimport sys\nanswers = {answers!r}\n"
        "print(next(a for r, a in answers.items() if any(w.startswith(r) for w in sys.argv)))\n"
    )
    az.chmod(0o755)
    monkeypatch.setenv("PATH", f"{az.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "AzureCliCredential")
    return az


@pytest.mark.usefixtures("azure_login")
def test_an_uploaded_ca_lets_the_fleets_devices_into_the_hub(cli, world, fleet):
    """Proof of possession by `edgefleet iothub ca upload` is what a device's certificate needs."""
    world.device(DEVICE, type="certificateAuthority")
    pair, events = certificate(world, fleet / "online" / "keys"), Events()
    world.agent(DEVICE, events, pair=pair)
    world.wait(lambda: events.refused, "refused")
    hub = world.double.hub()
    resource = (
        "/subscriptions/91d12660-3dec-467a-be2a-213b5544ddc0/resourceGroups/plant/providers/"
        f"Microsoft.Devices/IotHubs/{hub.name}"
    )
    done = cli.json(
        "iothub", "ca", "upload", resource, "--fleet", fleet, "--tls-ca", world.ca,
        "--resource-manager", f"https://{world.dps.api}",
    )  # fmt: skip
    assert done["certificates"][0]["done"] == "uploaded and verified"
    world.wait(lambda: events.connected, "connected")


@pytest.mark.usefixtures("azure_login")
def test_a_dps_without_shared_keys_takes_a_login(cli, world):
    """Without a connection string the token of `az login` makes, shows and deletes a group."""
    where = ("--dps", world.dps.api, "--tls-ca", world.ca)
    group = ("iothub", "dps-group")
    assert cli.json(*group, "create", "plant", "--symmetric", *where)["provisioningStatus"]
    assert cli.json(*group, "list", *where)[0]["enrollmentGroupId"] == "plant"
    assert cli.json(*group, "delete", "plant", *where)["deleted"]
