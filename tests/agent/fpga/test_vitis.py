"""A model for a DPU where onnxruntime has no VitisAI provider: said, and never run elsewhere."""

from __future__ import annotations

import os

import onnxruntime
import pytest
from msgspec.structs import replace

from edgefleet_agent.accelerators.fpga import vitis
from edgefleet_agent.worker import compose
from edgefleet_shared.package import Fpga
from tests.agent.fpga.ways import bench
from tests.models import linear, package

DPU = Fpga(fingerprint="0x101000056010407")


def test_without_the_provider_the_model_is_refused(tmp_path):
    """This onnxruntime has no such provider; the session is refused and not opened on the CPU."""
    assert "VitisAIExecutionProvider" not in onnxruntime.get_available_providers()
    one = package(tmp_path, linear(), accelerator="fpga")
    spec = replace(one.spec, fpga=DPU)
    files = one.open()
    try:
        with pytest.raises(RuntimeError, match="VitisAIExecutionProvider"):
            compose.runtime("onnxruntime").open(
                spec, files, compose.accelerator("fpga").providers(spec)
            )
    finally:
        for fd in files:
            os.close(fd)


def test_its_options_come_from_the_device_alone(monkeypatch):
    """The configuration's path and a cache bound to the package's digest; nothing without them."""
    assert vitis.environment("", "/cache") == {}
    for name, value in vitis.environment("/etc/vaip.json", "/cache").items():
        monkeypatch.setenv(name, value)
    assert vitis.provider_options("sha256:" + "a" * 64, os.environ) == {
        "config_file": "/etc/vaip.json", "cacheDir": "/cache", "cacheKey": "a" * 64,
    }  # fmt: skip


def test_a_dpu_is_compared_by_its_fingerprint(tmp_path):
    """What is compiled for another DPU is refused; without a bitstream no slot is needed."""
    board = bench(tmp_path, "dfx-mgr")
    spec = replace(package(tmp_path, linear(), accelerator="fpga").spec, fpga=DPU)
    assert "0x101000056010407" in board.region().compatible(spec)
    options = replace(board.options, fingerprint=DPU.fingerprint)
    region = board._replace(options=options).region()
    assert region.compatible(spec) == ""
    assert region.ready(spec)
    assert region.open(region.reserve(spec), spec) == []
