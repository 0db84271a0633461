"""onnxruntime's execution providers as this agent knows them: names, and what brings each.

Pure data, read by agentd as by a worker; it imports no runtime.
"""

from __future__ import annotations

from typing import Final, NamedTuple

CPU: Final = "CPUExecutionProvider"
CUDA: Final = frozenset({"CUDAExecutionProvider", "TensorrtExecutionProvider"})
"""Providers within the wheel onnxruntime-gpu; both need NVIDIA's libraries."""

PLUGINS: Final = {
    "OpenVINOExecutionProvider": "onnxruntime_ep_openvino",
    "WebGpuExecutionProvider": "onnxruntime_ep_webgpu",
}
"""Providers that are a library of their own, and the module that says where it lies."""

DEVICE_TYPE: Final = "device_type"
"""An option of ours among a plugin's: GPU, NPU or CPU, as onnxruntime types its devices."""


class Provider(NamedTuple):
    """One way to run on an accelerator.

    Attributes:
        name: What onnxruntime calls it.
        kind: The accelerator that a manifest names.
        package: The distribution that brings it.
        needs: Patterns of device files or of the kernel's entries; one of them must be there.
        options: What it is opened with, beside what the configuration says.
    """

    name: str
    kind: str
    package: str
    needs: tuple[str, ...]
    options: tuple[tuple[str, str], ...] = ()


_NVIDIA = ("/dev/nvidiactl", "/dev/nvhost-gpu", "/dev/nvgpu")
_DRM = ("/sys/class/drm/card*",)  # where onnxruntime itself looks for GPUs

PROVIDERS: Final = (
    Provider(
        "CUDAExecutionProvider",
        "gpu",
        "onnxruntime-gpu",
        _NVIDIA,
        (
            # Else the arena doubles each time it grows, and never gives anything back.
            ("arena_extend_strategy", "kSameAsRequested"),
            # EXHAUSTIVE, the default, tries every algorithm with as much memory as there is.
            ("cudnn_conv_algo_search", "HEURISTIC"),
            ("cudnn_conv_use_max_workspace", "0"),
        ),
    ),
    Provider("TensorrtExecutionProvider", "gpu", "onnxruntime-gpu", _NVIDIA),
    Provider(
        "OpenVINOExecutionProvider",
        "gpu",
        "onnxruntime-ep-openvino",
        _DRM,
        ((DEVICE_TYPE, "GPU"),),
    ),
    Provider(
        "WebGpuExecutionProvider",
        "gpu",
        "onnxruntime-ep-webgpu",
        _DRM,
        ((DEVICE_TYPE, "GPU"),),
    ),
    Provider(
        "OpenVINOExecutionProvider",
        "npu",
        "onnxruntime-ep-openvino",
        ("/sys/class/accel/accel*",),
        ((DEVICE_TYPE, "NPU"),),
    ),
)
"""In the order in which they are tried where a package names none."""
