"""`edgefleet model publish --variants` with a core for an FPGA, then on a board of fakes."""

from __future__ import annotations

import json

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from edgefleet_agent import config
from edgefleet_agent.selftest import command
from edgefleet_provisioning.cli import app
from edgefleet_shared.package import decode_manifest
from tests.fakes.fpga import mlp
from tests.fakes.fpga.kernel import KernelProcess, bitstream
from tests.fakes.fpga.onnx_twin import twin
from tests.fakes.fpga.overlay import overlay
from tests.fakes.fpga.packages import PARENT, python_core

TOML = """
[[variant]]
id = "core"
hardware = ["*"]
accelerator = "fpga"
fallback = "cpu"
golden = "golden.npz"

[variant.fpga]
board = "fake"
parent = "{parent}"

[[variant.fpga.slots]]
bitstream = "core-0.bit.bin"
overlay = "core-0.dtbo"
window = "core0"

[[variant.fpga.slots]]
bitstream = "core-1.bit.bin"
overlay = "core-1.dtbo"
window = "core1"

[variant.fpga.registers]
size = 0x100
id = 0xEDF1
version = 1
build = "{build}"
inputs = [{{tensor = "x", offset = 0x40, bits = 8, fraction = 4}}]
outputs = [{{tensor = "y", offset = 0x80, bits = 22, fraction = 8}}]
"""


@pytest.fixture
def folder(tmp_path):
    """What a publisher has: the model, a core for two slots, and answers to the bit."""
    (tmp_path / "model.onnx").write_bytes(twin(7))
    for n in (0, 1):
        data = bitstream(window=f"core{n}", core=python_core(7))
        (tmp_path / f"core-{n}.bit.bin").write_bytes(data)
        (tmp_path / f"core-{n}.dtbo").write_bytes(overlay(f"core-{n}.bit.bin"))
    x = np.random.default_rng(7).uniform(-9, 9, (2, 1, mlp.INPUTS)).astype(np.float32)
    arrays = {}
    for n, one in enumerate(x):
        arrays |= {f"{n}.input.x": one, f"{n}.output.y": mlp.infer(7, one)}
    np.savez(tmp_path / "golden.npz", **arrays)
    (tmp_path / "variants.toml").write_text(TOML.format(parent=PARENT, build=mlp.build(7)))
    return tmp_path


def publish(folder):
    """Run the command, writing an OCI layout."""
    return CliRunner().invoke(app, [
        "model", "publish", str(folder / "model.onnx"), "--name", "digits", "--version", "1.0.0",
        "--golden", str(folder / "golden.npz"), "--variants", str(folder / "variants.toml"),
        "--output", str(folder / "layout"), "--json",
    ])  # fmt: skip


def test_a_core_is_packaged_and_a_board_proves_it(folder):
    """Files, window and fallback are in the manifest; the selftest programs and asks it."""
    done = publish(folder)
    assert done.exit_code == 0, done.output
    name = json.loads(done.stdout)["manifest"].removeprefix("sha256:")
    manifest = decode_manifest((folder / "layout/blobs/sha256" / name).read_bytes())
    core = next(variant for variant in manifest.variants if variant.id == "core")
    assert core.runtime.name == "registers"
    assert core.fallback == "cpu"
    assert (core.golden.rtol, core.golden.atol) == (0.0, 0.0)
    assert [slot.bitstream for slot in core.fpga.slots] == [
        "core/slot0/core-0.bit.bin", "core/slot1/core-1.bit.bin"]  # fmt: skip
    assert core.inputs[0].shape == [1, mlp.INPUTS]
    kernel = KernelProcess(folder / "fpga")
    try:
        options = kernel.options(strategy="overlay", slots=2, shell=PARENT)
        one = msgspec.convert({"state_dir": str(folder / "state"), "run_dir": str(folder / "run"),
                               "fpga": options}, config.Config)  # fmt: skip
        report = command.run(one, "fpga", folder / "layout")
        row = next(row for row in report.rows if row.part == "fpga")
        assert row.state == "passed", row
        assert row.figures["cases"] == 2
        assert report.passed("fpga")
        assert kernel.windows() == set(), "it is unloaded again"
    finally:
        kernel.close()


@pytest.mark.parametrize(
    ("name", "data", "code"),
    [
        ("core-0.bit.bin", b"\x00\x09\x0f\xf0\x0f\xf0", "fpga_bitstream"),
        ("core-1.dtbo", overlay("another.bin"), "fpga_overlay"),
    ],
)
def test_what_a_device_would_refuse_is_not_published(folder, name, data, code):
    """Headers are looked at before anything is signed."""
    (folder / name).write_bytes(data)
    done = publish(folder)
    assert done.exit_code != 0
    assert not (folder / "layout").exists()
    assert code in done.output + done.stderr


def test_a_file_that_is_not_there_is_named(folder):
    """The publisher reads which file it was."""
    (folder / "core-1.dtbo").unlink()
    done = publish(folder)
    assert done.exit_code != 0
    assert "core-1.dtbo cannot be read" in done.output + done.stderr
