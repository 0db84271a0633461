"""Which runtimes and accelerators a worker knows, by name; imported only when asked for."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from edgefleet_agent.ports import Accelerator, Runtime
from edgefleet_shared.errors import IncompatibleError

RUNTIMES = {
    "onnxruntime": "edgefleet_agent.runtimes.onnx:OnnxRuntime",
    "litert": "edgefleet_agent.runtimes.litert:LiteRt",
    "registers": "edgefleet_agent.runtimes.registers:RegisterRuntime",
    "container": "edgefleet_agent.runtimes.container:ContainerRuntime",
}
ACCELERATORS = {
    "cpu": "edgefleet_agent.accelerators.cpu:Cpu",
    "fpga": "edgefleet_agent.accelerators.fpga.handed:HandedFpga",
    "gpu": "edgefleet_agent.accelerators.gpu:Gpu",
    "npu": "edgefleet_agent.accelerators.gpu:Npu",
}


def runtime(name: str) -> Runtime:
    """Return a runtime.

    Raises:
        IncompatibleError: Unknown, or its library is not installed (`unsupported_runtime`).
    """
    return cast("Runtime", _make(RUNTIMES, name, "runtime"))


def accelerator(kind: str) -> Accelerator:
    """Return an accelerator.

    Raises:
        IncompatibleError: Unknown, or its library is missing (`unsupported_accelerator`).
    """
    return cast("Accelerator", _make(ACCELERATORS, kind, "accelerator"))


def _make(table: dict[str, str], name: str, what: str) -> object:
    if name not in table:
        raise IncompatibleError(
            f"This agent has no {what} {name!r}; it knows {', '.join(sorted(table))}.",
            code=f"unsupported_{what}",
        )
    module, _, attribute = table[name].partition(":")
    try:
        return getattr(import_module(module), attribute)()
    except ImportError as error:
        raise IncompatibleError(
            f"The {what} {name!r} is not installed: {error}.",
            code=f"unsupported_{what}",
            hint="Install the agent's extra for it, for example edgefleet-agent[onnx].",
        ) from error
