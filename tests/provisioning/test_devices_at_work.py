"""`edgefleet device` against a real server, with devices that the real agent enrols."""

from __future__ import annotations

import csv
import json

import pytest

from edgefleet_agent.cli import main as agent
from tests.cloud.running import RunningCloud
from tests.fakes.speaking_device import SpeakingDevice
from tests.fleet_folder import FleetFolder
from tests.provisioning.conftest import Cli


@pytest.fixture(scope="module")
def cloud(tmp_path_factory):
    """A fleet manager over HTTP, without its broker."""
    running = RunningCloud(FleetFolder(tmp_path_factory.mktemp("work") / "fleet"))
    yield running
    running.stop()


@pytest.fixture
def real(cloud):
    """The `edgefleet` command, connected to it."""
    connected = Cli()
    connected.arguments = ["--server", cloud.url, "--token", cloud.token]
    return connected


def test_a_lock_is_seen_from_afar(cloud, real):
    """`device show` says who locked it, why and until when; the list marks it."""
    lock = {"since": "2026-01-01T00:00:00Z", "by": "anna", "reason": "inspection", "until": ""}
    reported = {"counter": 0, "slots": {}, "locked": lock}
    with cloud.program.database.write() as session:
        session.add(SpeakingDevice("lock-1").row(reported=reported))
    text = "by anna since 2026-01-01T00:00:00Z until unlocked: inspection"
    assert any(text in line for line in real.run("device", "show", "lock-1").stdout.splitlines())
    assert real.json("device", "show", "lock-1")["locked"] == lock
    assert "enrolled, locked" in real.run("device", "list").stdout
    assert real.json("status")["locked"] == ["lock-1"]
    assert any(
        line.split() == ["locked", "lock-1"] for line in real.run("status").stdout.splitlines()
    )


def test_a_list_of_devices_is_imported(real, tmp_path):
    """Checked, then registered; what is taken is told by the line of the file."""
    file = tmp_path / "devices.csv"
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "hardware", "labels"])
        writer.writerows([f"list-{n}", "rpi5", "site=berlin;line=4"] for n in range(300))
    assert real.json("device", "import", file, "--dry-run") == {"devices": 300, "dry_run": True}
    assert real.json("device", "list", "--selector", "hardware == 'rpi5'") == []
    assert "300 devices are registered" in real.run("device", "import", file).stdout
    shown = real.json("device", "show", "list-299")
    assert (shown["hardware"], shown["labels"]) == ("rpi5", {"site": "berlin", "line": "4"})
    again = real.error("device", "import", file)
    assert again["code"] == "bad_csv"
    assert "line 2, column id: There is a device 'list-0' already" in again["message"]


def test_two_devices_enrol_with_one_ticket(real, tmp_path, capsys):
    """One wishes for its id, one takes what it is given; a third comes too late."""
    ticket = tmp_path / "group.txt"
    made = real.json(
        "device", "group-ticket", "pump", "--limit", "2", "--label", "site=oslo", "-o", ticket
    )
    assert "ticket" not in made
    names = []
    for name, wish in (("a", ["--device", "pump-north"]), ("b", [])):
        config = tmp_path / f"{name}.toml"
        config.write_text(f'state_dir = "{tmp_path / name}"\nrun_dir = "{tmp_path / name}-run"\n')
        options = ["--config", str(config), "--ticket-file", str(ticket), *wish, "--json"]
        for _ in range(2):  # once more is once
            assert agent(["enroll", *options]) == 0
            names.append(json.loads(capsys.readouterr().out)["device"])
    assert names[0] == names[1] == "pump-north"
    assert names[2] == names[3]
    assert names[2].startswith("pump-")
    late = tmp_path / "late.toml"
    late.write_text(f'state_dir = "{tmp_path / "late"}"\n')
    assert agent(["enroll", "--config", str(late), "--ticket-file", str(ticket)]) == 2
    assert "limit" in capsys.readouterr().err
    (listed,) = real.json("device", "group-tickets")
    assert listed["used"] == 2
    real.run("device", "end-group-ticket", listed["id"])
    assert real.json("device", "group-tickets")[0]["ended"]


def test_a_device_is_renewed_and_revoked(cloud, real, tmp_path, capsys):
    """`edgefleet-agent renew` gets a new key; revoked, it gets none, and the record says why."""
    config = tmp_path / "agent.toml"
    config.write_text(f'state_dir = "{tmp_path / "state"}"\nrun_dir = "{tmp_path / "run"}"\n')
    ticket = tmp_path / "ticket.txt"
    real.run("device", "enroll", "door-1", "-o", ticket)
    assert agent(["enroll", "--config", str(config), "--ticket-file", str(ticket)]) == 0
    first = real.json("device", "show", "door-1")["key"]
    assert "when it connects next" in real.run("device", "renew", "door-1").stdout
    assert agent(["renew", "--config", str(config)]) == 0
    second = real.json("device", "show", "door-1")["key"]
    assert second != first
    newest, oldest = real.json("device", "show", "door-1")["certificates"]
    assert {newest["key"], oldest["key"]} == {first, second}
    real.run("device", "revoke", "door-1", "--reason", "stolen")
    capsys.readouterr()
    assert agent(["renew", "--config", str(config)]) == 2
    assert "is revoked" in capsys.readouterr().err
    assert real.error("device", "renew", "door-1", code=1)["code"] == "not_enrolled"
    events = cloud.client.get("/v1/events", params={"filter": "type == 'device.revoked'"}).json()[
        "items"
    ]
    assert [event["reason"] for event in events] == ["stolen"]
