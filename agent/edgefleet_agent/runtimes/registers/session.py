"""A core's session: write inputs, start, wait, read outputs; and who the core says it is."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from math import prod
from typing import Final

import numpy as np

from edgefleet_agent.ipc.control import ModelSpec
from edgefleet_agent.runtimes.registers import fixed
from edgefleet_agent.runtimes.registers.window import MappedWindow, MmioWindow
from edgefleet_shared import fpga
from edgefleet_shared.package import Registers, TensorSpec

SPIN_NS: Final = 50_000
"""So long a run is waited for without sleeping; most cores answer within it."""
_NAP_S: Final = (0.00002, 0.0001, 0.001)


class RegisterSession:
    """One core behind one window; one run at a time.

    Args:
        window: The core's registers.
        spec: What the package says of it.

    Raises:
        RuntimeError: The core says that it is another, or never was idle.
    """

    device_share = 100

    def __init__(self, window: MmioWindow, spec: ModelSpec) -> None:
        assert spec.fpga is not None
        assert spec.fpga.registers is not None
        self._window, self._registers = window, spec.fpga.registers
        self._inputs, self._outputs = spec.inputs, spec.outputs
        check_identity(window, self._registers)

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return every output by name; errors as the port says."""
        window, registers = self._window, self._registers
        if foreign := set(inputs) - {tensor.name for tensor in self._inputs}:
            raise ValueError(f"The core has no input {min(foreign)!r}.")
        words = [
            fixed.to_words(_checked(inputs, tensor), port)
            for tensor, port in zip(self._inputs, registers.inputs, strict=True)
        ]
        for port, values in zip(registers.inputs, words, strict=True):
            window.write_words(port.offset, values)
        window.write(fpga.CTRL, fpga.START)
        self._wait()
        return {
            tensor.name: fixed.from_words(
                window.read_words(port.offset, prod(tensor.shape)),
                port,
                fixed.DTYPES[tensor.datatype],
                tensor.shape,
            )
            for tensor, port in zip(self._outputs, registers.outputs, strict=True)
        }

    def _wait(self) -> None:
        """Wait until DONE, spinning first; HLS clears it as it is read, so one look must do."""
        read, started = self._window.read, time.monotonic_ns()
        deadline = started + self._registers.timeout_ms * 1_000_000
        naps = 0
        while not read(fpga.CTRL) & fpga.DONE:
            now = time.monotonic_ns()
            if now > deadline:
                raise RuntimeError(
                    f"The core has not answered within {self._registers.timeout_ms} ms; CTRL is "
                    f"{read(fpga.CTRL):#x}."
                )
            if now - started > SPIN_NS:
                time.sleep(_NAP_S[min(naps // 64, len(_NAP_S) - 1)])
                naps += 1


def check_identity(window: MmioWindow, registers: Registers) -> None:
    """Compare ID, VERSION and BUILD with what was signed.

    Raises:
        RuntimeError: The core is another than the package's.
    """
    for name, offset, wanted in (
        ("ID", fpga.ID, registers.id),
        ("VERSION", fpga.VERSION, registers.version),
    ):
        if (found := window.read(offset)) != wanted:
            raise RuntimeError(f"The core's {name} is {found:#x}; the package says {wanted:#x}.")
    count = -(-len(registers.build) // 8)
    found_build = "".join(f"{word:08x}" for word in window.read_words(fpga.BUILD, count))
    if not found_build.startswith(registers.build):
        raise RuntimeError(
            f"The core's BUILD is {found_build}; the package says {registers.build}."
        )


def _checked(inputs: Mapping[str, np.ndarray], tensor: TensorSpec) -> np.ndarray:
    array = inputs.get(tensor.name)
    if array is None:
        raise ValueError(f"Input {tensor.name!r} is missing.")
    if array.dtype != fixed.DTYPES[tensor.datatype] or list(array.shape) != tensor.shape:
        raise ValueError(
            f"Input {tensor.name!r} is {array.dtype} {list(array.shape)}; the core takes "
            f"{tensor.datatype} {tensor.shape}."
        )
    return array


class RegisterRuntime:
    """Opens cores by the descriptor of their window, which follows those of the files."""

    name = "registers"

    def version(self) -> str:
        """Return the version of the register map."""
        return "1"

    def open(
        self,
        spec: ModelSpec,
        files: Sequence[int],
        provider_options: Mapping[str, Mapping[str, str]],
    ) -> RegisterSession:
        """Map the window and look who answers there.

        Raises:
            RuntimeError: There is no window, or another core in it.
        """
        if provider_options:
            raise RuntimeError(f"A core has no provider {min(provider_options)}.")
        if spec.fpga is None or spec.fpga.registers is None or len(files) != spec.descriptors:
            raise RuntimeError("No register window was handed over for this core.")
        try:
            window = MappedWindow(files[-1], spec.fpga.registers.size)
        except (OSError, ValueError) as error:
            raise RuntimeError(f"The register window cannot be mapped: {error}.") from error
        return RegisterSession(window, spec)
