"""A model reaches a device that has never seen a network, on a stick."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgefleet_provisioning import stick
from edgefleet_provisioning.errors import RefusedError
from tests.agent.world import until
from tests.provisioning import bad_models as bad
from tests.provisioning.conftest import Cli
from tests.provisioning.test_publish import arguments

CLOUD, AGENT = "edgefleet_cloud", "edgefleet_agent"


class Plant:
    """A fleet manager that is there for a while, and a device that is not on its network."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.cli = folder, Cli()
        self.fleet, self.device = folder / "fleet", folder / "cam"
        self.device.mkdir()
        self.toml = self.device / "agent.toml"
        self.toml.write_text('state_dir = "state"\nrun_dir = "run"\n[inference]\ntcp = ""\n')
        self.cli.run(
            "init", self.fleet, "--fleet", "plant", "--family", "digits",
            "--insecure-no-passphrase", "--listen", "127.0.0.1:0",
        )  # fmt: skip
        ready = folder / "ready.json"
        config = self.fleet / "online" / "cloud.toml"
        self.cloud = self.start(CLOUD, "serve", "--config", config, "--ready-file", ready)
        until(ready.exists, "the fleet manager", 60)
        self.facts = json.loads(ready.read_text())
        self.cli.arguments = ["--fleet", str(self.fleet), "--server", self.facts["api"]]

    def start(self, module: str, *words: object) -> subprocess.Popen[bytes]:
        """Start a program, its words in a log."""
        with (self.folder / f"{module}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", module, *map(str, words)], stdout=log, stderr=log
            )

    def agent(self, *words: object, code: int = 0) -> str:
        """Run `edgefleet-agent` and return what it prints."""
        argv = [sys.executable, "-m", AGENT, *map(str, words), "--config", str(self.toml)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == code, done.stderr
        return done.stdout

    def status(self) -> dict:
        """Return the slot's report of the running agent, {} while there is none."""
        try:
            return json.loads(self.agent("status", "--json"))["slots"].get("digits", {})
        except AssertionError:
            return {}


@pytest.fixture
def plant(tmp_path):
    """A fleet manager and a device."""
    plant = Plant(tmp_path)
    yield plant
    if plant.cloud.poll() is None:
        plant.cloud.send_signal(signal.SIGTERM)
        plant.cloud.wait(30)


def test_a_model_comes_on_a_stick_and_serves(plant):
    """Published, rolled out, exported; the fleet manager ends; imported, proven and served."""
    plant.cli.run(*arguments(bad.save(bad.good(), plant.folder / "m")))
    plant.cli.run("device", "enroll", "cam-1", "-o", plant.folder / "ticket")
    plant.agent("enroll", "--ticket-file", plant.folder / "ticket")
    (plant.folder / "stick").mkdir()
    refused = plant.cli.error("device", "export-bundle", "cam-1", plant.folder / "x")
    assert refused["code"] == "missing_folder"
    assert not (plant.folder / "x").exists()
    assert plant.cli.error("device", "export-bundle", "cam-1", plant.folder / "stick", code=1)
    plant.cli.run("rollout", "create", "digits", "1.0.0", "--probation-s", "0")
    medium = plant.folder / "stick"
    found = {}
    deadline = time.monotonic() + 30
    while not found and time.monotonic() < deadline:
        answer = plant.cli.run("device", "export-bundle", "cam-1", medium, "--json", code=None)
        found = json.loads(answer.stdout.splitlines()[-1]) if answer.exit_code == 0 else {}
    assert found["versions"] == {"digits": "1.0.0"}
    assert found["blobs"] == len(list((medium / "blobs" / "sha256").iterdir())) >= 2
    again = plant.cli.json("device", "export-bundle", "cam-1", medium)
    assert (again["blobs"], again["bytes"]) == (found["blobs"], found["bytes"])
    plant.cloud.send_signal(signal.SIGTERM)
    assert plant.cloud.wait(30) == 0
    running = plant.start(AGENT, "run", "--config", plant.toml)
    try:
        until((plant.device / "run" / "status.json").exists, "agentd")
        told = json.loads(plant.agent("import-bundle", medium, "--json"))
        assert (told["accepted"], told["running"]) == (True, True)
        until(lambda: plant.status().get("state") == "succeeded", f"{plant.status()}", 40)
        assert plant.status()["active_version"] == "1.0.0"
    finally:
        running.send_signal(signal.SIGTERM)
        running.wait(30)


class FalseApi:
    """A fleet manager that sends other bytes than it names."""

    def stream(self, path: str):
        yield b"other bytes"


def test_bytes_that_do_not_hash_to_their_name_are_not_kept(tmp_path):
    """The stick holds a blob whole and right, or not at all."""
    with pytest.raises(RefusedError) as refused:
        stick._bring(FalseApi(), tmp_path, "sha256:" + "0" * 64)
    assert refused.value.code == "digest_mismatch"
    assert not list(tmp_path.iterdir())
