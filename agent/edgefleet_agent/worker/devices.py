"""What a worker for an accelerator may touch beyond any other: its device files, nothing else's.

It is looser than the sandbox of a CPU worker in exactly these points, because a driver's library
works so: device files may be opened for writing and asked by ioctl; a file that exists may be
opened for writing as far as Landlock allows, which is those device files; memory may be made a file
without a name; address space is not limited (CUDA reserves more than there is memory), private
writable memory is instead; the filter ends no process, since libraries of drivers probe for
services that a model has no business with.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from edgefleet_agent.ipc.control import ModelSpec

KINDS: Final = frozenset({"gpu", "npu"})
"""Accelerators whose workers are started afresh, and with device files; never forked."""

WRITABLE: Final = {
    "gpu": (
        "nvidia[0-9]*", "nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset",
        "nvidia-caps/*", "nvhost-*", "nvmap", "nvgpu/*/*", "dri/renderD*", "dri/card*", "kfd",
        "mali0",
    ),
    "npu": ("accel/accel*", "apex_*", "dri/renderD*"),
}  # fmt: skip
"""Below /dev. A USB stick's node has a new name each time it starts, see `writable`."""

READABLE: Final = (
    "/dev/dri", "/proc/driver/nvidia", "/sys/module", "/sys/class", "/sys/bus", "/sys/dev",
    "/sys/devices",
    "/usr/share/vulkan", "/etc/vulkan", "/usr/share/nvidia", "/usr/share/glvnd", "/etc/OpenCL",
    "/usr/share/drirc.d", "/usr/local/cuda", "/opt/intel", "/etc/nv_tegra_release",
)  # fmt: skip
"""What libraries of drivers read: about hardware, and where their own parts are."""

DESCRIPTORS: Final = 512
"""Open files beside those of the package; CUDA alone holds some fifty."""


def writable(spec: ModelSpec, dev: Path = Path("/dev")) -> list[str]:
    """Return the device files that a worker may open for writing.

    A delegate of an NPU may be a stick on USB, which takes another number when its firmware has
    started: then the whole bus is open, and that is the loosest that a worker gets.
    """
    found = [str(p) for pattern in WRITABLE.get(spec.accelerator, ()) for p in dev.glob(pattern)]
    if spec.accelerator == "npu" and _libraries(spec):
        found.append(str(dev / "bus/usb"))
    return found


def readable(spec: ModelSpec) -> list[str]:
    """Return folders that a worker for this accelerator may read beside what every worker may."""
    if spec.accelerator not in KINDS:
        return []
    return [*READABLE, *(str(Path(library).parent) for library in _libraries(spec))]


def _libraries(spec: ModelSpec) -> list[str]:
    """Return the paths of delegates, which are of the device's configuration."""
    return [options["library"] for options in spec.placement.values() if "library" in options]
