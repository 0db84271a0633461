"""Renewal of real devices in a real fleet, while their models answer."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from cryptography import x509

from edgefleet_provisioning.demo.fleet import AGENT
from edgefleet_provisioning.demo.processes import run_json
from tests.e2e.world import World, until, whole_fleet

PATIENCE_S = 90.0
"""Longer than the fleet needs: seconds to notice, ten to ask, ten between two renewals."""
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def world():
    """A fleet of its own, for its authority is replaced: two devices that run digits 1.0.0."""
    with whole_fleet("ef-id-", ("1.0.0", "2.0.0")) as whole:
        yield whole


def certificate(world: World, name: str) -> x509.Certificate:
    """Return the certificate that a device has now."""
    path = world.fleet.folder / name / "state" / "identity" / "device.crt"
    return x509.load_pem_x509_certificate(path.read_bytes())


def device(world: World, name: str) -> dict:
    """Return what the API says of a device."""
    return world.fleet.get(f"/v1/devices/{name}")


def in_sync(world: World, name: str) -> bool:
    """Return whether a device is online and has taken its newest assignment."""
    state = world.fleet.get(f"/v1/devices/{name}/state")
    return state["in_sync"] and device(world, name)["online"]


def agent(world: World, name: str, *arguments: str):
    """Run one command of the agent's; return its JSON."""
    config = world.fleet.folder / name / "agent.toml"
    return run_json([*AGENT, *arguments, "--config", str(config), "--json"])


def refused(world: World, after: int) -> list[dict]:
    """Return the events about refused reports and renewals since one."""
    kinds = {"report.refused", "device.renewal_refused"}
    return [e for e in world.events() if e["id"] > after and e["type"] in kinds]


def test_a_device_renews_while_its_model_answers(world):
    """A new key, certificate and assignment; no request fails and no report is lost."""
    before, since = device(world, "cam-1"), world.last_event()
    with world.load("cam-1") as client:
        answer = agent(world, "cam-1", "renew")
        until("the new assignment", lambda: in_sync(world, "cam-1"))
    after = device(world, "cam-1")
    assert after["key"] != before["key"]
    assert after["counter"] == before["counter"] + 1
    assert answer["serial"] == f"{certificate(world, 'cam-1').serial_number:X}"
    assert client.rows
    assert not client.errors
    assert not refused(world, since)
    until("its event", lambda: any(e["type"] == "device.renewed" for e in world.events()))
    assert world.roll_out("2.0.0")["state"] == "completed"


def test_an_operator_asks_a_device_to_renew(world):
    """The word reaches a device that is online at once, and one that was off when it connects."""
    before = {name: device(world, name)["key"] for name in world.names}
    for name in world.names:
        world.fleet.processes.end(name)
    world.restart_agent("cam-1")
    until("cam-1 online", lambda: in_sync(world, "cam-1"))
    for name in world.names:
        world.fleet.edgefleet("device", "renew", name)
    until("cam-1's new key", lambda: device(world, "cam-1")["key"] != before["cam-1"])
    assert device(world, "cam-2")["key"] == before["cam-2"]
    world.restart_agent("cam-2")
    until("cam-2's new key", lambda: device(world, "cam-2")["key"] != before["cam-2"])
    for name in world.names:
        until(f"{name} in sync", lambda name=name: in_sync(world, name))
        assert world.version(name) == "2.0.0"


def ca(world: World, *arguments: str, fails: bool = False) -> str:
    """Run `edgefleet-cloud ca`; return what it prints, on standard error if it must fail."""
    config = world.fleet.folder / "fleet" / "online" / "cloud.toml"
    done = subprocess.run(
        [sys.executable, "-m", "edgefleet_cloud", "ca", *arguments, "--config", str(config)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode != 0) == fails, done.stderr
    return done.stderr if fails else done.stdout


@pytest.fixture
def token(tmp_path, monkeypatch):
    """A SoftHSM token; returns the address of a key on it that is not there yet."""
    tokens = tmp_path / "tokens"
    tokens.mkdir()
    settings = tmp_path / "softhsm2.conf"
    settings.write_text(f"directories.tokendir = {tokens}\nobjectstore.backend = file\n")
    monkeypatch.setenv("SOFTHSM2_CONF", str(settings))  # the agent inherits it
    subprocess.run(
        ["softhsm2-util", "--init-token", "--free", "--label", "edge", "--pin", "1234",
         "--so-pin", "5678"],
        check=True, capture_output=True,
    )  # fmt: skip
    module = "/usr/lib/softhsm/libsofthsm2.so"
    return f"pkcs11:token=edge;object=cam-3?module-path={module}&pin-value=1234"


@pytest.mark.softhsm2
def test_a_device_whose_key_lies_on_a_token_is_one_of_the_fleet(world, token):
    """It enrols, connects by a key for TLS that the token vouched for, runs a model, and renews."""
    home = world.fleet.folder / "cam-3"
    home.mkdir()
    config = home / "agent.toml"
    text = (world.fleet.folder / "cam-1" / "agent.toml").read_text().replace("cam-1", "cam-3")
    config.write_text(f"{text}\n[identity]\nkey = {json.dumps(token)}\n")
    ticket = home / "ticket.txt"
    world.fleet.edgefleet("device", "enroll", "cam-3", "-o", str(ticket))
    enrolled = agent(world, "cam-3", "enroll", "--ticket-file", str(ticket))
    since = world.last_event()
    world.fleet.processes.start("cam-3", [*AGENT, "run", "--config", str(config)])
    until("cam-3 online", lambda: device(world, "cam-3")["online"])
    told = {e["type"] for e in world.events() if e["id"] > since}
    assert "device.certificate_refused" not in told
    assert world.roll_out("2.0.0")["state"] == "completed"
    assert world.version("cam-3") == "2.0.0"
    identity = home / "state" / "identity"
    first = x509.load_pem_x509_certificate((identity / "tls.crt").read_bytes())
    assert first.subject.rfc4514_string() == "CN=cam-3"
    assert not (identity / "device.key").exists()
    answer = agent(world, "cam-3", "renew")
    assert answer["serial"] != f"{first.serial_number:X}"
    assert device(world, "cam-3")["key"] == enrolled["key"]
    until("cam-3 in sync", lambda: in_sync(world, "cam-3"))
    world.fleet.processes.end("cam-3")
    world.fleet.edgefleet("device", "decommission", "cam-3", "--yes")


def test_the_authority_is_replaced_while_devices_are_online_and_off(world):
    """The drill: those online renew when asked, one that was off comes back over HTTP."""
    before = {name: certificate(world, name).issuer for name in world.names}
    world.fleet.processes.end("cam-2")
    with world.load("cam-1") as client:
        ca(world, "rotate")
        assert "still trusted" in ca(world, "rotate", fails=True)
        until(
            "cam-1's new issuer",
            lambda: certificate(world, "cam-1").issuer != before["cam-1"],
            PATIENCE_S,
        )
        until("cam-1 in sync", lambda: in_sync(world, "cam-1"), PATIENCE_S)
        refusal = ca(world, "retire", fails=True)
        assert "cam-2" in refusal
        assert "cam-1" not in refusal
        ca(world, "retire", "--force")
        assert len(json.loads(ca(world, "list", "--json"))["authorities"]) == 1
        # Until it is told again, it still believes a broker of the old authority.
        path = world.fleet.folder / "cam-1" / "state" / "identity" / "ca.crt"
        until("the old authority gone", lambda: path.read_text().count("BEGIN") == 1, PATIENCE_S)
    assert client.rows
    assert not client.errors
    assert certificate(world, "cam-2").issuer == before["cam-2"]
    world.restart_agent("cam-2")
    until(
        "cam-2's new issuer",
        lambda: certificate(world, "cam-2").issuer != before["cam-2"],
        PATIENCE_S,
    )
    for name in world.names:
        until(f"{name} in sync", lambda name=name: in_sync(world, name), PATIENCE_S)
    world.publish("3.0.0")
    assert world.roll_out("3.0.0")["state"] == "completed"
