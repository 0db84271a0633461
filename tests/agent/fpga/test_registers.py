"""The runtime of register windows: a core behind a mapped file that acts as /dev/uio."""

from __future__ import annotations

import mmap
import os
import subprocess

import numpy as np
import pytest
from msgspec.structs import replace

from edgefleet_agent.runtimes.registers import fixed
from edgefleet_agent.worker import compose
from edgefleet_shared.identifiers import sha256_digest
from edgefleet_shared.package import FileEntry, Golden, Port
from tests.agent.gateways import Gateway
from tests.fakes.fpga import mlp
from tests.fakes.fpga.core import HANGS
from tests.fakes.fpga.packages import CorePackage, golden, python_core


class Window:
    """A core in Python behind a file."""

    def __init__(self, folder, seed: int = 1, version: int = 1) -> None:
        self.path = folder / f"uio-{seed}-{version}"
        self.path.write_bytes(bytes(mmap.PAGESIZE))
        self.core = subprocess.Popen(
            [*python_core(seed, version), str(self.path)], stdout=subprocess.PIPE
        )
        self.core.stdout.readline()

    def open(self) -> int:
        """Open it as agentd does."""
        return os.open(self.path, os.O_RDWR | os.O_CLOEXEC)

    def close(self) -> None:
        """End the core."""
        self.core.kill()
        self.core.communicate()


@pytest.fixture
def window(tmp_path):
    """Make windows, and end their cores."""
    made = []

    def make(**options) -> Window:
        made.append(Window(tmp_path, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def open_session(package: CorePackage, one: Window):
    """Open a session as a worker does, descriptors closed afterwards."""
    files = [*package.open(), one.open()]
    try:
        return compose.runtime("registers").open(package.spec, files, {})
    finally:
        for fd in files:
            os.close(fd)


def test_a_core_answers_as_the_integer_reference_does(window, tmp_path):
    """Every bit agrees with numpy's integers, also where inputs saturate and halves are rounded."""
    session = open_session(CorePackage(tmp_path, "a", seed=3), window(seed=3))
    rng = np.random.default_rng(0)
    cases = [*rng.uniform(-12, 12, (20, 1, mlp.INPUTS)), np.full((1, mlp.INPUTS), 0.03125)]
    for x in np.array(cases, np.float32):
        np.testing.assert_array_equal(session.run({"x": x})["y"], mlp.infer(3, x))
    assert session.device_share == 100


def test_another_core_is_refused(window, tmp_path):
    """ID, VERSION and BUILD must be the package's own."""
    one = window(seed=3, version=1)
    for package, word in (
        (CorePackage(tmp_path, "b", seed=3, version=2), "VERSION is 0x1; the package says 0x2"),
        (CorePackage(tmp_path, "c", seed=4), "BUILD"),
    ):
        with pytest.raises(RuntimeError, match=word):
            open_session(package, one)
    package = CorePackage(tmp_path, "d", seed=3)
    said = package.spec.fpga
    package.spec = replace(
        package.spec, fpga=replace(said, registers=replace(said.registers, id=0xBAD))
    )
    with pytest.raises(RuntimeError, match="ID is 0xedf1; the package says 0xbad"):
        open_session(package, one)


def test_a_core_that_hangs_is_a_runtime_error(window, tmp_path):
    """No answer within the package's time is said, and the next run is tried again."""
    package = CorePackage(tmp_path, "a", seed=3, version=HANGS)
    said = package.spec.fpga
    package.spec = replace(
        package.spec, fpga=replace(said, registers=replace(said.registers, timeout_ms=30))
    )
    session = open_session(package, window(seed=3, version=HANGS))
    for _ in range(2):
        with pytest.raises(RuntimeError, match="not answered within 30 ms"):
            session.run({"x": np.zeros((1, mlp.INPUTS), np.float32)})


def test_inputs_that_do_not_fit_are_a_value_error(window, tmp_path):
    """Wrong shape, type, name or NaN is the caller's fault; the session goes on."""
    session = open_session(CorePackage(tmp_path, "a", seed=3), window(seed=3))
    good = np.ones((1, mlp.INPUTS), np.float32)
    for bad in (
        {"x": good[:, :3]}, {"x": good.astype(np.float64)}, {"z": good}, {}, {"x": good, "z": good},
        {"x": good * np.nan},
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"."):
            session.run(bad)
    np.testing.assert_array_equal(session.run({"x": good})["y"], mlp.infer(3, good))


def test_without_a_window_nothing_is_opened(tmp_path):
    """Descriptors of the package alone are not enough."""
    package = CorePackage(tmp_path, "a")
    files = package.open()
    with pytest.raises(RuntimeError, match="No register window"):
        compose.runtime("registers").open(package.spec, files, {})
    for fd in files:
        os.close(fd)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", [1, 7, 8, 31, 32])
def test_fixed_point_there_and_back(bits, signed):
    """What an integer of that width can hold comes back; what it cannot saturates."""
    port = Port("x", 0x40, bits, 3, signed=signed)
    low, high = port.bounds()
    values = np.array([low, high, 0, (low + high) // 2], np.float64) / 8
    words = fixed.to_words(values, port)
    assert all(0 <= word < 2**32 for word in words)
    back = fixed.from_words(words, port, np.dtype("<f8"), [4])
    np.testing.assert_array_equal(back, values)
    wide = fixed.to_words(np.array([-np.inf, np.inf, -1e30, 1e30]), port)
    np.testing.assert_array_equal(
        fixed.from_words(wide, port, np.dtype("<f8"), [4]) * 8, [low, high, low, high]
    )


def test_integers_go_through_as_they_are():
    """An integer tensor without a fraction keeps its type and values."""
    port = Port("x", 0x40, 16)
    values = np.array([[-5, 7]], np.int16)
    back = fixed.from_words(fixed.to_words(values, port), port, np.dtype("<i2"), [1, 2])
    np.testing.assert_array_equal(back, values)
    assert back.dtype == np.int16


def test_a_worker_serves_a_core_from_its_sandbox(window, tmp_path):
    """Shut in as any worker, with the window's descriptor alone, it proves itself and answers."""
    package = CorePackage(tmp_path, "a", seed=5)
    data, said = golden(5)
    entry = FileEntry(said.path, sha256_digest(data), len(data), "golden")
    path = tmp_path / "golden"
    path.write_bytes(data)
    package.paths.append(path)
    package.spec = replace(package.spec, files=[*package.spec.files, entry], golden=said)
    one, gateway = window(seed=5), Gateway()
    try:
        handed = type(
            "Handed", (), {"spec": package.spec, "open": lambda _: [*package.open(), one.open()]}
        )()
        outcome = gateway.control.prove(handed)
        assert outcome.ok, outcome
        assert {"seccomp", "no_capabilities"} <= set(outcome.sandbox)
        assert gateway.control.serve(handed).accelerated_pct == 100
        x = np.linspace(-4, 4, mlp.INPUTS, dtype=np.float32)[None]
        status, answer, _ = gateway.infer(
            {
                "inputs": [
                    {
                        "name": "x",
                        "datatype": "FP32",
                        "shape": [1, mlp.INPUTS],
                        "data": x.ravel().tolist(),
                    }
                ]
            }
        )
        assert status == 200, answer
        np.testing.assert_array_equal(
            np.array(answer["outputs"][0]["data"], np.float32), mlp.infer(5, x)[0]
        )
        other = type(
            "Handed",
            (),
            {
                "spec": replace(
                    package.spec,
                    digest="sha256:" + "0" * 64,
                    golden=Golden(said.path, said.cases, atol=1e9),
                ),
                "open": package.open,
            },
        )()
        refused = gateway.control.prove(other)
        assert not refused.ok
        assert "descriptors came for" in refused.message
    finally:
        gateway.close()
