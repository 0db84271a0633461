"""LiteRT with an external delegate: a real shared library, loaded by the library's own loader."""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from edgefleet_agent.worker import compose
from tests import tflite_models as light
from tests.faults.power_cut import compiler
from tests.models import package

SOURCE = Path(__file__).with_name("delegate.c")
pytestmark = pytest.mark.skipif(not compiler(), reason="no C compiler makes the delegate here")


@pytest.fixture
def library(tmp_path):
    """A delegate, built."""
    path = tmp_path / "libdelegate.so"
    command = [compiler(), "-O1", "-shared", "-fPIC", "-o", str(path), str(SOURCE)]
    subprocess.run(command, check=True)
    return path


def opened(folder, options):
    """Open the linear model with one delegate."""
    one = package(folder, light.linear(2.0), accelerator="npu")
    files = one.open()
    try:
        return compose.runtime("litert").open(one.spec, files, {"stick": options})
    finally:
        for fd in files:
            os.close(fd)


def test_a_delegate_is_loaded_with_its_options_and_sees_the_graph(library, tmp_path):
    """It is made, prepared and, with the session, destroyed; what it leaves runs on the CPU."""
    session = opened(tmp_path, {"library": str(library), "device": "usb:1"})
    found = ctypes.CDLL(str(library))
    x = np.ones((1, 4), np.float32)
    np.testing.assert_allclose(session.run({"x": x})["y"], [[8, 8]])
    assert (ctypes.c_char * 64).in_dll(found, "device").value == b"usb:1"
    assert ctypes.c_int.in_dll(found, "prepared").value >= 1
    assert session.device_share == -1  # nobody has counted, so nobody claims
    del session
    gc.collect()
    assert ctypes.c_int.in_dll(found, "destroyed").value == 1


def test_a_delegate_that_finds_no_device_is_a_runtime_error(library, tmp_path):
    """Neither its failure nor a missing library is replaced by the CPU in silence."""
    with pytest.raises(RuntimeError, match=r"delegate stick cannot be loaded: .*plugged in"):
        opened(tmp_path, {"library": str(library), "device": "none"})
    with pytest.raises(RuntimeError, match=r"delegate stick cannot be loaded: .*is not there"):
        opened(tmp_path, {"library": str(tmp_path / "gone.so")})
