"""The demo as a command: what an interrupt leaves behind, and what --stop says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

DEMO = [sys.executable, "-m", "edgefleet_provisioning", "demo"]


def ours(folder: Path) -> list[str]:
    """Return the command lines of processes that name a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in text:
            found.append(text)
    return found


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_nothing(tmp_path_factory, how):
    """Neither processes nor folders: the next --keep begins afresh."""
    home = Path("/tmp") / f"ef-demo-{os.getpid()}-{how}"
    home.mkdir()
    try:
        process = subprocess.Popen(
            [*DEMO, "--keep"], cwd=home, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        deadline = time.monotonic() + 60
        while not (home / "edgefleet-demo" / "cam-1" / "run").exists():
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(how)
        said, _ = process.communicate(timeout=30)
        assert process.returncode != 0
        assert "Traceback" not in said
        assert not (home / "edgefleet-demo").exists()
        assert ours(home / "edgefleet-demo") == []
    finally:
        home.rmdir()


def test_there_is_nothing_to_stop(tmp_path):
    """Without a kept demo, --stop says where it looked."""
    done = subprocess.run(
        [*DEMO, "--stop"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "No kept demo" in done.stderr
