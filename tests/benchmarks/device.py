"""The agent as a device has it: installed and compiled, with what it serves ONNX models by.

A process that compiles what it imports keeps the heap that took (agentd 7 MB), what is there may be
imported, and files that other processes use too count less: this checkout compiles nothing, has
every extra, and its libraries are links into uv's cache.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXTRAS = "onnx,fast"
STARTS = (
    "edgefleet_agent.gateway.__main__, uvloop",
    "edgefleet_agent.zygote, edgefleet_agent.runtimes.onnx, edgefleet_agent.runtimes.litert",
)


def install(folder: Path) -> str:
    """Install the agent into an environment below `folder`, as pip does; return its interpreter."""
    uv = shutil.which("uv")
    if uv is None:
        raise RuntimeError("The agent is installed with uv, which is not on PATH.")
    venv = folder / "device"
    python = str(venv / "bin" / "python")
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(venv)], check=True)
    subprocess.run(
        [
            uv, "pip", "install", "--quiet", "--compile-bytecode", "--link-mode", "copy",
            "--python", python, "--constraint", "constraints.txt",
            "./shared", f"./agent[{EXTRAS}]",
        ],
        check=True,
        cwd=ROOT,
    )  # fmt: skip
    return python


def compile_imports() -> None:
    """Compile what gateways and workers of this checkout import, as pip does on a device."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    for modules in STARTS:
        subprocess.run([sys.executable, "-c", f"import {modules}"], check=True)
