"""`edgefleet demo` that does not come to its end: interrupted, killed, stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from sklearn.neural_network import MLPClassifier

from edgefleet_provisioning.demo.digits import build
from edgefleet_provisioning.demo.processes import is_running

DEMO = [sys.executable, "-m", "edgefleet_provisioning", "demo"]


@pytest.fixture
def home():
    """A folder with a short path, since Unix sockets lie below it."""
    folder = Path(tempfile.mkdtemp(prefix="ef", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


def begin(home, *options):
    """Start `demo --keep` and wait until the fleet manager runs; return it and the pids."""
    process = subprocess.Popen(
        [*DEMO, "--keep", *options], cwd=home, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    pids = home / "edgefleet-demo" / "pids.json"
    deadline = time.monotonic() + 100
    while not pids.exists() or "cloud" not in pids.read_text():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process, json.loads(pids.read_text()).values()


def stop(home):
    """Run `demo --stop`."""
    return subprocess.run(
        [*DEMO, "--stop"], cwd=home, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("transport", ["mqtt", "iothub"])
def test_an_interrupted_demo_leaves_nothing(home, transport):
    """Ctrl-C ends every process, the hub's too, and removes the folder, also with --keep."""
    process, pids = begin(home, "--transport", transport)
    assert len(pids) == {"mqtt": 1, "iothub": 2}[transport]
    process.send_signal(signal.SIGINT)
    assert process.wait(60) != 0
    assert not any(is_running(pid, home) for pid in pids)
    assert list(home.iterdir()) == []


def test_a_killed_demo_can_be_stopped(home):
    """What `kill -9` left running is ended by --stop, and its folder is removed."""
    process, pids = begin(home)
    process.kill()
    process.wait()
    assert any(is_running(pid, home) for pid in pids)
    ended = stop(home)
    assert ended.returncode == 0, ended.stderr
    assert not any(is_running(pid, home) for pid in pids)
    assert list(home.iterdir()) == []


def test_stop_leaves_a_folder_of_somebody_else_alone(home):
    """Only what a demo made is removed."""
    (home / "edgefleet-demo").mkdir()
    (home / "edgefleet-demo" / "thesis.txt").write_text("x")
    ended = stop(home)
    assert ended.returncode == 2
    assert "No kept demo" in ended.stderr
    assert (home / "edgefleet-demo" / "thesis.txt").exists()


def test_ctrl_c_during_training_is_not_swallowed(tmp_path, monkeypatch):
    """scikit-learn takes it for the wish for a model that is half trained."""
    fit = MLPClassifier.fit

    def interrupted(model, *data):
        timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        try:
            return fit(model, *data)
        finally:
            timer.cancel()

    monkeypatch.setattr(MLPClassifier, "fit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path)
