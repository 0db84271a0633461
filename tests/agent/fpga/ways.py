"""The ways of programming under test, each over its fake in a folder of its own."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import NamedTuple

import msgspec

from edgefleet_agent.accelerators.fpga.region import Region
from edgefleet_agent.config import FpgaOptions
from tests.fakes.fpga import dfx_mgr_client
from tests.fakes.fpga.kernel import KernelProcess
from tests.fakes.fpga.packages import PARENT, CorePackage


class Bench(NamedTuple):
    """A board on the bench: the fake, the way to it, and packages for it."""

    root: Path
    kernel: KernelProcess | None
    options: FpgaOptions

    def region(self, boot: str = "first") -> Region:
        """Return the region as a freshly started agentd has it; another `boot` = power was cut."""
        state = self.root / "state"
        state.mkdir(exist_ok=True)
        return Region(self.options, state, boot)

    def package(self, name: str, **changed) -> CorePackage:
        """Return a version for the two slots."""
        return CorePackage(self.root, name, **changed)

    def program(self, region: Region, package: CorePackage) -> str:
        """Reserve and program."""
        slot = region.reserve(package.spec)
        files = package.open()
        try:
            region.program(slot, package.spec, files)
        finally:
            for fd in files:
                os.close(fd)
        return slot

    def order(self, **orders) -> None:
        """Ask the fake for trouble."""
        if self.kernel:
            self.kernel.order(**orders)
        else:
            (self.root / "orders.json").write_text(json.dumps(orders))

    def cut_power(self) -> None:
        """Leave a blank fabric."""
        if self.kernel:
            self.kernel.cut_power()
        else:
            (self.root / "daemon.json").unlink(missing_ok=True)

    def close(self) -> None:
        """End the fake."""
        if self.kernel:
            self.kernel.close()


def bench(root: Path, way: str) -> Bench:
    """Return a bench for `overlay`, `sysfs`, `dfx-mgr` or `dfx-mgr of 2022`."""
    if way in {"overlay", "sysfs"}:
        kernel = KernelProcess(root)
        options = kernel.options(strategy=way, slots=2, shell=PARENT)
        return Bench(root, kernel, msgspec.convert(options, FpgaOptions))
    face = "old" if "2022" in way else "modern"
    client = root / "dfx-mgr-client"
    command = f"{sys.executable} {dfx_mgr_client.__file__} {root} {root}/firmware {face}"
    client.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    client.chmod(0o755)
    base = root / "firmware/xilinx/k26_2rp_1409"
    base.mkdir(parents=True)
    (base / "shell.json").write_text('{"shell_type": "PL_DFX", "num_pl_slots": 2}')
    options = FpgaOptions(
        strategy="dfx-mgr", board="fake", base=base.name, firmware=str(root / "firmware"),
        dfx_mgr=str(client), timeout_s=5.0, sysfs=str(root / "sysfs"),
    )  # fmt: skip
    return Bench(root, None, options)
