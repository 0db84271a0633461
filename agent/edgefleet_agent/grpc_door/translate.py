"""Between the protocol's two forms: a gRPC inference as a REST request with binary tensors."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple
from urllib.parse import quote

import msgspec

from edgefleet_agent.grpc_door.messages import MESSAGES
from edgefleet_shared.errors import InvalidInputError

_TYPED: Final = {
    "INT8": ("int_contents", "b"), "INT16": ("int_contents", "h"), "INT32": ("int_contents", "i"),
    "INT64": ("int64_contents", "q"), "UINT8": ("uint_contents", "B"),
    "UINT16": ("uint_contents", "H"), "UINT32": ("uint_contents", "I"),
    "UINT64": ("uint64_contents", "Q"), "FP32": ("fp32_contents", "f"),
    "FP64": ("fp64_contents", "d"), "BOOL": ("bool_contents", "?"), "BYTES": ("bytes_contents", ""),
}  # fmt: skip
"""Field of InferTensorContents, and the array's code, by datatype."""

assert sys.byteorder == "little", "tensors are little-endian on the wire"


class Call(NamedTuple):
    """A REST request: its path, the JSON part, and the tensors behind it."""

    path: str
    head: bytes
    tensors: list[bytes]


def path_of(model: str, version: str, what: str = "") -> str:
    """Return the path of a model, of one of its versions, or of something below."""
    path = f"/v2/models/{quote(model, safe='')}"
    if version:
        path += f"/versions/{quote(version, safe='')}"
    return f"{path}/{what}" if what else path


def to_rest(request: Any) -> Call:
    """Return a ModelInferRequest as REST has it, all outputs asked for as binary.

    Raises:
        InvalidInputError: Contents are missing, double, or do not fit their datatype.
    """
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise InvalidInputError(
            f"raw_input_contents has {len(raw)} elements for {len(request.inputs)} inputs."
        )
    tensors = [
        _raw(given, raw[index]) if raw else _typed(given)
        for index, given in enumerate(request.inputs)
    ]
    head: dict[str, Any] = {
        "id": request.id,
        "parameters": {**plain(request.parameters), "binary_data_output": True},
        "inputs": [
            {
                "name": given.name, "shape": list(given.shape), "datatype": given.datatype,
                "parameters": {**plain(given.parameters), "binary_data_size": len(data)},
            }
            for given, data in zip(request.inputs, tensors, strict=True)
        ],
    }  # fmt: skip
    if request.outputs:
        head["outputs"] = [
            {"name": one.name, "parameters": {**plain(one.parameters), "binary_data": True}}
            for one in request.outputs
        ]
    path = path_of(request.model_name, request.model_version, "infer")
    return Call(path, msgspec.json.encode(head), tensors)


def plain(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return a map of InferParameter as JSON has it."""
    found = {key: value.WhichOneof("parameter_choice") for key, value in parameters.items()}
    return {key: getattr(parameters[key], kind) for key, kind in found.items() if kind}


def _raw(given: Any, data: bytes) -> bytes:
    if given.HasField("contents"):
        raise InvalidInputError(f"Input {given.name!r} has contents beside raw_input_contents.")
    return data


def _typed(given: Any) -> bytes:
    """Return the typed contents of an input as bytes."""
    if "shared_memory_region" in given.parameters:
        raise InvalidInputError("Named shared memory is not supported; the fast path has memfds.")
    if given.datatype not in _TYPED:
        raise InvalidInputError(
            f"Input {given.name!r} is {given.datatype[:20]!r}: send it in raw_input_contents."
        )
    name, code = _TYPED[given.datatype]
    if foreign := [f.name for f, _ in given.contents.ListFields() if f.name != name]:
        raise InvalidInputError(f"Input {given.name!r} is {given.datatype} and has {foreign[0]}.")
    values = getattr(given.contents, name)
    if not code:
        return b"".join(part for one in values for part in (len(one).to_bytes(4, "little"), one))
    if code == "?":
        return bytes(values)
    try:
        return array(code, values).tobytes()
    except OverflowError as error:
        raise InvalidInputError(
            f"A number in input {given.name!r} does not fit {given.datatype}."
        ) from error


class _Output(msgspec.Struct):
    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, int] = {}


class _Answer(msgspec.Struct):
    model_name: str
    model_version: str
    outputs: list[_Output]
    id: str = ""


_decode = msgspec.json.Decoder(_Answer).decode


def to_grpc(body: bytes, json_length: int) -> Any:
    """Return the ModelInferResponse of a REST answer whose tensors follow its JSON part."""
    answer = _decode(body[:json_length])
    made = MESSAGES["ModelInferResponse"](
        model_name=answer.model_name, model_version=answer.model_version, id=answer.id
    )
    made.raw_output_contents.extend(_split(body, json_length, answer.outputs))
    for output in answer.outputs:
        made.outputs.add(name=output.name, datatype=output.datatype, shape=output.shape)
    return made


def _split(body: bytes, at: int, outputs: Sequence[_Output]) -> list[bytes]:
    parts = []
    for output in outputs:
        end = at + output.parameters["binary_data_size"]
        parts.append(body[at:end])
        at = end
    return parts
