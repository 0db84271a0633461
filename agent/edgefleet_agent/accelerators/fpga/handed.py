"""A worker's side of an FPGA: it was programmed before, and a worker has no right to do that."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from edgefleet_agent.accelerators.fpga.vitis import provider_options
from edgefleet_agent.ipc.control import ModelSpec
from edgefleet_agent.ports import DeviceReport


class HandedFpga:
    """What agentd has programmed, as a worker sees it: a register window, or a DPU's provider."""

    kind = "fpga"

    def __init__(self) -> None:
        self._slots: set[str] = set()

    def probe(self) -> DeviceReport:
        """Report that a worker cannot look: only agentd sees sysfs."""
        return DeviceReport(
            name="", kind=self.kind, usable=False, why_not="Only agentd looks for FPGAs."
        )

    def compatible(self, spec: ModelSpec) -> str:
        """Return '' for a variant for an FPGA; agentd has looked at board and static design."""
        if spec.accelerator == self.kind:
            return ""
        return f"{spec.model} {spec.version} is built for {spec.accelerator!r}, this is an FPGA."

    def providers(self, spec: ModelSpec) -> Mapping[str, Mapping[str, str]]:
        """Return the provider of a model for a DPU; a core with registers needs none."""
        if spec.fpga is not None and spec.fpga.registers is not None:
            return {}
        return {"VitisAIExecutionProvider": provider_options(spec.digest, os.environ)}

    def prepare(self, spec: ModelSpec, files: Sequence[int], targets: Sequence[int]) -> bool:
        """Return False: a core comes as its publisher has built it."""
        del spec, files, targets
        return False

    def reserve(self, spec: ModelSpec) -> str:
        """Return the slot, which agentd has filled."""
        self._slots.add(spec.digest)
        return spec.digest

    def program(self, slot: str, spec: ModelSpec, files: Sequence[int]) -> None:
        """Do nothing: agentd has done it."""

    def release(self, slot: str) -> None:
        """Forget the slot; agentd unloads it."""
        self._slots.discard(slot)

    def state(self, slot: str) -> str:
        """Return `operating` for a slot in use here, else `free`."""
        return "operating" if slot in self._slots else "free"
