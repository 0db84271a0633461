"""TFLite models behind the port `Runtime`, by whichever of two libraries is installed.

`ai-edge-litert` where it has a wheel, `tflite-runtime` elsewhere (32-bit ARM, Python 3.11): they
have one interface. Import this only in a worker or in the zygote; either library's import starts no
thread, writes no file and asks no network.
"""

from __future__ import annotations

import resource
import threading
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from edgefleet_agent.ipc.control import ModelSpec

LIBRARIES: Final = {"ai-edge-litert": "ai_edge_litert", "tflite-runtime": "tflite_runtime"}
"""Distribution to package, in order of preference."""

DTYPES: Final = frozenset(
    np.dtype(name)
    for name in ("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64",
                 "float16", "float32", "float64")
)  # fmt: skip
"""What the inference protocol can say of what TFLite has; strings and complex numbers are not."""

DEFAULT_SIGNATURE: Final = "serving_default"
_IGNORED: Final = frozenset({"CPUExecutionProvider"})
"""Names for what is there anyway: XNNPACK and the library's own kernels."""


def _library() -> tuple[str, Any]:
    """Return the distribution that is installed, and its module.

    Raises:
        ImportError: None is, or what is installed cannot be used here.
    """
    for name, package in LIBRARIES.items():
        try:
            module = import_module(f"{package}.interpreter")
        except ModuleNotFoundError as error:
            if error.name != package:
                raise
            continue
        if name == "tflite-runtime" and int(np.__version__.partition(".")[0]) > 1:
            raise ImportError(f"tflite-runtime needs numpy < 2, here is {np.__version__}")
        return name, module
    raise ModuleNotFoundError(f"neither {' nor '.join(LIBRARIES)} is here")


LIBRARY, _tflite = _library()


class Slot(NamedTuple):
    """One input of a model: its tensor's index, element type and shape, -1 for what varies."""

    tensor: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class LiteRtSession:
    """One interpreter; it runs one request at a time, whoever asks.

    An interpreter is not safe for threads, and a second one would hold its weights, packed for the
    processor, once more: memory that nobody has admitted. It has threads of its own instead, and
    lets go of Python's lock while it computes.

    Attributes:
        device_share: Percent of the nodes that run on what the variant is for; -1 is not known.
    """

    def __init__(self, interpreter: Any, signature: str, device_share: int) -> None:
        self._interpreter = interpreter
        self._lock = threading.Lock()
        self._runner = interpreter.get_signature_runner(signature) if signature else None
        self._inputs = {name: _slot(name, one) for name, one in self._details("input").items()}
        self._outputs = {name: _slot(name, one) for name, one in self._details("output").items()}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self.device_share = device_share

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return every output by name; errors as the port says. Safe to call from any thread."""
        self._check(inputs)
        with self._lock:
            try:
                if self._runner is not None:
                    return dict(self._runner(**inputs))
                return self._run_tensors(inputs)
            except ValueError as error:
                self._shapes.clear()  # nothing is known of them after a failure
                raise ValueError(f"The model refuses its input: {_first_line(error)}") from error
            except Exception as error:  # its errors share no base but Exception
                self._shapes.clear()
                _check_memory(error, self._interpreter)
                raise RuntimeError(f"{LIBRARY} failed: {_first_line(error)}") from error

    def _run_tensors(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run a model without a signature; buffers are planned anew where a shape has changed."""
        interpreter = self._interpreter
        changed = [name for name, array in inputs.items() if array.shape != self._shapes.get(name)]
        for name in changed:
            interpreter.resize_tensor_input(self._inputs[name].tensor, inputs[name].shape)
        if changed:
            interpreter.allocate_tensors()
        for name, array in inputs.items():
            interpreter.set_tensor(self._inputs[name].tensor, array)
        interpreter.invoke()
        self._shapes.update((name, inputs[name].shape) for name in changed)
        return {name: interpreter.get_tensor(slot.tensor) for name, slot in self._outputs.items()}

    def _check(self, inputs: Mapping[str, np.ndarray]) -> None:
        """Refuse what the library would take amiss, or take and compute nonsense from."""
        if inputs.keys() != self._inputs.keys():
            odd = min(inputs.keys() ^ self._inputs.keys())
            raise ValueError(f"The model has the inputs {', '.join(self._inputs)}; see {odd!r}.")
        for name, slot in self._inputs.items():
            array = inputs[name]
            if array.dtype != slot.dtype:
                raise ValueError(f"Input {name!r} is {array.dtype} and must be {slot.dtype}.")
            if len(array.shape) != len(slot.shape) or any(
                want not in {-1, got} for got, want in zip(array.shape, slot.shape, strict=True)
            ):
                raise ValueError(
                    f"Input {name!r} has shape {list(array.shape)} and must have "
                    f"{list(slot.shape)} (-1 = any)."
                )

    def _details(self, kind: str) -> dict[str, dict[str, Any]]:
        if self._runner is not None:
            return dict(getattr(self._runner, f"get_{kind}_details")())
        found = getattr(self._interpreter, f"get_{kind}_details")()
        return {one["name"]: one for one in found}


class LiteRt:
    """Loads TFLite models by descriptor."""

    name = "litert"

    def version(self) -> str:
        """Return the library's version and which of the two it is."""
        return f"{version(LIBRARY)} ({LIBRARY})"

    def open(
        self,
        spec: ModelSpec,
        files: Sequence[int],
        provider_options: Mapping[str, Mapping[str, str]],
    ) -> LiteRtSession:
        """Load the file of role `tflite`.

        It is opened through /proc/self/fd, so the bytes are those that were verified; the library
        maps them and keeps a descriptor of its own.

        Args:
            spec: What to load; of its session options `num_threads` is known.
            files: Descriptors in the order of `spec.files`.
            provider_options: Delegates in order of preference: name to `library`, the absolute path
                of an external delegate, and its options. What a CPU has needs none.

        Raises:
            RuntimeError: The library refuses the model, or a delegate cannot be loaded.
            MemoryError: The model's tensors need more than this process may have.
        """
        threads = _threads(spec.session_options, spec.threads)
        delegates = _delegates(provider_options)
        interpreter = None
        try:
            interpreter = _tflite.Interpreter(
                model_path=f"/proc/self/fd/{_find_model(spec, files)}",
                num_threads=threads,
                experimental_delegates=delegates,
            )
            share = -1 if delegates or spec.accelerator != "cpu" else 100
            return LiteRtSession(interpreter, _signature(interpreter, spec), share)
        except Exception as error:  # its errors share no base but Exception
            _check_memory(error, interpreter)
            raise RuntimeError(f"{LIBRARY} cannot load it: {_first_line(error)}") from error


def _signature(interpreter: Any, spec: ModelSpec) -> str:
    """Return the signature whose names are those of the package, '' for the tensors' own names."""
    wanted = {tensor.name for tensor in spec.inputs}, {tensor.name for tensor in spec.outputs}
    found = [
        key
        for key, names in interpreter.get_signature_list().items()
        if (set(names["inputs"]), set(names["outputs"])) == wanted
    ]
    return DEFAULT_SIGNATURE if DEFAULT_SIGNATURE in found else next(iter(found), "")


def _slot(name: str, details: Mapping[str, Any]) -> Slot:
    dtype = np.dtype(details["dtype"])
    if dtype not in DTYPES:
        raise ValueError(f"tensor {name!r} is of type {dtype.name}, which cannot be sent or read")
    signature = details.get("shape_signature", details["shape"])
    shape = signature if len(signature) == len(details["shape"]) else details["shape"]
    return Slot(int(details["index"]), dtype, tuple(int(size) for size in shape))


def _delegates(provider_options: Mapping[str, Mapping[str, str]]) -> list[Any]:
    found = []
    for name, options in provider_options.items():
        if name in _IGNORED:
            continue
        if "library" not in options:
            raise RuntimeError(f"{LIBRARY} here lacks the delegate {name}.")
        if not Path(options["library"]).is_file():
            raise RuntimeError(
                f"The delegate {name} cannot be loaded: {options['library']} is not there."
            )
        rest = {key: value for key, value in options.items() if key != "library"}
        try:
            found.append(_tflite.load_delegate(options["library"], rest))
        except (ValueError, OSError, RuntimeError) as error:
            why = " ".join(str(error).split())[:400]  # its own words come in the second line
            raise RuntimeError(f"The delegate {name} cannot be loaded: {why}") from error
    return found


def _threads(options: Mapping[str, object], limit: int) -> int:
    """Return how many threads to use: the device's limit, or fewer if the package says so."""
    unknown = set(options) - {"num_threads"}
    wanted = options.get("num_threads", limit)
    if unknown or type(wanted) is not int or wanted < 1:
        raise RuntimeError("Unknown session option; num_threads, a positive number, is the one.")
    return min(wanted, limit)


def _check_memory(error: Exception, interpreter: Any) -> None:
    """Tell want of memory, for which the library has no words of its own, from other failures.

    Raises:
        MemoryError: The model's tensors need more address space than is left.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    silent = not str(error).strip() or "failed to prepare" in str(error)
    if not silent or interpreter is None or limit == resource.RLIM_INFINITY:
        return
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    sizes = [
        prod(map(int, one["shape"])) * np.dtype(one["dtype"]).itemsize
        for one in interpreter.get_tensor_details()
    ]
    if sum(sizes) > limit - held:
        raise MemoryError(f"its tensors take {sum(sizes) >> 20} MB") from error


def _find_model(spec: ModelSpec, files: Sequence[int]) -> int:
    for entry, fd in zip(spec.files, files, strict=True):
        if entry.role == "tflite":
            return fd
    raise RuntimeError("The package has no file of role tflite.")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:400]
