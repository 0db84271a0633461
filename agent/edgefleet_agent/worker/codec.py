"""Inference requests and answers of the Open Inference Protocol v2, strictly against a signature.

Messages name what is wrong; whoever sent the request reads them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

import msgspec
import numpy as np

from edgefleet_agent.ipc.control import ModelSpec
from edgefleet_agent.ipc.fast import Tensor
from edgefleet_agent.ipc.frames import NO_JSON
from edgefleet_agent.worker import bodies, tensors
from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.package import TensorSpec
from edgefleet_shared.processing_rules import outer


class _Input(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] = {}
    data: msgspec.Raw = msgspec.Raw()


class _Output(msgspec.Struct):
    name: str
    parameters: dict[str, Any] = {}


class _Request(msgspec.Struct):
    inputs: list[_Input]
    id: str = ""
    parameters: dict[str, Any] = {}
    outputs: list[_Output] | None = None


class _Answer(msgspec.Struct, omit_defaults=True):
    model_name: str
    model_version: str
    outputs: list[dict[str, Any]]
    id: str = ""


class Decoded(NamedTuple):
    """A request that fits: input arrays, its id, and each wanted output with True for binary.

    `raw`: it asks for the bare model, past the processing that its package declares.
    """

    inputs: dict[str, np.ndarray]
    id: str
    outputs: dict[str, bool]
    raw: bool = False


_decode = msgspec.json.Decoder(_Request).decode
_encode = msgspec.json.Encoder().encode


class Codec:
    """Reads requests for one model and writes its answers.

    Args:
        spec: The model. With `processing`, requests are for what it declares, unless they carry the
            parameter `raw`: true.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self.raw: Codec | None = None  # for requests that ask the bare model
        self._blob = ""  # the input whose elements are files
        inputs, outputs = spec.inputs, spec.outputs
        if spec.processing is not None:
            self.raw = Codec(msgspec.structs.replace(spec, processing=None))
            inputs, outputs = outer(spec.processing, inputs, outputs)
            self._blob = spec.processing.image if spec.processing.pre else ""
        self._inputs = {tensor.name: tensor for tensor in inputs}
        self._outputs = {tensor.name: tensor for tensor in outputs}
        self._all_json = dict.fromkeys(self._outputs, False)
        self._all_binary = dict.fromkeys(self._outputs, True)

    def decode(self, body: memoryview, json_length: int) -> Decoded:
        """Return what a request asks for; arrays may be views into `body`.

        Args:
            body: The HTTP body.
            json_length: Inference-Header-Content-Length, 0 for a bare tensor or file, or
                `NO_JSON`.

        Raises:
            InvalidInputError: The request does not fit protocol or signature.
        """
        if json_length == 0:
            return self._decode_raw(body)
        if json_length == NO_JSON:
            json_length = len(body)
        elif json_length > len(body):
            raise InvalidInputError(
                f"Inference-Header-Content-Length is {json_length}, the body {len(body)} bytes."
            )
        try:
            request = _decode(body[:json_length])
        except msgspec.DecodeError as error:
            raise InvalidInputError(bodies.told(body, self._inputs, str(error))) from error
        except UnicodeDecodeError as error:
            raise InvalidInputError(bodies.told(body, self._inputs, "it is not UTF-8")) from error
        except RecursionError as error:
            raise InvalidInputError("The request is nested too deeply.") from error
        if self.raw is not None and request.parameters.get("raw") is True:
            return self.raw._decode(request, body, json_length)._replace(raw=True)  # noqa: SLF001
        return self._decode(request, body, json_length)

    def _decode(self, request: _Request, body: memoryview, json_length: int) -> Decoded:
        arrays = self._arrays(request, body, json_length)
        self.check_complete(arrays)
        return Decoded(arrays, request.id, self._wanted(request))

    def _arrays(self, request: _Request, body: memoryview, at: int) -> dict[str, np.ndarray]:
        """Return the inputs; binary tensors stand one after the other from `at` on."""
        arrays: dict[str, np.ndarray] = {}
        for given in request.inputs:
            name = given.name
            if name in arrays:
                raise InvalidInputError(f"Input {name!r} is given twice.")
            self.check(given)
            size = given.parameters.get("binary_data_size")
            if size is None:
                if not given.data:
                    raise InvalidInputError(f"Input {name!r} has neither data nor binary data.")
                arrays[name] = self._from_json(given)
                continue
            if type(size) is not int or not 0 <= size <= len(body) - at or given.data:
                raise InvalidInputError(f"The binary_data_size of input {name!r} is wrong.")
            data = body[at : at + size]
            arrays[name] = self.from_binary(given, data)
            at += size
        if at != len(body):
            raise InvalidInputError(f"{len(body) - at} bytes stand after the last tensor.")
        return arrays

    def _from_json(self, given: _Input) -> np.ndarray:
        if given.name == self._blob and given.datatype == "BYTES":
            return tensors.blobs_from_json(given.name, given.shape, given.data)
        return tensors.from_json(given.name, given.datatype, given.shape, given.data)

    def from_binary(self, given: _Input | Tensor, data: memoryview) -> np.ndarray:
        """Return an input of little-endian row-major bytes, without a copy where it may.

        Raises:
            InvalidInputError: The size does not fit the shape, or the BYTES framing is broken.
        """
        shape = list(given.shape)
        if given.name == self._blob and given.datatype == "BYTES":
            return tensors.blobs_from_binary(given.name, shape, data)
        return tensors.from_binary(given.name, given.datatype, shape, data)

    @property
    def kinds(self) -> dict[str, str]:
        """Datatypes of the outputs by name."""
        return {name: tensor.datatype for name, tensor in self._outputs.items()}

    def _decode_raw(self, body: memoryview) -> Decoded:
        """Take a body that is the only input itself; of a file, answer as JSON."""
        if len(self._inputs) != 1:
            raise InvalidInputError(
                "A raw binary request needs a model with one input; this one takes "
                f"{', '.join(self._inputs)}."
            )
        (expected,) = self._inputs.values()
        if expected.name == self._blob and expected.datatype == "BYTES":
            file = np.array([bytes(body)], object)
            return Decoded({expected.name: file}, "", self._all_json)
        known = prod(size for size in expected.shape if size != -1)
        width = tensors.DTYPES[expected.datatype].itemsize * known
        if expected.shape.count(-1) > 1 or expected.datatype == "BYTES" or not width:
            raise InvalidInputError("A raw binary request cannot tell this input's shape.")
        shape = [len(body) // width if size == -1 else size for size in expected.shape]
        array = tensors.from_binary(expected.name, expected.datatype, shape, body)
        return Decoded({expected.name: array}, "", self._all_binary)

    def check(self, given: _Input | Tensor) -> None:
        """Compare what is said of an input with the signature.

        Raises:
            InvalidInputError: It does not fit.
        """
        expected = self._inputs.get(given.name)
        if expected is None:
            raise InvalidInputError(
                f"The model has no input {given.name[:80]!r}; it has {', '.join(self._inputs)}."
            )
        if given.datatype != expected.datatype:
            raise InvalidInputError(
                f"Input {given.name!r} is {given.datatype[:20]!r} and must be "
                f"{expected.datatype!r}."
            )
        if not fits(given.shape, expected):
            raise InvalidInputError(
                f"Input {given.name!r} has shape {list(given.shape[:16])} and must have "
                f"{expected.shape} (-1 = any)."
            )

    def check_complete(self, arrays: Collection[str]) -> None:
        """See to it that every input is there.

        Raises:
            InvalidInputError: One is missing.
        """
        if len(arrays) == len(self._inputs):  # each is known, and there once
            return
        if missing := self._inputs.keys() - set(arrays):
            raise InvalidInputError(f"Input {min(missing)!r} is missing.")

    def _wanted(self, request: _Request) -> dict[str, bool]:
        binary = request.parameters.get("binary_data_output") is True
        if not request.outputs:
            return self._all_binary if binary else self._all_json
        wanted: dict[str, bool] = {}
        for output in request.outputs:
            if output.name not in self._outputs:
                raise InvalidInputError(
                    f"The model has no output {output.name[:80]!r}; it has "
                    f"{', '.join(self._outputs)}."
                )
            if "classification" in output.parameters:
                raise InvalidInputError("The classification extension is not supported.")
            wanted[output.name] = output.parameters.get("binary_data", binary) is True
        return wanted

    def encode(
        self, request: Decoded, found: Mapping[str, np.ndarray]
    ) -> tuple[int, list[bytes], bool]:
        """Return (JSON length or `NO_JSON`, parts of the body, whether an output is not finite).

        Raises:
            InvalidInputError: An FP16 output was asked for as JSON.
        """
        if request.raw and self.raw is not None:
            return self.raw.encode(request, found)
        outputs: list[dict[str, Any]] = []
        parts: list[bytes] = []
        nonfinite = getattr(found, "nonfinite", False)
        for name, binary in request.outputs.items():
            array = found[name]
            kind = self._outputs[name].datatype
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                nonfinite = True
            entry: dict[str, Any] = {"name": name, "datatype": kind, "shape": list(array.shape)}
            if binary:
                data = tensors.to_binary(array)
                entry["parameters"] = {"binary_data_size": len(data)}
                parts.append(data)
            elif kind == "FP16":
                raise InvalidInputError(f"Output {name!r} is FP16: ask for it as binary data.")
            else:
                entry["data"] = tensors.to_json(array)
            outputs.append(entry)
        text = _encode(_Answer(self._spec.model, self._spec.version, outputs, request.id))
        return (len(text) if parts else NO_JSON), [text, *parts], nonfinite


def fits(shape: Sequence[int], expected: TensorSpec) -> bool:
    """Tell whether a concrete shape fits a signature, where -1 is any size."""
    if shape == expected.shape and -1 not in shape:
        return True
    return len(shape) == len(expected.shape) and all(
        got >= 0 and want in {-1, got} for got, want in zip(shape, expected.shape, strict=True)
    )
