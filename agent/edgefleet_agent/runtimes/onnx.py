"""onnxruntime behind the port `Runtime`. Import it only in a worker or in the zygote."""

from __future__ import annotations

import contextlib
import fcntl
import io
import mmap
import os
import posixpath
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib import import_module

import numpy as np
import onnxruntime as ort

from edgefleet_agent import providers
from edgefleet_agent.ipc.control import ModelSpec
from edgefleet_shared.errors import IncompatibleError

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
    """One `InferenceSession`; keeps the mappings of its external data alive.

    Attributes:
        device_share: Percent of the nodes that run on the accelerator, -1 if that is not known.
    """

    concurrent = True  # onnxruntime's `Run` is

    def __init__(
        self, session: ort.InferenceSession, mappings: Sequence[mmap.mmap], device_share: int = -1
    ) -> None:
        self.device_share = device_share
        self._session = session
        # What `session.run` checks first, in 2 of a tiny model's 7 us, the codec has checked.
        self._run = getattr(getattr(session, "_sess", None), "run", session.run)
        self._mappings = mappings
        self._inputs = {given.name for given in session.get_inputs()}
        self._outputs = [output.name for output in session.get_outputs()]

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return every output by name; errors as the port says."""
        try:
            found = self._run(self._outputs, inputs, None)
        except INVALID as error:
            raise ValueError(f"The model refuses its input: {_first_line(error)}") from error
        except Exception as error:  # onnxruntime's errors share no base but Exception
            if missing := self._inputs - inputs.keys():
                raise ValueError(f"Input {min(missing)!r} is missing.") from error
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
            RuntimeError: onnxruntime refuses the model, or a provider is missing or does not start.
            IncompatibleError: Nodes would run on the CPU, which the package forbids
                (`cpu_fallback`).
        """
        return self._open(spec, files, provider_options, session_options(spec))

    def _open(
        self,
        spec: ModelSpec,
        files: Sequence[int],
        provider_options: Mapping[str, Mapping[str, str]],
        options: ort.SessionOptions,
    ) -> OnnxSession:
        arguments = _place(options, provider_options)
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
        session = _load(model, options, arguments)
        wanted = [name for name in provider_options if name != providers.CPU]
        if wanted and not {*wanted} & {*session.get_providers()}:
            raise RuntimeError(f"onnxruntime could not start {' or '.join(wanted)} here.")
        return OnnxSession(session, mappings, _share(session, wanted or [providers.CPU]))

    def prepare(
        self,
        spec: ModelSpec,
        files: Sequence[int],
        provider_options: Mapping[str, Mapping[str, str]],
        targets: Sequence[int],
    ) -> None:
        """Write the optimised graph, and beside it the weights as the kernels want them.

        Raises:
            RuntimeError: It is not for the processor alone, or cannot be written.
        """
        if set(provider_options) != {providers.CPU}:
            raise RuntimeError("Only what runs on the processor alone is prepared.")
        graph, weights = targets
        with _at(weights, _weights_number(spec)) as number:
            options = session_options(spec)
            options.optimized_model_filepath = f"/proc/self/fd/{graph}"
            for key, value in (
                # A name beside the graph: /proc/self/fd/<number> is the descriptor itself.
                ("session.optimized_model_external_initializers_file_name", str(number)),
                ("session.optimized_model_external_initializers_min_size_in_bytes", "1024"),
                ("session.save_external_prepacked_constant_initializers", "1"),
            ):
                options.add_session_config_entry(key, value)
            self._open(spec, files, provider_options, options)

    def open_prepared(
        self,
        spec: ModelSpec,
        prepared: Sequence[int],
        provider_options: Mapping[str, Mapping[str, str]],
    ) -> OnnxSession:
        """Load what `prepare` wrote; its weights are mapped, shared with the page cache.

        Raises:
            RuntimeError: onnxruntime refuses it.
        """
        graph, weights = prepared
        options = session_options(spec)
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        with _at(weights, _weights_number(spec)):
            session = _load(graph, options, _place(options, provider_options))
            return OnnxSession(session, (), _share(session, [providers.CPU]))


def _load(
    model: int, options: ort.SessionOptions, arguments: Mapping[str, object]
) -> ort.InferenceSession:
    try:
        # Without `enable_fallback` a provider that fails is an error, not a line on stdout.
        return ort.InferenceSession(
            f"/proc/self/fd/{model}", options, enable_fallback=0, **arguments
        )
    except Exception as error:  # onnxruntime's errors share no base but Exception
        if "fallback to CPU EP has been explicitly disabled" in str(error):
            raise IncompatibleError(
                "Some nodes of the model cannot run on the accelerator, and the package "
                "forbids the CPU.",
                code="cpu_fallback",
            ) from error
        raise RuntimeError(f"onnxruntime cannot load it: {_first_line(error)}") from error


def _place(
    options: ort.SessionOptions, wanted: Mapping[str, Mapping[str, str]]
) -> dict[str, object]:
    """Tell onnxruntime what to run on; return what its constructor must be told beside.

    Raises:
        RuntimeError: A provider is not installed, or finds no device.
    """
    built_in = set(ort.get_available_providers())
    for name in wanted:
        if name not in built_in and name not in providers.PLUGINS:
            raise RuntimeError(f"onnxruntime here lacks the provider {name}.")
    if providers.CUDA & set(wanted):
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
            ort.preload_dlls()
    if built_in.issuperset(wanted):
        return {"providers": [(name, dict(value)) for name, value in wanted.items()]}
    for name, value in wanted.items():
        if name in built_in:
            if name != providers.CPU:  # which is always there, last
                options.add_provider(name, dict(value))
        else:
            _add_plugin(options, name, dict(value))
    return {}


def _add_plugin(options: ort.SessionOptions, name: str, settings: dict[str, str]) -> None:
    """Add a provider that comes as a library of its own, for one device of the kind asked for."""
    kind = settings.pop(providers.DEVICE_TYPE, "GPU")
    if not any(device.ep_name == name for device in ort.get_ep_devices()):
        try:
            library = import_module(providers.PLUGINS[name]).get_library_path()
        except (ImportError, OSError) as error:
            raise RuntimeError(f"The provider {name} is not installed: {error}.") from error
        with contextlib.suppress(Exception):  # it is registered already, and finds no device
            ort.register_execution_provider_library(name, library)
    found = [
        device
        for device in ort.get_ep_devices()
        if device.ep_name == name
        and device.device.type.name == kind
        and "is_virtual" not in device.device.metadata
    ]
    if not found:
        raise RuntimeError(f"{name} finds no {kind} that it knows on this machine.")
    options.add_provider_for_devices(found[:1], settings)


def _share(session: ort.InferenceSession, wanted: Collection[str]) -> int:
    """Return the percentage of nodes that run on the providers wanted; -1 if it is not told."""
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return -1
    counts = [
        (part.ep_name in wanted, len(part.get_nodes()))
        for part in session.get_provider_graph_assignment_info()
    ]
    total, there = sum(n for _, n in counts), sum(n for here, n in counts if here)
    return max(100 * there // total, min(there, 1)) if total else 100


def _weights_number(spec: ModelSpec) -> int:
    """Return the descriptor number that a prepared graph names for its weights.

    The graph names it for ever, so it must be free in every worker of this package: above its
    files and below `sandbox.give_up_rights`.
    """
    return len(spec.files) + 40


@contextlib.contextmanager
def _at(fd: int, number: int) -> Iterator[int]:
    """Let a descriptor also have a certain number for a while.

    Raises:
        RuntimeError: The number is taken.
    """
    try:
        fcntl.fcntl(number, fcntl.F_GETFD)
    except OSError:
        os.dup2(fd, number, inheritable=False)
    else:
        raise RuntimeError(f"Descriptor {number} is not free.")
    try:
        yield number
    finally:
        os.close(number)


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
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if not spec.cpu_fallback:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
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
    # Of a provider that does not start, its name and the C++ around it tell nobody anything.
    text = str(error).strip().rpartition("Error creating execution provider: ")[2]
    return (text or type(error).__name__).splitlines()[0][:400]
