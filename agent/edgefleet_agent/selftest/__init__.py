"""`edgefleet-agent selftest`: what works on this very machine, measured, from what is installed.

It starts a gateway of its own in a folder of its own; an agent that runs here is not touched.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_parser(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Add `selftest` to the command line."""
    parser = commands.add_parser(
        "selftest", parents=[shared], help="try every runtime and accelerator of this machine"
    )
    parser.add_argument(
        "--accelerator", default="", metavar="KIND",
        help="try this one alone (cpu, gpu, npu, fpga); it must be there",
    )  # fmt: skip
    parser.add_argument(
        "--package", type=Path, metavar="FOLDER",
        help="a package of yours for the FPGA, as `edgefleet model publish --output` writes it",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the JSON here")
    parser.add_argument("--json", action="store_true", help="one JSON object")
