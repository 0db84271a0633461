"""Programs what a version needs before its worker starts, and lets a stand-in answer meanwhile.

With a free slot the new version goes beside the old one, as on a processor. Without one something
must go first: the variant that the manifest names as fallback is loaded and routed, the old worker
ends, its slot is programmed anew, and the route goes to what runs there then. It goes the same way
after a power cut, which leaves every FPGA blank.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from edgefleet_agent import stand_in
from edgefleet_agent.errors import NeedsDrainError
from edgefleet_agent.ipc.control import ModelSpec
from edgefleet_agent.journal import VersionRef
from edgefleet_agent.ledger import Ledger
from edgefleet_agent.ports import Fabric
from edgefleet_agent.toolbox import Toolbox
from edgefleet_shared.errors import IncompatibleError
from edgefleet_shared.steps import Step

DRAIN_S = 10


@contextmanager
def readied(
    tools: Toolbox,
    ledger: Ledger,
    version: VersionRef,
    spec: ModelSpec,
    files: Sequence[int],
    *,
    may_drain: bool = True,
) -> Iterator[Sequence[int]]:
    """Give the descriptors that a worker of `spec` needs, its slot programmed.

    Args:
        tools: The shared parts.
        ledger: The slot's page.
        version: What shall be loaded.
        spec: The same for the gateway.
        files: Its verified files.
        may_drain: Whether what serves may be replaced by its stand-in, if no slot is free.

    Raises:
        UnavailableError: The FPGA cannot be programmed, or is full; or a blob is missing.
        TrustError: A blob has changed on disk.
        IncompatibleError: It was built for another board or static design.
        GatewayLostError: The gateway went away.
    """
    if tools.fpga is None or spec.fpga is None:
        yield files
        return
    if why_not := tools.fpga.compatible(spec):
        raise IncompatibleError(why_not, code="unsupported_accelerator")
    programming = _Programming(tools, ledger, tools.fpga)
    with tools.fpga.held(spec):
        windows = programming.open(version, spec, files, may_drain=may_drain)
        try:
            yield [*files, *windows]
        finally:
            for fd in windows:
                os.close(fd)


def tidy(tools: Toolbox) -> None:
    """Unload what no worker runs any more.

    Raises:
        UnavailableError: A slot cannot be unloaded, or the gateway went away.
    """
    if tools.fpga is not None:
        tools.fpga.retain(stand_in.running(tools))


class _Programming:
    def __init__(self, tools: Toolbox, ledger: Ledger, fpga: Fabric) -> None:
        self._tools, self._ledger, self._fpga = tools, ledger, fpga

    def open(
        self, version: VersionRef, spec: ModelSpec, fds: Sequence[int], *, may_drain: bool
    ) -> list[int]:
        """Program a slot unless it is so already, and return the register window's descriptor."""
        fpga, record = self._fpga, self._ledger.record
        if not fpga.ready(spec):
            # After a power cut the FPGA is blank, and nothing answers unless somebody stands in.
            if version == record.active and not stand_in.routed(self._tools, self._ledger.name):
                self._stand_in(version)
            slot = self._reserve(version, spec, may_drain=may_drain)
            fpga.program(slot, spec, fds)
            self._ledger.tell(Step.PREPARE, "programmed", f"FPGA slot {slot or 'of the DPU'}.")
        return fpga.open(fpga.reserve(spec), spec)

    def _reserve(self, version: VersionRef, spec: ModelSpec, *, may_drain: bool) -> str:
        try:
            return self._fpga.reserve(spec)
        except NeedsDrainError as full:
            running = stand_in.running(self._tools)
            if not set(full.holders) <= running:
                self._fpga.retain(running)
                return self._reserve(version, spec, may_drain=may_drain)
            self._drain(version, full, may_drain=may_drain)
        return self._fpga.reserve(spec)

    def _drain(self, version: VersionRef, full: NeedsDrainError, *, may_drain: bool) -> None:
        """Let a stand-in answer in the place of this slot's own version, and take that out."""
        serving = self._ledger.serving
        if not may_drain or serving is None or serving.digest not in full.holders:
            raise full
        if not self._stand_in(version):
            raise full
        self._tools.gateway().release(serving.digest, DRAIN_S)
        self._fpga.retain(stand_in.running(self._tools))

    def _stand_in(self, version: VersionRef) -> str:
        """Load and route a fallback; return which digest answers now, '' if there is none."""
        return stand_in.answer(self._tools, self._ledger, version, "the FPGA is programmed")
