"""Do two versions answer alike? Pure; reads the answers of workers, which may hold anything.

Rows of a floating-point output with two dimensions and several columns are scores of classes: they
agree if their largest is in the same column. Other floating-point outputs agree within the
manifest's tolerance; integers, text and bits must be equal.
"""

from __future__ import annotations

import math
import struct
from typing import Any, NamedTuple

import msgspec

from edgefleet_agent.ipc import fast
from edgefleet_agent.ipc.frames import NO_JSON
from edgefleet_shared.errors import InvalidInputError

BODY_MAX = 256 * 1024
"""Longer answers are not compared: that would take the gateway's loop too long."""
_FLOATS = {"FP16": "e", "FP32": "f", "FP64": "d"}
_SCORES = 2  # dimensions

Outputs = dict[str, tuple[str, tuple[int, ...], Any]]
"""Name to datatype, shape and values: numbers of a floating-point output, else what came."""


class Finding(NamedTuple):
    """Whether two answers agree, and their largest difference in any floating-point number."""

    agree: bool
    largest: float


class Answer(NamedTuple):
    """What a worker answered: `json_length` as its frame has it, `framed` on the fast path."""

    body: bytes
    json_length: int
    framed: bool


def compare(live: Answer, tried: Answer, rtol: float, atol: float) -> Finding:
    """Compare two answers to one request; one that cannot be read agrees with none."""
    try:
        old, new = _read(live), _read(tried)
    except (InvalidInputError, msgspec.MsgspecError, struct.error, ValueError, KeyError):
        return Finding(agree=False, largest=0.0)
    agree, largest = old.keys() == new.keys(), 0.0
    for name in old.keys() & new.keys():
        (kind, shape, was), (other, form, now) = old[name], new[name]
        if (kind, shape) != (other, form):
            agree = False
        elif kind not in _FLOATS:
            agree = agree and was == now
        else:
            found = _floats(was, now, shape, rtol, atol)
            agree, largest = agree and found.agree, max(largest, found.largest)
    return Finding(agree, largest)


def _floats(
    was: list[float], now: list[float], shape: tuple[int, ...], rtol: float, atol: float
) -> Finding:
    if len(was) != len(now):
        return Finding(agree=False, largest=0.0)
    pairs = list(zip(was, now, strict=True))
    apart = [abs(a - b) for a, b in pairs]
    largest = max((d for d in apart if math.isfinite(d)), default=0.0)
    if len(shape) == _SCORES and shape[1] > 1 and len(was) == shape[0] * shape[1]:
        rows = range(0, len(was), shape[1])
        return Finding(all(_top(was, i, shape[1]) == _top(now, i, shape[1]) for i in rows), largest)
    agree = all(a == b or d <= atol + rtol * abs(a) for (a, b), d in zip(pairs, apart, strict=True))
    return Finding(agree, largest)


def _top(values: list[float], start: int, count: int) -> int:
    """Return the column of a row's largest number; -1 where one is none."""
    row = values[start : start + count]
    return -1 if any(map(math.isnan, row)) else max(range(count), key=row.__getitem__)


def _read(answer: Answer) -> Outputs:
    if answer.framed:
        return _framed(answer)
    length = len(answer.body) if answer.json_length == NO_JSON else answer.json_length
    found: Outputs = {}
    at = length
    document = msgspec.json.decode(answer.body[:length], type=dict[str, Any])
    for output in msgspec.convert(document["outputs"], list[dict[str, Any]]):
        kind, shape = str(output["datatype"]), tuple(msgspec.convert(output["shape"], list[int]))
        size = output.get("parameters", {}).get("binary_data_size")
        if size is None:
            data = output["data"]
            values = [float(x) for x in _flat(data)] if kind in _FLOATS else data
        else:
            values = _numbers(kind, answer.body[at : at + int(size)])
            at += int(size)
        found[str(output["name"])] = kind, shape, values
    return found


def _framed(answer: Answer) -> Outputs:
    head = fast.decode_head(answer.body[: answer.json_length])
    inline = answer.body[answer.json_length :]
    return {
        tensor.name: (
            tensor.datatype,
            tensor.shape,
            _numbers(tensor.datatype, inline[tensor.offset : tensor.offset + tensor.length]),
        )
        for tensor in head.tensors
        if tensor.slot == fast.INLINE
    }


def _flat(data: Any) -> list[Any]:
    found, left = [], [data]
    while left:
        one = left.pop()
        if isinstance(one, list):
            left.extend(reversed(one))
        else:
            found.append(math.nan if one is None else one)
    return found


def _numbers(kind: str, data: bytes) -> Any:
    form = _FLOATS.get(kind)
    if form is None:
        return data
    return list(struct.unpack(f"<{len(data) // struct.calcsize('<' + form)}{form}", data))
