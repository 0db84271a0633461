"""`edgefleet iothub dps-group`: what is told to a DPS, and what is told of it."""

from __future__ import annotations

import stat

import pytest

# The example of Azure's documentation, "How to provision for multitenancy with symmetric keys".
GROUP_KEY = (
    "8isrFI1sGsIlvvFSSFRiMfCNzv21fjbE/+ah/lSh3lF8e2YG1Te7w1KpZhJFFXJrqYKi9yegxkqIChbqOS9Egw=="
)
DEVICE = "sn-007-888-abc-mac-a1-b2-c3-d4-e5-f6"
DEVICE_KEY = "Jsm0lyGpjaVYVP2g3FnmnmG9dI/9qU24wNoykUmermc="


def test_a_devices_key_is_the_one_of_azures_example(cli, tmp_path):
    """It is written for its owner alone, and the group's key shows up nowhere."""
    (tmp_path / "group").write_text(f"{GROUP_KEY}\n")
    out = tmp_path / "device.key"
    shown = cli.run(
        "iothub", "dps-group", "key", "plant", DEVICE,
        "--group-key-file", tmp_path / "group", "-o", out,
    )  # fmt: skip
    assert out.read_text() == f"{DEVICE_KEY}\n"
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert GROUP_KEY[:20] not in shown.stdout + shown.stderr
    assert DEVICE_KEY not in shown.stdout


def test_a_dry_run_shows_what_would_be_sent(cli, fleet):
    """The device CA as PEM, linked hubs, and a tag by which twins of this fleet are found."""
    body = cli.json(
        "iothub", "dps-group", "create", "plant", "--dry-run", "--hub", "a.azure-devices.net",
        "--hub", "b.azure-devices.net", "--allocation", "geoLatency", "--edge", "--fleet", fleet,
    )["body"]  # fmt: skip
    pem = (fleet / "online" / "keys" / "device-ca.crt").read_text()
    assert body["attestation"]["x509"]["signingCertificates"]["primary"]["certificate"] == pem
    assert body["iotHubs"] == ["a.azure-devices.net", "b.azure-devices.net"]
    assert body["allocationPolicy"] == "geoLatency"
    assert body["capabilities"] == {"iotEdge": True}
    assert body["reprovisionPolicy"] == {"updateHubAssignment": True, "migrateDeviceData": True}
    assert body["initialTwin"] == {"tags": {"edgefleet": {"fleet": "test"}}}


STRINGS = {
    "nothing": ("", "lacks HostName"),
    "a device's": ("HostName=h;DeviceId=d;SharedAccessKey=AAAA", "a device's connection string"),
    "no policy": ("HostName=h;SharedAccessKey=AAAA", "lacks SharedAccessKeyName"),
    "a broken key": ("HostName=h;SharedAccessKeyName=p;SharedAccessKey=sEcReT!", "not base64"),
}


@pytest.mark.parametrize("case", STRINGS)
def test_a_connection_string_that_is_none_is_explained_and_not_shown(cli, tmp_path, case):
    """One paragraph says what it lacks, where a right one comes from, and nothing of the key."""
    text, wanted = STRINGS[case]
    (tmp_path / "dps").write_text(text)
    shown = cli.error("iothub", "dps-group", "list", "--connection-file", tmp_path / "dps")
    assert shown["code"] == "connection_string"
    assert wanted in shown["message"]
    assert "az iot dps connection-string show" in shown["hint"]
    assert "sEcReT" not in str(shown)


def test_what_cannot_be_meant_is_refused_before_azure_is_asked(cli, fleet, tmp_path):
    """No DPS, no file, an id that DPS does not take, two ways to prove a device at once."""
    group = ("iothub", "dps-group")
    assert cli.error(*group, "list")["code"] == "no_dps"
    missing = cli.error(*group, "list", "--connection-file", tmp_path / "none")
    assert missing["code"] == "missing_file"
    create = (*group, "create", "--dry-run", "--fleet", fleet)
    assert cli.error(*create, "a b")["code"] == "invalid_name"
    assert cli.error(*create, "g", "--symmetric", "--ca-name", "x")["code"] == "usage"
