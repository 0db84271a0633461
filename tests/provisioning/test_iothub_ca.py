"""`edgefleet iothub ca`: the device CA in a hub and a DPS, by Resource Manager, with a login."""

from __future__ import annotations

import json
import os
import sys

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from tests.fakes.resource_manager import DPS, HUB, ResourceManager


@pytest.fixture
def manager(tmp_path, monkeypatch):
    """Resource Manager, and an `az` on PATH that is logged in to it: azure-identity asks that."""
    with ResourceManager() as running:
        answer = {
            "accessToken": running.token, "expiresOn": "2099-01-01 00:00:00.000000",
            "expires_on": 4070908800, "subscription": "s", "tenant": "t", "tokenType": "Bearer",
        }  # fmt: skip
        az = tmp_path / "bin" / "az"
        az.parent.mkdir()
        az.write_text(f"#!{sys.executable}\nprint({json.dumps(json.dumps(answer))})\n")
        az.chmod(0o755)
        monkeypatch.setenv("PATH", f"{az.parent}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "AzureCliCredential")
        monkeypatch.setenv("EDGEFLEET_AZURE_MANAGER", running.url)
        yield running


@pytest.fixture
def keys(fleet):
    """Where the fleet's device CA lies."""
    return fleet / "online" / "keys"


@pytest.mark.parametrize("resource", [HUB, DPS])
def test_the_ca_is_uploaded_and_proved_once(cli, manager, fleet, keys, resource):
    """A hub and a DPS take the proof of possession; doing it again changes nothing."""
    done = cli.json("iothub", "ca", "upload", resource, "--fleet", fleet)
    (kept,) = manager.certificates[resource].values()
    ours = x509.load_pem_x509_certificate((keys / "device-ca.crt").read_bytes())
    assert kept["certificate"] == ours
    assert kept["verified"]
    assert [one["done"] for one in done["certificates"]] == ["uploaded and verified"]
    before = len(manager.asked)
    again = cli.json("iothub", "ca", "upload", resource, "--fleet", fleet)
    assert again["certificates"][0]["done"] == "was there and verified"
    assert [one.split()[0] for one in manager.asked[before:]] == ["GET"]


def test_what_was_uploaded_and_not_proved_is_proved(cli, manager, fleet, keys):
    """An upload that broke off before the proof goes on from there, under the name it has."""
    pem = (keys / "device-ca.crt").read_text()
    cli.json("iothub", "ca", "upload", HUB, "--fleet", fleet)
    kept = manager.certificates[HUB]
    (one,) = kept.values()
    kept.clear()
    kept["by-hand"] = {**one, "name": "by-hand", "verified": False, "code": ""}
    done = cli.json("iothub", "ca", "upload", HUB, "--fleet", fleet)
    assert done["certificates"][0]["name"] == "by-hand"
    assert [(name, c["verified"]) for name, c in kept.items()] == [("by-hand", True)]
    assert pem in (keys / "device-ca.crt").read_text()


def test_both_authorities_of_a_rotation_are_uploaded_and_the_old_one_removed(
    cli, manager, fleet, keys
):
    """Devices show certificates of both until it is over; only the one left behind can go."""
    cli.run("iothub", "ca", "upload", HUB, "--fleet", fleet)
    (old,) = manager.certificates[HUB]
    rotate(keys)
    cli.run("iothub", "ca", "upload", HUB, "--fleet", fleet)
    assert len(manager.certificates[HUB]) == 2
    assert all(one["verified"] for one in manager.certificates[HUB].values())
    listed = cli.json("iothub", "ca", "list", HUB, "--fleet", fleet)
    assert [one["ours"] for one in listed] == [True, True]
    refused = cli.error("iothub", "ca", "remove", HUB, old, "--fleet", fleet)
    assert refused["code"] == "ca_in_use"
    retire_oldest(keys)
    assert cli.json("iothub", "ca", "remove", HUB, old, "--fleet", fleet)["removed"]
    (left,) = cli.json("iothub", "ca", "list", HUB, "--fleet", fleet)
    assert left["ours"]
    assert left["verified"]
    assert cli.error("iothub", "ca", "remove", HUB, old, "--fleet", fleet)["code"] == "not_found"


def rotate(keys):
    """Put a new authority in front of the present one, as the fleet manager's rotation does."""
    key = ec.generate_private_key(ec.SECP256R1())
    first = x509.load_pem_x509_certificate((keys / "device-ca.crt").read_bytes())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "the next device CA")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(first.not_valid_before_utc)
        .not_valid_after(first.not_valid_after_utc)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for path, new in (
        (keys / "device-ca.crt", certificate.public_bytes(Encoding.PEM)),
        (keys / "device-ca.pem", pem),
    ):
        path.write_bytes(new + path.read_bytes())


def retire_oldest(keys):
    """Leave only the newest authority, as the end of a rotation does."""
    newest = x509.load_pem_x509_certificates((keys / "device-ca.crt").read_bytes())[0]
    (keys / "device-ca.crt").write_bytes(newest.public_bytes(Encoding.PEM))


def test_the_proof_by_hand_is_one_that_azure_takes(cli, manager, fleet, keys, tmp_path):
    """`pem` and `prove` write what `az` uploads: the CA, and the code signed by its key."""
    where = ("--fleet", fleet)
    written = cli.json("iothub", "ca", "pem", "-o", tmp_path / "ca.pem", *where)
    assert (tmp_path / "ca.pem").read_text() == (keys / "device-ca.crt").read_text()
    code = "47292AB6260DB02CCD2D07C601B7303DD49858B6"
    proof = tmp_path / "proof.pem"
    cli.run("iothub", "ca", "prove", code, "-o", proof, "--ca", written["ca"], *where)
    signed = x509.load_pem_x509_certificate(proof.read_bytes())
    signed.verify_directly_issued_by(
        x509.load_pem_x509_certificate((tmp_path / "ca.pem").read_bytes())
    )
    assert signed.subject.rfc4514_string() == f"CN={code}"
    ca_key = load_pem_private_key((keys / "device-ca.pem").read_bytes(), None).public_key()
    assert signed.public_key() != ca_key
    assert cli.error("iothub", "ca", "prove", "no code!", "-o", proof, *where)["code"] == "usage"
    missing = cli.error("iothub", "ca", "pem", "--ca", "x", "-o", proof, *where)
    assert missing["code"] == "device_ca"


def test_a_dry_run_asks_nobody_and_names_the_commands_of_az(cli, manager, fleet):
    """Nothing is sent, and what it prints does the same by Azure's own command line."""
    told = cli.json("iothub", "ca", "upload", DPS, "--dry-run", "--fleet", fleet)
    assert manager.asked == []
    text = "\n".join(told["az"])
    for part in (
        "az iot dps certificate create --dps-name plant-dps --resource-group plant",
        "generate-verification-code", "edgefleet iothub ca prove", "certificate verify",
    ):  # fmt: skip
        assert part in text


def test_throttling_is_waited_out_and_a_long_one_is_told(cli, manager, fleet):
    """A few answers 429 are no error; when they do not end, the exit code says unreachable."""
    manager.busy = 2
    assert cli.json("iothub", "ca", "upload", HUB, "--fleet", fleet)["certificates"]
    manager.busy = 100
    assert cli.error("iothub", "ca", "list", HUB, "--fleet", fleet, code=3)["code"] == "azure_429"


def test_a_foreign_resource_id_a_lost_key_and_a_bad_token_are_explained(
    cli, manager, fleet, keys, monkeypatch
):
    """Each is one paragraph with a hint, before or after Azure is asked."""
    wrong = cli.error("iothub", "ca", "upload", "plant-hub", "--fleet", fleet)
    assert "az iot hub show" in wrong["hint"]
    manager.token = "another"
    assert cli.error("iothub", "ca", "list", HUB, "--fleet", fleet, code=1)["code"] == "azure_401"
    monkeypatch.setenv("PATH", "/nonexistent")
    nobody = cli.error("iothub", "ca", "list", HUB, "--fleet", fleet, code=1)
    assert nobody["code"] == "no_azure_login"
    assert "az login" in nobody["hint"]
    monkeypatch.undo()
    (keys / "device-ca.pem").unlink()
    code = cli.error("iothub", "ca", "prove", "ABC", "-o", keys / "p.pem", "--fleet", fleet)["code"]
    assert code == "device_ca"
    (keys / "device-ca.crt").unlink()
    lost = cli.error("iothub", "ca", "list", HUB, "--fleet", fleet)
    assert lost["code"] == "missing_file"
