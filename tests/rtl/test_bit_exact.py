"""The cores in simulation against integers: registers, timing and arithmetic, in every bit."""

from __future__ import annotations

import mmap
import os
import subprocess

import numpy as np
import pytest

from edgefleet_agent.runtimes.registers.session import RegisterSession
from edgefleet_agent.runtimes.registers.window import MappedWindow
from edgefleet_shared import fpga
from tests.fakes.fpga import mlp
from tests.fakes.fpga.packages import CorePackage
from tests.rtl.conftest import SEEDS

pytestmark = [pytest.mark.verilator, pytest.mark.timeout(300)]  # it compiles once


@pytest.fixture(params=range(len(SEEDS)))
def simulated(request, cores, tmp_path):
    """One core's window and its seed."""
    path = tmp_path / "uio0"
    path.write_bytes(bytes(mmap.PAGESIZE))
    core = subprocess.Popen([cores, str(request.param), str(path)], stdout=subprocess.PIPE)
    core.stdout.readline()
    fd = os.open(path, os.O_RDWR)
    yield MappedWindow(fd, mlp.SIZE), SEEDS[request.param]
    os.close(fd)
    core.kill()
    core.communicate()


def test_the_window_says_who_it_is(simulated):
    """ID, VERSION and BUILD are in the hardware, and the core is idle."""
    window, seed = simulated
    assert window.read(fpga.ID) == mlp.CORE_ID
    assert window.read(fpga.VERSION) == 1
    words = window.read_words(fpga.BUILD, fpga.BUILD_WORDS)
    assert "".join(f"{word:08x}" for word in words) == mlp.build(seed)
    assert window.read(fpga.CTRL) == fpga.IDLE


def test_every_bit_agrees_with_the_reference(simulated, tmp_path):
    """Random inputs, the extremes of the range, and each input alone at both of its ends."""
    window, seed = simulated
    session = RegisterSession(window, CorePackage(tmp_path, "a", seed=seed).spec)
    rng = np.random.default_rng(seed)
    low, high = -8.0, 127 / 16
    cases = [
        *rng.uniform(-9, 9, (300, mlp.INPUTS)),
        np.full(mlp.INPUTS, low), np.full(mlp.INPUTS, high), np.zeros(mlp.INPUTS),
        *np.eye(mlp.INPUTS) * low, *np.eye(mlp.INPUTS) * high,
    ]  # fmt: skip
    x = np.array(cases, np.float32)
    found = np.array([session.run({"x": one[None]})["y"][0] for one in x])
    np.testing.assert_array_equal(found, mlp.infer(seed, x))


def test_the_two_cores_are_not_the_same(cores):
    """Two seeds are two pieces of hardware, or a swap between them would show nothing."""
    x = np.ones((1, mlp.INPUTS), np.float32)
    assert cores
    assert not np.array_equal(mlp.infer(SEEDS[0], x), mlp.infer(SEEDS[1], x))
