"""The commands against a real `edgefleet-cloud serve`, and a device enrolled by the real agent."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from tuf.ngclient import Updater

from edgefleet_provisioning.api import Api
from edgefleet_provisioning.settings import connection
from edgefleet_provisioning.upload import PART_BYTES, upload
from edgefleet_provisioning.variant_build import hash_file
from edgefleet_shared.bundle import BundleFetcher
from edgefleet_shared.package import target_path
from tests.provisioning import bad_models as bad
from tests.provisioning.conftest import Cli
from tests.provisioning.test_publish import arguments, big_model


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A fleet manager in a process of its own; (fleet folder, what its ready file says)."""
    folder = tmp_path_factory.mktemp("real") / "fleet"
    Cli().run(
        "init", folder, "--fleet", "real", "--family", "digits", "--insecure-no-passphrase",
        "--listen", "127.0.0.1:0",
    )  # fmt: skip
    ready = folder / "ready.json"
    argv = [sys.executable, "-m", "edgefleet_cloud", "serve", "--config",
            str(folder / "online" / "cloud.toml"), "--ready-file", str(ready)]  # fmt: skip
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(argv, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 30
        while not ready.exists():
            assert process.poll() is None, (folder / "server.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield folder, json.loads(ready.read_text())
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


@pytest.fixture
def real(server):
    """The `edgefleet` command, connected to it."""
    folder, facts = server
    connected = Cli()
    connected.arguments = ["--fleet", str(folder), "--server", facts["api"]]
    return connected


@pytest.fixture
def client(server):
    """Its API."""
    folder, facts = server
    with Api(connection(facts["api"], None, folder)) as opened:
        yield opened


@pytest.fixture(scope="module")
def enrolled(server, tmp_path_factory):
    """A device that the real agent has enrolled with a real ticket."""
    folder, facts = server
    home = tmp_path_factory.mktemp("cam")
    cli = Cli()
    cli.arguments = ["--fleet", str(folder), "--server", facts["api"]]
    cli.run("device", "enroll", "cam-1", "--label", "site=berlin", "-o", home / "ticket")
    (home / "agent.toml").write_text(f'state_dir = "{home}/state"\nrun_dir = "{home}/run"\n')
    argv = [sys.executable, "-m", "edgefleet_agent", "enroll", "--config",
            str(home / "agent.toml"), "--ticket-file", str(home / "ticket")]  # fmt: skip
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return "cam-1"


def test_what_is_published_is_found_by_a_tuf_client(real, client, server, tmp_path):
    """The server takes the signature, and serves a catalog that the first root vouches for."""
    told = real.json(*arguments(bad.save(bad.good(), tmp_path / "m")))
    assert real.json(*arguments(tmp_path / "m" / "model.onnx"))["already_published"]
    names = client.get("/v1/trust/metadata")["files"]
    files = {n: client.raw(f"/v1/trust/metadata/{n.replace('%', '%25')}") for n in names}
    root = (server[0] / "offline" / "metadata" / "1.root.json").read_bytes()
    cache = tmp_path / "cache"
    cache.mkdir()
    tuf = Updater(str(cache), "https://tuf/", fetcher=BundleFetcher(files), bootstrap=root)
    target = tuf.get_targetinfo(target_path("digits", "1.0.0"))
    assert "sha256:" + target.hashes["sha256"] == told["manifest"]
    target.verify_length_and_hashes(client.raw(f"/v1/blobs/{told['manifest']}"))
    versions = real.json("model", "show", "digits")["versions"]
    assert [version["version"] for version in versions] == ["1.0.0"]
    assert real.json("model", "show", "digits", "1.0.0")["devices"] == []


def test_an_interrupted_upload_goes_on(real, client, tmp_path):
    """A publisher that dies midway finds what the server has, and sends the rest."""
    path = big_model(tmp_path)
    heavy = path.parent / "heavy.bin"
    digest, size = hash_file(heavy)

    class DiedError(Exception):
        pass

    def die(done):
        if done >= PART_BYTES:
            raise DiedError

    with pytest.raises(DiedError):
        upload(client, digest, size, heavy, die)
    told = real.run(*arguments(path, "1.1.0"))
    assert f"heavy.bin: goes on at byte {PART_BYTES} of {size}" in told.stderr
    assert client.raw(f"/v1/blobs/{digest}") == heavy.read_bytes()


def test_the_same_version_with_other_bytes_is_refused(real, tmp_path):
    """The real catalog's entry decides."""
    real.run(*arguments(bad.save(bad.good(), tmp_path / "m"), "1.2.0"))
    other = bad.good()
    other.graph.initializer[0].raw_data = np.zeros(8, np.float32).tobytes()
    failed = real.error(*arguments(bad.save(other, tmp_path / "o"), "1.2.0"))
    assert failed["code"] == "version_taken"


def test_a_second_family_is_delegated_and_published(real, tmp_path):
    """The server verifies two offline signatures, and the new role's first release."""
    real.run("trust", "delegate", "audio")
    path = bad.save(bad.good(), tmp_path / "m")
    real.run("model", "publish", path, "--name", "audio", "--version", "1.0.0")
    roles = {role["role"]: role for role in real.json("trust", "show")}
    assert roles["publisher/audio"]["releases"] == 1


def test_devices_and_groups_live_their_lives(real, enrolled):
    """Enrolled by the agent, labelled, grouped, listed by selector, and one is removed again."""
    assert real.json("device", "show", enrolled)["state"] == "enrolled"
    changed = real.json("device", "label", enrolled, "room=7")
    assert changed["labels"] == {"site": "berlin", "room": "7"}
    assert real.json("device", "label", enrolled, "room-")["labels"] == {"site": "berlin"}
    real.run("group", "create", "berlin", "labels.site == 'berlin'")
    assert real.json("group", "show", "berlin")["devices"] == [enrolled]
    assert [g["name"] for g in real.json("group", "list")] == ["berlin"]
    real.run("group", "set", "berlin", "labels.site == 'oslo'")
    assert real.json("group", "show", "berlin")["devices"] == []
    real.run("group", "rm", "berlin")
    assert real.error("group", "show", "berlin", code=1)["code"] == "not_found"
    real.run("device", "add", "other")
    assert real.error("device", "add", "other", code=1)["code"] == "device_exists"
    real.run("device", "enroll", "other")
    listed = real.json("device", "list", "--selector", "labels.site == 'berlin'")
    assert [device["id"] for device in listed] == [enrolled]
    assert real.error("device", "list", "--selector", "labels.")["code"] == "invalid_filter"
    real.run("device", "rm", "other")
    assert real.json("device", "history", enrolled) == []
    assert real.json("status")["devices"] >= 1
    assert real.json("telemetry")["items"] == []


def test_a_token_is_given_used_and_taken_back(real):
    """Printed once, good within its role and scope, listed without its text, then refused."""
    made = real.json("token", "create", "ci", "--scope", "labels.site == 'x'", "--days", "7")
    assert real.json("whoami", "--token", made["token"]) == {
        "actor": "token/ci",
        "roles": [{"role": "viewer", "scope": 'labels.site == "x"'}],
    }
    assert real.json("device", "list", "--token", made["token"]) == []
    refused = real.error("token", "create", "more", "--token", made["token"], code=1)
    assert refused["code"] == "forbidden"
    listed = {token["name"]: token for token in real.json("token", "list")}
    assert made["token"] not in str(listed)
    assert listed["ci"]["used"]
    assert real.json("token", "revoke", "ci", "--reason", "seen in a log")["revoked"]
    assert real.error("whoami", "--token", made["token"], code=1)["code"] == "unauthenticated"
    assert real.error("token", "create", "ci", code=1)["code"] == "already_exists"
    assert real.error("token", "create", "wide", "--scope", "")["code"] == "invalid_filter"
    assert real.run("token", "create", "plain").stdout.startswith("eft_")


def test_a_rollout_is_made_shown_and_stopped(real, enrolled, tmp_path):
    """To a device that is off: planned, waiting, paused, resumed, stopped; watching says so."""
    real.run(*arguments(bad.save(bad.good(), tmp_path / "m"), "2.0.0"))
    create = ("rollout", "create", "digits", "2.0.0", "--canary", enrolled)
    assert real.json(*create, "--dry-run")["waves"][0]["devices"] == [enrolled]
    assert "canary" in real.run(*create, "--dry-run").stdout
    assert real.json("rollout", "list") == []
    made = real.json(*create, "--probation-s", 1, "--max-failures", 0)
    assert made["state"] == "running"
    for verb, state in (("pause", "paused"), ("resume", "running"), ("stop", "stopped")):
        assert real.json("rollout", verb, made["id"], "--reason", "test")["state"] == state
    assert real.json("rollout", "watch", made["id"], code=1)["state"] == "stopped"
    shown = real.json("rollout", "show", made["id"])
    assert [d["device"] for d in shown["device_deployments"]] == [enrolled]
    assert made["id"] in real.run("rollout", "list").stdout
    assert real.error("rollout", "resume", made["id"], code=1)["code"] == "transition"
    assert "stopped" in real.run("rollout", "show", made["id"]).stdout
    subjects = {event["subject"] for event in _events(real)}
    assert f"rollouts/{made['id']}" in subjects


def _events(real):
    shown = real.run("events", "--json", "--limit", 500).stdout
    return [json.loads(line) for line in shown.splitlines()]


def test_events_are_followed_as_they_happen(real, server):
    """`events --follow` prints what happens after it began, one document a line."""
    argv = [sys.executable, "-m", "edgefleet_provisioning", "events", "--follow", "--json",
            "--limit", "1", *real.arguments]  # fmt: skip
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        first = json.loads(process.stdout.readline())
        real.run("group", "create", "followed", "labels.a == 'b'")
        while (event := json.loads(process.stdout.readline()))["subject"] != "groups/followed":
            assert event["id"] > first["id"]
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
    assert process.returncode == 130


REFUSED = {
    "a model nobody has": ["model", "show", "nothing"],
    "a version nobody has": ["model", "show", "digits", "9.9.9"],
    "a device nobody has": ["device", "show", "nobody"],
    "a label on nobody": ["device", "label", "nobody", "a=b"],
    "a ticket for nobody": ["device", "ticket", "nobody"],
    "a history of nobody": ["device", "history", "nobody"],
    "removing nobody": ["device", "rm", "nobody"],
    "a group nobody has": ["group", "show", "nothing"],
    "removing no group": ["group", "rm", "nothing"],
    "a rollout nobody has": ["rollout", "show", "0199f3a1-6f0e-7cc2-9f5e-0d8f3d9c1a2b"],
    "watching none": ["rollout", "watch", "0199f3a1-6f0e-7cc2-9f5e-0d8f3d9c1a2b"],
    "stopping none": ["rollout", "stop", "nonsense"],
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_there_is_said_so(real, case):
    """One paragraph, code not_found and exit code 1."""
    assert real.error(*REFUSED[case], code=1)["code"] == "not_found"


WRONG = {
    "a selector that is none": ["group", "create", "g", "labels.site = 'x'"],
    "a rollout of no version": ["rollout", "create", "digits", "9.9.9"],
    "a rollout to no group": ["rollout", "create", "digits", "1.0.0", "--group", "nothing"],
    "a rollout to nobody": ["rollout", "create", "digits", "1.0.0", "--device", "nobody"],
    "a filter of events that is none": ["events", "--filter", "((("],
    "a wave of nobody": ["rollout", "create", "digits", "1.0.0", "--wave", "0"],
}


@pytest.mark.parametrize("case", WRONG)
def test_what_the_server_cannot_use_is_one_paragraph(real, case):
    """The server's own words reach the operator, with exit code 1 or 2 and a hint."""
    result = real.run(*WRONG[case], "--json", code=None)
    assert result.exit_code in {1, 2}
    assert json.loads(result.stdout)["error"]["message"]


def test_each_role_can_do_its_work(real, enrolled, tmp_path):
    """Publishing, enrolling, rolling out and watching need no admin; each role does no more."""

    def acting(role, *scope):
        made = real.json("token", "create", f"the-{role}", "--role", role, *scope)
        return lambda *words, **more: real.json(*words, "--token", made["token"], **more)

    publisher = acting("publisher", "--scope", "model == 'digits'")
    provisioner, operator = acting("provisioner"), acting("operator")
    viewer = acting("viewer", "--scope", "labels.site == 'berlin'")
    package = arguments(bad.save(bad.good(), tmp_path / "m"), "3.0.0")
    assert publisher(*package)["version"] == "3.0.0"
    assert provisioner("device", "enroll", "cam-77", "--label", "site=oslo")
    rollout = operator("rollout", "create", "digits", "3.0.0", "--selector", f"id == '{enrolled}'")
    assert operator("rollout", "stop", rollout["id"])["state"] == "stopped"
    assert operator("device", "label", "cam-77", "room=7")["labels"]["room"] == "7"
    assert [d["id"] for d in viewer("device", "list")] == [enrolled]
    assert viewer("rollout", "show", rollout["id"])["state"] == "stopped"
    assert viewer("status")["devices"] == 1
    assert provisioner("device", "rm", "cam-77")
    refused = (
        (publisher, ("device", "list")),
        (provisioner, ("rollout", "stop", rollout["id"])),
        (operator, ("token", "list")),
        (viewer, ("device", "label", enrolled, "room=9")),
    )
    for who, words in refused:
        document = who(*words, code=1)
        assert document["error"]["code"] == "forbidden", words
