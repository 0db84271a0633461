"""FPGA variants of the test network, for every way of programming."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
from msgspec.structs import replace

from edgefleet_agent.ipc.control import ModelSpec
from edgefleet_shared.identifiers import sha256_digest
from edgefleet_shared.package import (
    FileEntry,
    Fpga,
    Golden,
    Limits,
    Port,
    Registers,
    SlotFiles,
    TensorSpec,
)
from tests.fakes.fpga import mlp
from tests.fakes.fpga.kernel import bitstream
from tests.fakes.fpga.overlay import overlay

PARENT = "c0ffee00" * 4
X = TensorSpec("x", "FP32", [1, mlp.INPUTS])
Y = TensorSpec("y", "FP32", [1, mlp.OUTPUTS])


def python_core(seed: int, version: int = 1) -> list[str]:
    """Return the command of a core in Python."""
    return [sys.executable, "-m", "tests.fakes.fpga.core", str(seed), str(version)]


def registers(seed: int, version: int = 1, timeout_ms: int = 5000) -> Registers:
    """Return what a package says of the core's window."""
    return Registers(
        mlp.SIZE, mlp.CORE_ID, version,
        [Port("x", mlp.OFFSET_IN, mlp.IN_BITS, mlp.IN_FRACTION)],
        [Port("y", mlp.OFFSET_OUT, mlp.OUT_BITS, mlp.OUT_FRACTION)],
        mlp.build(seed), timeout_ms,
    )  # fmt: skip


def files_of(
    name: str, core: list[str] | None, slots: int
) -> tuple[dict[str, tuple[bytes, str]], list[SlotFiles]]:
    """Return files by path with their roles, and what each slot takes, one slot = a flat design."""
    found: dict[str, tuple[bytes, str]] = {}
    said = []
    for n in range(slots):
        path, window = f"slot{n}/{name}-{n}.bit.bin", f"core{n}"
        found[path] = (bitstream(window=window, core=core, slot=n, name=name), "bitstream")
        found[f"slot{n}/{name}-{n}.dtbo"] = (overlay(path.partition("/")[2]), "overlay")
        found[f"slot{n}/accel.json"] = (json.dumps({"slot": n}).encode(), "json")
        said.append(SlotFiles(path, f"slot{n}/{name}-{n}.dtbo", f"slot{n}/accel.json", window))
    return found, said


def fpga_of(said: list[SlotFiles], seed: int, version: int = 1, **changed) -> Fpga:
    """Return the struct `fpga` of a variant."""
    parent = PARENT if len(said) > 1 else ""
    one = Fpga(said, board="fake", parent=parent, registers=registers(seed, version))
    return replace(one, **changed)


class CorePackage:
    """One version on disk, for tests that need no catalog."""

    def __init__(
        self, folder: Path, name: str, *, seed: int = 1, slots: int = 2, core=None, **changed
    ) -> None:
        files, said = files_of(name, core, slots)
        entries, self.paths = [], []
        for path, (data, role) in files.items():
            digest = sha256_digest(data)
            self.paths.append(folder / digest.removeprefix("sha256:"))
            self.paths[-1].write_bytes(data)
            entries.append(FileEntry(path, digest, len(data), role))
        self.spec = ModelSpec(
            "m", "1.0.0", sha256_digest(f"{name} {seed}".encode()), "registers", "fpga", [],
            entries, [X], [Y], Limits(), fpga=fpga_of(said, seed, **changed),
        )  # fmt: skip

    def open(self) -> list[int]:
        """Open descriptors, in the order of the specification."""
        return [os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in self.paths]


def golden(seed: int, cases: int = 3) -> tuple[bytes, Golden]:
    """Return golden vectors that must agree in every bit, and what the manifest says of them."""
    from tests.models import golden_bytes

    rng = np.random.default_rng(seed + 1000)
    x = rng.uniform(-9, 9, (cases, 1, mlp.INPUTS)).astype(np.float32)
    pairs = [({"x": one}, {"y": mlp.infer(seed, one)}) for one in x]
    return golden_bytes(pairs), Golden("golden.safetensors", cases, rtol=0.0, atol=0.0)
