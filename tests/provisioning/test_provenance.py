"""`edgefleet model publish` vouches for files by OpenSSF Model Signing; its verifier agrees."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from tests.cloud.running import RunningCloud
from tests.fleet_folder import FleetFolder
from tests.provisioning import bad_models as bad
from tests.provisioning.conftest import Cli
from tests.provisioning.test_publish import arguments

# Isolated: its 33 packages are no part of the workspace.
OFFICIAL = (
    "uv", "run", "--isolated", "--no-project", "--with", "model-signing==1.1.1",
    "--with", "pyopenssl", "model_signing",
)  # fmt: skip


@pytest.fixture(scope="module")
def official():
    """The official command line; skipped, by name, where it cannot be installed."""
    if shutil.which("uv") is None:
        pytest.skip("uv is not on PATH, so the official verifier cannot be run apart from us")
    tried = subprocess.run([*OFFICIAL, "--version"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"model-signing 1.1.1 cannot be installed here: {tried.stderr[-200:]}")

    def run(*options: object) -> subprocess.CompletedProcess[str]:
        argv = [*OFFICIAL, *map(str, options)]
        return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=100)

    return run


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The command line of a fleet where digits 1.0.0 is published."""
    home = tmp_path_factory.mktemp("provenance")
    folder = FleetFolder(home / "fleet")
    cloud = RunningCloud(folder)
    cli = Cli()
    cli.arguments = ["--fleet", str(folder.path), "--server", cloud.url]
    told = cli.json(*arguments(bad.save(bad.good(), home / "m")), "--license", "Apache-2.0")
    assert told["provenance"]
    yield cli
    cloud.stop()


def test_the_official_verifier_accepts_what_was_published(published, official, tmp_path):
    """model-signing 1.1.1 verifies the download, and refuses it after one byte has changed."""
    told = published.json("model", "provenance", "digits", "1.0.0", "-o", tmp_path / "p")
    assert {file["name"] for file in told["files"]} >= {"manifest.json", "model.onnx"}
    verify = (
        "verify", "key", tmp_path / "p/package", "--signature", tmp_path / "p/model.sig",
        "--public_key", tmp_path / "p/publisher.pem",
    )  # fmt: skip
    accepted = official(*verify)
    assert accepted.returncode == 0, accepted.stderr
    assert "Verification succeeded" in accepted.stdout + accepted.stderr
    path = tmp_path / "p/package/model.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    refused = official(*verify)
    assert refused.returncode != 0
    path.unlink()
    assert official(*verify).returncode != 0


def test_the_proof_is_checked_before_it_is_shown(published, tmp_path):
    """Bundle, catalog and files must agree; the answer names key and files."""
    shown = published.run("model", "provenance", "digits", "1.0.0").stdout
    assert "The publisher's key" in shown
    published.run("model", "provenance", "digits", "1.0.0", "-o", tmp_path / "q", "--no-files")
    assert sorted(p.name for p in (tmp_path / "q").iterdir()) == ["model.sig", "publisher.pem"]
    error = published.error("model", "provenance", "digits", "9.9.9", code=1)
    assert error["code"] == "not_found"
