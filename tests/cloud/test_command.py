"""`edgefleet-cloud` as a process: serving, stopping, tokens, and bad configurations."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

import edgefleet_cloud
from edgefleet_cloud.__main__ import main

COMMAND = [sys.executable, "-m", "edgefleet_cloud"]


@pytest.fixture
def run(capsys):
    """Run a command in this process; return what it printed, after its exit code was checked."""

    def call(*arguments, code=0):
        assert main([str(argument) for argument in arguments]) == code
        out, err = capsys.readouterr()
        return out if code == 0 else err

    return call


def _wait_for(path, process, seconds=30):
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return json.loads(path.read_bytes())


def _children(pid):
    listed = Path(f"/proc/{pid}/task").glob("*/children")  # of each thread
    return [int(child) for file in listed for child in file.read_text().split()]


def test_it_serves_and_stops(folder, tmp_path):
    """It says where it is once it answers, and ends with code 0 and no child on SIGTERM."""
    ready_file = tmp_path / "ready.json"
    ready_file.write_text("{}")  # of an earlier run that was killed
    process = subprocess.Popen(
        [*COMMAND, "serve", "--config", str(folder.config), "--ready-file", str(ready_file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 30
        while ready_file.exists() and ready_file.read_text() == "{}":
            assert time.monotonic() < deadline
            time.sleep(0.01)
        ready = _wait_for(ready_file, process)
        assert ready["pid"] == process.pid
        assert re.fullmatch(r"http://127\.0\.0\.1:[1-9][0-9]+", ready["api"])
        assert ready["broker"].startswith("mqtts://127.0.0.1:")
        assert ready["broker_kind"] in {"mosquitto", "amqtt"}
        assert httpx.get(ready["api"] + "/healthz").json() == {"status": "ok"}
        children = _children(process.pid)
        assert children
    finally:
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert f"api: {ready['api']}" in out
    assert "Traceback" not in err
    for child in children:
        assert not Path(f"/proc/{child}").exists()


def test_tokens_at_the_command_line(folder, run):
    """A token is printed once, listed without its secret, and refused after its revocation."""
    config = ("--config", folder.config)
    scope = "labels.site == 'berlin'"
    token = run("token", "create", "ci", "--role", "operator", "--scope", scope, *config).strip()
    assert len(token) > 40
    listed = run("token", "list", *config)
    line = r'^ci\toperator\tcreated .*Z\texpires .*Z\tlabels.site == "berlin"$'
    assert re.search(line, listed, re.MULTILINE)
    assert token not in listed
    assert token.encode() not in (folder.online / "data" / "fleet.db").read_bytes()
    assert "There was a token 'ci' before." in run("token", "create", "ci", *config, code=2)
    run("token", "revoke", "ci", *config)
    assert "revoked 20" in run("token", "list", *config)
    assert "There is no token" in run("token", "revoke", "absent", *config, code=2)
    assert "cannot name a token" in run("token", "create", "C I", *config, code=2)


def test_tokens_as_json(folder, run):
    """Machines get one document, with the token once; only here may it live for ever."""
    config = ("--config", folder.config, "--json")
    made = json.loads(run("token", "create", "ci", "--never", *config))
    assert (made["role"], made["expires"], made["maker"]) == ("viewer", "", "shell")
    assert made["token"].startswith("eft_")
    listed = json.loads(run("token", "list", *config))
    assert [row["name"] for row in listed] == ["ci"]
    assert "token" not in listed[0]
    assert json.loads(run("token", "revoke", "ci", *config))["revoked"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--days", "367"), "1 to 366 days"),
        (("--days", "0"), "1 to 366 days"),
        (("--scope", "online == true"), "no field 'online'"),
        (("--role", "publisher", "--scope", "labels.site == 'x'"), "no field 'labels.site'"),
        (("--scope", "labels.site = 'x'"), "Equality is '=='"),
    ],
)
def test_a_token_that_cannot_be(folder, run, options, says):
    """A scope that is none and a life that is too long are refused in a sentence."""
    assert says in run("token", "create", "ci", *options, "--config", folder.config, code=2)


def test_a_revoked_token_opens_nothing(cloud, run):
    """A token works until it is revoked at the command line, the server running all the while."""
    config = ("--config", cloud.folder.config)
    token = run("token", "create", "ci", *config).strip()
    headers = {"Authorization": f"Bearer {token}"}
    assert cloud.anyone.get("/v1/models", headers=headers).status_code == 200
    run("token", "revoke", "ci", *config)
    assert cloud.anyone.get("/v1/models", headers=headers).status_code == 401


def test_a_new_admin_token_replaces_the_old(cloud):
    """Another text in the token file is the administrator's token from the next start on."""
    old = cloud.token
    cloud.stop()
    (cloud.folder.online / "admin.token").write_text("another-token-of-enough-length\n")
    cloud.start()
    assert cloud.client.get("/v1/models").status_code == 200
    headers = {"Authorization": f"Bearer {old}"}
    assert cloud.anyone.get("/v1/models", headers=headers).status_code == 401


def test_version_and_openapi(run, capsys):
    """The version is the package's; the API's description is JSON and needs no configuration."""
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert (ended.value.code, capsys.readouterr().out.strip()) == (0, edgefleet_cloud.__version__)
    assert json.loads(run("openapi"))["info"]["version"] == edgefleet_cloud.__version__


@pytest.mark.parametrize(
    "arguments", [[], ["dance"], ["token"], ["token", "create"], ["serve", "x"]]
)
def test_bad_usage(capsys, arguments):
    """A command line that cannot be is answered with the usage, and exit code 2."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: edgefleet-cloud" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("fleet = ", "cannot be read"),
        ('fleet = "Not A Name"', "cannot name a fleet"),
        ('listen = "nowhere"', "not HOST:PORT"),
        ('listen = "127.0.0.1:99999"', "not HOST:PORT"),
        ('listen = "203.0.113.1:80"', "cannot listen on 203.0.113.1:80"),
        ("surprise = 1", "surprise"),
        ("[broker]\nkind = 'nanomq'", "nanomq"),
        ('database_url = "nosuch://x"', "database_url cannot be used"),
        ('metadata_dir = "nowhere"', "metadata folder"),
        ('keys_dir = "nowhere"', "online key"),
    ],
)
def test_bad_configurations(folder, run, line, says):
    """Each mistake in cloud.toml is one paragraph that names it, exit code 2, no traceback."""
    key = line.partition(" =")[0]
    kept = [k for k in folder.config.read_text().splitlines() if not k.startswith(f"{key} =")]
    head = kept[: next((i for i, k in enumerate(kept) if k.startswith("[")), len(kept))]
    folder.config.write_text("\n".join([*head, line]) + "\n")
    message = run("serve", "--config", folder.config, code=2)
    assert says in message
    assert message.startswith("edgefleet-cloud: ")
    assert len(message.strip().splitlines()) <= 3, message


def test_a_missing_configuration(tmp_path, run):
    """A path that does not exist is named."""
    message = run("serve", "--config", tmp_path / "absent.toml", code=2)
    assert "absent.toml cannot be read" in message


def test_a_short_admin_token_is_refused(folder, run):
    """A token file that holds no real token stops the start."""
    (folder.online / "admin.token").write_text("short\n")
    assert "holds no token" in run("serve", "--config", folder.config, code=2)


def test_a_taken_port_is_named(folder, run, monkeypatch):
    """If another process listens there, the message says where."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setenv("EDGEFLEET_CLOUD_LISTEN", listen)
        message = run("serve", "--config", folder.config, code=2)
    assert f"cannot listen on {listen}" in message


@pytest.mark.parametrize("data", ["/proc/nowhere", "cloud.toml"])
def test_a_data_folder_that_cannot_be_is_named(run, folder, data):
    """A folder that the system refuses costs one paragraph, not a traceback."""
    config = folder.online / "cloud.toml"
    lines = [line for line in config.read_text().splitlines() if not line.startswith("data_dir")]
    config.write_text("\n".join([f'data_dir = "{data}"', *lines]))
    assert data in run("serve", "--config", config, code=2)
