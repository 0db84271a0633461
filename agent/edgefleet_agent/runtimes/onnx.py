"""onnxruntime behind the port `Runtime`. Import it only in a worker or in the zygote."""

from __future__ import annotations

import mmap
import posixpath
from collections.abc import Mapping, Sequence

import numpy as np
import onnxruntime as ort

from edgefleet_agent.ipc.control import ModelSpec

LEVELS = {
    "disable_all": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
MODES = {
    "sequential": ort.ExecutionMode.ORT_SEQUENTIAL,
    "parallel": ort.ExecutionMode.ORT_PARALLEL,
}
INVALID = (ort.capi.onnxruntime_pybind11_state.InvalidArgument, ValueError, TypeError)


class OnnxSession:
    """One `InferenceSession`; keeps the mappings of its external data alive."""

    concurrent = True  # onnxruntime's `Run` is

    def __init__(self, session: ort.InferenceSession, mappings: Sequence[mmap.mmap]) -> None:
        self._session = session
        self._run = session.run
        self._mappings = mappings
        self._outputs = [output.name for output in session.get_outputs()]

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return every output by name; errors as the port says."""
        try:
            found = self._run(self._outputs, inputs)
        except INVALID as error:
            raise ValueError(f"The model refuses its input: {_first_line(error)}") from error
        except Exception as error:  # onnxruntime's errors share no base but Exception
            raise RuntimeError(f"onnxruntime failed: {_first_line(error)}") from error
        return dict(zip(self._outputs, found, strict=True))


class OnnxRuntime:
    """Loads ONNX models by descriptor."""

    name = "onnxruntime"

    def version(self) -> str:
        """Return onnxruntime's version."""
        return str(ort.__version__)

    def open(
        self,
        spec: ModelSpec,
        files: Sequence[int],
        provider_options: Mapping[str, Mapping[str, str]],
    ) -> OnnxSession:
        """Load the file of role `onnx`, with files of role `onnx_external` as mapped weights.

        The model is opened through /proc/self/fd, so the bytes are those that were verified,
        whatever happens to the path meanwhile.

        Raises:
            RuntimeError: onnxruntime refuses the model or a provider is missing.
        """
        if missing := set(provider_options) - set(ort.get_available_providers()):
            raise RuntimeError(f"onnxruntime here lacks the provider {min(missing)}.")
        options = session_options(spec)
        names: list[str] = []
        mappings: list[mmap.mmap] = []
        model, folder = _find_model(spec, files)
        for entry, fd in zip(spec.files, files, strict=True):
            if entry.role == "onnx_external" and entry.size:
                names.append(posixpath.relpath(entry.path, folder))
                mappings.append(mmap.mmap(fd, entry.size, prot=mmap.PROT_READ))
        if names:
            options.add_external_initializers_from_files_in_memory(
                names, mappings, [len(mapping) for mapping in mappings]
            )
        try:
            session = ort.InferenceSession(
                f"/proc/self/fd/{model}",
                options,
                providers=[(name, dict(value)) for name, value in provider_options.items()],
            )
        except Exception as error:  # onnxruntime's errors share no base but Exception
            raise RuntimeError(f"onnxruntime cannot load it: {_first_line(error)}") from error
        return OnnxSession(session, mappings)


def session_options(spec: ModelSpec) -> ort.SessionOptions:
    """Return the options of a session: ours, and those of the package that are allowed.

    `threads` of the specification is the device's limit; a package may ask for fewer.

    Raises:
        RuntimeError: An option has a value that does not exist.
    """
    wanted = spec.session_options
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = _threads(wanted.get("intra_op_num_threads"), spec.threads)
    options.inter_op_num_threads = _threads(wanted.get("inter_op_num_threads"), spec.threads)
    options.enable_cpu_mem_arena = bool(wanted.get("enable_cpu_mem_arena", True))
    options.enable_mem_pattern = bool(wanted.get("enable_mem_pattern", True))
    level = str(wanted.get("graph_optimization_level", "all"))
    mode = str(wanted.get("execution_mode", "sequential"))
    if level not in LEVELS or mode not in MODES:
        raise RuntimeError(
            f"Unknown session option; graph_optimization_level is one of {', '.join(LEVELS)}, "
            f"execution_mode one of {', '.join(MODES)}."
        )
    options.graph_optimization_level = LEVELS[level]
    options.execution_mode = MODES[mode]
    # A thread that spins for work burns half a core at ten requests a second.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return options


def _find_model(spec: ModelSpec, files: Sequence[int]) -> tuple[int, str]:
    for entry, fd in zip(spec.files, files, strict=True):
        if entry.role == "onnx":
            return fd, posixpath.dirname(entry.path)
    raise RuntimeError("The package has no file of role onnx.")


def _threads(wanted: object, limit: int) -> int:
    if isinstance(wanted, int) and wanted > 0:
        return min(wanted, limit)
    return limit


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:400]
