"""The agent's systemd unit holds, as systemd itself sees it."""

from __future__ import annotations

import configparser
import shutil
import subprocess
import sys

import pytest

from edgefleet_agent.config import Config
from tests.house.tree import ROOT

UNIT = ROOT / "images/agent/edgefleet-agent.service"
NEEDS_SYSTEMD = pytest.mark.skipif(
    not shutil.which("systemd-analyze"), reason="systemd-analyze is not on PATH"
)


class Unit(configparser.RawConfigParser):
    """A unit file: keys keep their case."""

    optionxform = staticmethod(str)


def service() -> configparser.SectionProxy:
    """Return the unit's [Service] section; of a key that is repeated the last stands."""
    unit = Unit(strict=False)
    unit.read(UNIT)
    return unit["Service"]


def analyze(tmp_path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run systemd-analyze on the unit, whose program is one that exists here."""
    copy = tmp_path / UNIT.name
    text = UNIT.read_text().replace("/opt/edgefleet/bin/edgefleet-agent", sys.executable)
    copy.write_text(text)
    return subprocess.run(
        ["systemd-analyze", *arguments, str(copy)],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


@NEEDS_SYSTEMD
def test_systemd_understands_every_line(tmp_path):
    """`systemd-analyze verify` has nothing to say against the unit."""
    found = analyze(tmp_path, "verify", "--man=no")
    complaints = [line for line in found.stderr.splitlines() if UNIT.name in line]
    assert (found.returncode, complaints) == (0, [])


@NEEDS_SYSTEMD
def test_the_unit_is_hardened(tmp_path):
    """By systemd's own measure the exposure is at most 2.0 of 10."""
    found = analyze(tmp_path, "security", "--offline=yes", "--no-pager", "--threshold=20")
    assert found.returncode == 0, found.stdout[-2000:]


def test_the_gateway_outlives_a_restart():
    """Only the main process is told, by SIGHUP, and the folder of its sockets stays."""
    assert service()["KillMode"] == "process"
    assert service()["RestartKillSignal"] == "SIGHUP"
    assert service()["RuntimeDirectoryPreserve"] == "yes"
    assert service()["OOMPolicy"] == "continue"
    assert service()["Restart"] == "always"


def test_the_folders_are_the_agents_defaults():
    """What systemd makes under /var/lib and /run is where the agent looks."""
    config = Config()
    assert config.state_dir == f"/var/lib/{service()['StateDirectory']}"
    assert config.run_dir == f"/run/{service()['RuntimeDirectory']}"


def test_workers_may_shut_themselves_in():
    """Landlock and seccomp are no part of @system-service: the unit must name their calls."""
    allowed = set(service()["SystemCallFilter"].split())
    needed = {"seccomp", "landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"}
    assert {"@system-service", *needed} <= allowed
