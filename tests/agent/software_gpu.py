"""A GPU in software: WebGPU over SwiftShader's Vulkan, by the plugin that runs on a real one.

SwiftShader comes with Debian's chromium-common. onnxruntime looks for GPUs in /sys/class/drm, where
a machine without one has nothing: gateways under test run in a mount namespace with an entry there.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

ICD = Path("/usr/lib/chromium/vk_swiftshader_icd.json")
ENVIRONMENT = {"VK_ICD_FILENAMES": str(ICD), "VK_DRIVER_FILES": str(ICD)}
_DRM = """
set -e
mount -t tmpfs none /sys/class
mkdir -p /sys/class/drm/card0/device
echo 0x8086 > /sys/class/drm/card0/device/vendor
echo 0x1234 > /sys/class/drm/card0/device/device
"""


def within(command: list[str]) -> list[str]:
    """Return a command that runs another where a GPU can be found."""
    return ["unshare", "--mount", "sh", "-c", f"{_DRM} exec {shlex.join(command)}"]


@cache
def missing() -> str:
    """Return what this machine lacks for it, or ''."""
    if not ICD.exists():
        return "SwiftShader (Debian: chromium-common)"
    if find_spec("onnxruntime_ep_webgpu") is None:
        return "the package onnxruntime-ep-webgpu"
    try:
        tried = subprocess.run(within(["true"]), capture_output=True, check=False)
    except OSError:
        return "unshare on PATH"
    return "the right to mount" if tried.returncode else ""


def run(code: str, *arguments: str) -> dict:
    """Run Python code where a GPU can be found; return the JSON that it prints."""
    command = within([sys.executable, "-c", code, *arguments])
    done = subprocess.run(
        command, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, check=True
    )
    found: dict = json.loads(done.stdout)
    return found
