"""The suites of LiteRT once more over tflite-runtime, in an environment that has it instead.

tflite-runtime needs numpy 1, and so an environment of its own, which this makes with uv: the pinned
versions of everything else, from uv's cache where they are there.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WHEELS = {"x86_64", "aarch64", "armv7l"}
NO_WHEEL = sys.version_info >= (3, 12) or platform.machine() not in WHEELS
pytestmark = [
    pytest.mark.skipif(NO_WHEEL, reason="tflite-runtime has no wheel for this Python and machine"),
    pytest.mark.skipif(not shutil.which("uv"), reason="uv, which makes that, is missing"),
]

TOOLS = ["flatbuffers", "hypothesis", "onnx", "onnxruntime", "pytest", "pytest-timeout"]


def pins() -> list[str]:
    """Return the project's pins, but for what tflite-runtime cannot live with."""
    document = tomllib.loads((ROOT / "pyproject.toml").read_text())
    every = document["tool"]["uv"]["constraint-dependencies"]
    return [pin for pin in every if not re.match(r"(numpy|tflite-runtime|scipy)\b", pin)]


def needs() -> list[str]:
    """Return what the agent and shared depend on."""
    found = []
    for folder in ("agent", "shared"):
        document = tomllib.loads((ROOT / folder / "pyproject.toml").read_text())
        found += [one for one in document["project"]["dependencies"] if "edgefleet" not in one]
    return found


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """The interpreter of an environment with tflite-runtime, and what it finds modules by."""
    folder = tmp_path_factory.mktemp("tflite")
    constraints = folder / "constraints"
    constraints.write_text("\n".join(pins()))
    environ = {k: v for k, v in os.environ.items() if k != "VIRTUAL_ENV"}
    for command in (
        ["uv", "venv", "-q", "--python", sys.executable, str(folder / "venv")],
        ["uv", "pip", "install", "-q", "--python", str(folder / "venv"), "-c", str(constraints),
         "tflite-runtime==2.14.0", "numpy==1.26.4", *TOOLS, *needs()],
    ):  # fmt: skip
        subprocess.run(command, cwd=folder, env=environ, check=True)
    schema = Path(find_spec("ai_edge_litert.schema_py_generated").origin)
    (folder / "schema").mkdir()
    shutil.copy(schema, folder / "schema")
    paths = [folder / "schema", ROOT, ROOT / "agent", ROOT / "shared"]
    return folder / "venv" / "bin" / "python", os.pathsep.join(map(str, paths))


def run(python, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python there."""
    interpreter, paths = python
    environ = {**os.environ, "PYTHONPATH": paths, "EDGEFLEET_TESTED_RUNTIME": "litert"}
    return subprocess.run(
        [interpreter, *arguments], cwd=ROOT, env=environ, capture_output=True, text=True,
        check=False, timeout=100,
    )  # fmt: skip


def test_it_is_the_other_library(python):
    """What runs there is tflite-runtime 2.14, and says so."""
    code = (
        "from edgefleet_agent.worker import compose; print(compose.runtime('litert').version());"
        "from edgefleet_agent.compose import _software; print(_software())"
    )
    done = run(python, "-c", code)
    first, second = done.stdout.splitlines()
    assert first == "2.14.0 (tflite-runtime)", done.stderr
    assert "tflite-runtime 2.14.0" in second


@pytest.mark.parametrize("suite", ["tests/contracts/test_runtime.py", "tests/agent/test_litert.py"])
def test_the_same_suite_passes(python, suite):
    """The port's contract, and a real gateway: golden vectors, sandbox, crashes, swaps to ONNX."""
    done = run(
        python, "-m", "pytest", suite, "-q", "-p", "no:cacheprovider",
        "-o", "addopts=--import-mode=importlib", "-o", "filterwarnings=default",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert re.search(r"\d\d passed", done.stdout), done.stdout[-500:]
    assert "skipped" not in done.stdout
