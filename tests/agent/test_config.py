"""The agent's configuration: read once, whole, absolute."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgefleet_agent.config import Config, load
from edgefleet_shared.errors import InvalidInputError


def test_without_a_file_the_defaults_hold():
    """No file and no environment: every default, at the places that systemd makes."""
    assert load(None, {}) == Config()


def test_relative_folders_start_at_the_file(tmp_path, monkeypatch):
    """`state_dir` and `run_dir` mean the same from whatever folder the agent is started."""
    file = tmp_path / "agent.toml"
    file.write_text('state_dir = "device/state"\nrun_dir = "run"\n')
    monkeypatch.chdir(tmp_path)
    for path in (file, Path("agent.toml")):
        config = load(path, {})
        assert (config.state, config.run) == (tmp_path / "device/state", tmp_path / "run")


def test_the_environment_wins(tmp_path):
    """EDGEFLEET_AGENT_ variables override the file."""
    file = tmp_path / "agent.toml"
    file.write_text('hardware = "rpi5"\nlog_level = "INFO"\n')
    found = load(file, {"EDGEFLEET_AGENT_HARDWARE": "nano", "EDGEFLEET_AGENT_RUN_DIR": "/r"})
    assert (found.hardware_id, found.run_dir, found.log_level) == ("nano", "/r", "INFO")


@pytest.mark.parametrize(
    "text",
    ["state_dir = 1", "stat_dir = 'x'", "[inference]\ntcp = 8500", "[inference]\nport = 1",
     "= 1", "[store]\nmax_bytes = 1.5"],
)  # fmt: skip
def test_what_does_not_hold_is_refused_with_what_to_do(tmp_path, text):
    """Unknown keys, wrong types and what is not TOML are refused, naming the file."""
    file = tmp_path / "agent.toml"
    file.write_text(text)
    with pytest.raises(InvalidInputError, match=r"agent\.toml") as refused:
        load(file, {})
    assert refused.value.code == "configuration"
    assert "docs/reference.md" in refused.value.hint


@pytest.mark.parametrize(
    "text",
    ["[telemetry]\ninterval_s = 0", "[inference]\nqueue_limit = -5", "[inference]\nthreads = -1",
     "[inference]\ntimeout_s = 0", "[transport]\nkeepalive_s = 65536",
     "[inference]\ntcp = 'nonsense'", "[inference]\ntcp = '0.0.0.0:80'",
     "[inference]\ntcp = '127.0.0.1:65536'", f"run_dir = '{'r' * 120}'"],
)  # fmt: skip
def test_a_value_that_cannot_be_is_refused_at_the_start(tmp_path, text):
    """What would make a loop spin or the gateway end again and again is said at once."""
    file = tmp_path / "agent.toml"
    file.write_text(text)
    with pytest.raises(InvalidInputError) as refused:
        load(file, {})
    assert refused.value.code == "configuration"
    assert refused.value.hint


def test_a_missing_file_is_said(tmp_path):
    """A file that was named and is not there is an error, not the defaults."""
    with pytest.raises(InvalidInputError, match="cannot be read"):
        load(tmp_path / "none.toml", {})
