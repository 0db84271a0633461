"""What the commands of a device say when they cannot: what is missing, and what to do next."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from edgefleet_agent import cli
from edgefleet_agent.client.arrays import as_array, laid_out
from edgefleet_agent.inspection import denied
from edgefleet_agent.status import StatusFile

NEEDS_DEVICE = ["models", "journal", "verify", "lock", "unlock"]


@pytest.fixture
def ask(tmp_path, capsys):
    """Run a command on a machine where nobody has enrolled; return status, JSON and text."""
    config = tmp_path / "agent.toml"
    config.write_text(f'state_dir = "{tmp_path}/state"\nrun_dir = "{tmp_path}/run"\n')

    def run(*words):
        status = cli.main([*words, "--config", str(config), "--json"])
        out, err = capsys.readouterr()
        return status, json.loads(out), err

    return run


@pytest.mark.parametrize("command", NEEDS_DEVICE)
def test_a_left_out_config_is_not_an_empty_device(ask, tmp_path, command):
    """Nothing is shown as none, nothing is locked, no folder is made: there is no device here."""
    status, found, said = ask(command)
    assert (status, found["error"]["code"]) == (2, "not_enrolled")
    assert "--config" in said
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["statu"], "invalid choice: 'statu'"),
        (["status", "--bogus"], "--bogus"),
        (["infer"], "required: model"),
        (["infer", "m", "--count", "x"], "invalid int value: 'x'"),
    ],
)
def test_wrong_arguments_are_an_error_like_any_other(ask, words, said):
    """One line and what to do; with --json an object, as for every other error."""
    status, found, text = ask(*words)
    assert (status, found["error"]["code"]) == (2, "usage")
    assert said in found["error"]["message"]
    assert "--help` tells" in found["error"]["hint"]
    assert len(text.splitlines()) == 1


def test_nobody_answers(ask, tmp_path):
    """Without a gateway `infer` names the socket, and how to start who listens there."""
    status, found, _ = ask("infer", "digits", "--zeros")
    assert (status, found["error"]["code"]) == (1, "not_running")
    assert str(tmp_path / "run" / "infer.sock") in found["error"]["message"]
    assert "no gateway runs there" in found["error"]["message"]
    assert "edgefleet-agent run" in found["error"]["hint"]


def test_a_dead_agentd_is_not_connected(ask, tmp_path, monkeypatch, capsys):
    """What it said last is shown as that; what is not known is neither empty nor up."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (tmp_path / "run").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: ended.pid)
        StatusFile(tmp_path / "run", "boot", "fleet", "cam-1", ("mqtt", "mqtts://b")).write(
            connected=True, counter=3, refused="", floor_lost=False, gateway="up", slots={},
            outbox={},
        )  # fmt: skip
    status, found, _ = ask("status")
    assert status == 1
    assert (found["running"], found["connected"]) == (False, False)
    assert (found["gateway"], found["workers"]) == ("not known", None)
    cli.main(["status", "--config", str(tmp_path / "agent.toml")])
    text = capsys.readouterr().out
    assert "start it again" in text
    assert "workers are not known" in text


def test_who_may_is_named(tmp_path):
    """A refusal of the system names the owner to become; a temporary file by its folder."""
    error = PermissionError(13, "Permission denied", str(tmp_path / ".locked.json.x1y2"))
    told = denied.explain(error)
    assert (told.code, told.message) == ("system", f"{tmp_path}: Permission denied.")
    assert "sudo -u" in told.hint
    assert "state_dir" in denied.explain(OSError(28, "No space left on device", "/x")).hint


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/v2/models/m/config", "/v2/models/NAME"),
        ("/v2/repository/models/m/load", "by the fleet manager"),
        ("/v2/repository/models/m/unload", "by the fleet manager"),
        ("/v2/systemsharedmemory/status", "shared memory"),
        ("/v2/nonsense", "nothing at this path"),
    ],
)
def test_what_triton_has_and_this_has_not(shared_gateway, path, said):
    """The clients of Triton may ask for it: the answer says why not, and what instead."""
    method = "POST" if path.endswith("load") else "GET"
    status, answer, _ = shared_gateway.request(method, path, b"" if method == "POST" else None)
    assert (status, answer["code"]) == (404, "unknown_path")
    assert said in answer["error"]


def test_the_bytes_of_a_file_are_one_element():
    """An application gives what it read; a JPEG that ends in zeros keeps them."""
    datatype, array = laid_out("image", b"\xff\xd8\x00")
    assert (datatype, array.tobytes()) == ("BYTES", b"\x03\x00\x00\x00\xff\xd8\x00")
    assert as_array(b"\xff\xd8\x00").shape == (1,)
    assert as_array(bytearray(b"x"))[0] == b"x"
    assert as_array([1.0]).dtype == np.float64
