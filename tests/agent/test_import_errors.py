"""What `edgefleet-agent import-bundle` says of a stick that is not there, empty, or not ours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgefleet_agent import cli


@pytest.fixture
def bring(tmp_path, capsys):
    """Run the command and return what it says as JSON, with its exit status."""
    config = tmp_path / "agent.toml"
    config.write_text(f'state_dir = "{tmp_path}/state"\nrun_dir = "{tmp_path}/run"\n')

    def run(source):
        status = cli.main(["import-bundle", str(source), "--json", "--config", str(config)])
        return status, json.loads(capsys.readouterr().out)["error"]

    return run


def test_a_stick_that_is_not_mounted(bring, tmp_path):
    """No folder at all, and the empty folder of a mount point: both ask whether it is mounted."""
    (tmp_path / "usb").mkdir()
    for source in (tmp_path / "none", tmp_path / "usb"):
        status, error = bring(source)
        assert (status, error["code"]) == (2, "no_bundle")
        assert str(source) in error["message"]
        assert "mounted" in error["hint"]


def test_an_export_that_was_cut_off(bring, tmp_path):
    """Blobs without a document are told from no stick, and what to do."""
    (tmp_path / "usb" / "blobs" / "sha256").mkdir(parents=True)
    status, error = bring(tmp_path / "usb")
    assert (status, error["code"]) == (2, "no_bundle")
    assert "export-bundle" in error["hint"]


def test_a_stick_that_this_user_may_not_read(bring, tmp_path, monkeypatch):
    """As with one that the desktop mounted for somebody else; root, as here, may read all."""
    (tmp_path / "usb").mkdir()

    def denied(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", denied)
    status, error = bring(tmp_path / "usb")
    assert (status, error["code"]) == (2, "not_readable")
    assert "Permission denied" in error["message"]
