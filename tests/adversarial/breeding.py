"""Mutants of a valid model: bytes flipped, cut, put elsewhere, spliced, fields changed. Seeded."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from google.protobuf.message import Message
from onnx import ModelProto

from tests import models
from tests import tflite_models as light

WORDS = (b"", b"\0", b"\xff" * 8, b"\x80" * 9 + b"\x01", b"\xff\xff\xff\x7f", b"../../etc/passwd")
NUMBERS = (0, 1, -1, 2, 7, 127, 128, 255, 2**15, 2**31 - 1, -(2**31), 2**32 - 1, 2**63 - 1)
TEXTS = ("", "x", "../secret", "Evil", "FlexReadFile", "com.evil", "\u2028" * 9, "y" * 999)


def mutant(data: bytes, seed: int) -> bytes:
    """Return the model with one to eight wounds, the same for the same seed."""
    dice, body = random.Random(seed), bytearray(data)
    for _ in range(dice.choice((1, 1, 1, 2, 4, 8))):
        if len(body) < 2:
            break
        at = dice.randrange(len(body))
        kind = dice.randrange(8)
        if kind < 3:
            body[at] ^= 1 << dice.randrange(8)
        elif kind == 3:
            body[at] = dice.randrange(256)
        elif kind == 4:
            body[at : at + dice.randrange(1, 5)] = dice.choice(WORDS)
        elif kind == 5:
            body[at:at] = body[at : at + dice.randrange(1, 64)]
        elif kind == 6:
            del body[at : at + dice.randrange(1, 16)]
        else:
            del body[max(1, at) :]
    return bytes(body)


def spliced(data: bytes, donor: bytes, seed: int) -> bytes:
    """Return the model with a piece of another one in it, laid over its bytes or between them."""
    dice = random.Random(seed)
    size = dice.choice((4, 8, 16, 64, 256))
    start, at = dice.randrange(max(1, len(donor) - size)), dice.randrange(len(data))
    piece = donor[start : start + size]
    return data[:at] + piece + data[at + dice.choice((0, len(piece))) :]


def changed_onnx(data: bytes, seed: int) -> bytes:
    """Return the model with one to three fields changed by protobuf's own means."""
    dice, model = random.Random(seed), ModelProto.FromString(data)
    for _ in range(dice.choice((1, 1, 2, 3))):
        message, field, value = dice.choice(list(_fields(model)))
        try:
            _change_field(dice, message, field, value)
        except (ValueError, TypeError, OverflowError):
            continue  # a number that the field does not hold
    return bytes(model.SerializeToString())


def _fields(message: Any) -> Iterator[tuple[Any, Any, Any]]:
    for field, value in message.ListFields():
        yield message, field, value
        repeated = not isinstance(value, str | bytes | int | float | Message)
        for one in value if repeated else [value]:
            if isinstance(one, Message):
                yield from _fields(one)


def _change_field(dice: random.Random, message: Any, field: Any, value: Any) -> None:
    if isinstance(value, str | bytes | int | float):
        setattr(message, field.name, _other(dice, value))
    elif isinstance(value, Message) or not len(value):
        message.ClearField(field.name)
    elif dice.randrange(3) == 0:
        del value[dice.randrange(len(value))]
    elif isinstance(value[0], Message):
        value.add().CopyFrom(dice.choice(list(value)))
    else:
        value[dice.randrange(len(value))] = _other(dice, value[0])


def _other(dice: random.Random, value: Any) -> Any:
    if isinstance(value, str):
        return dice.choice(TEXTS)
    if isinstance(value, bytes):
        return mutant(value, dice.randrange(2**31)) if value else b"\xff"
    if isinstance(value, float):
        return dice.choice((0.0, -1.0, 1e38, float("nan"), float("inf")))
    return value + dice.choice((-1, 1, 64)) if dice.randrange(2) else dice.choice(NUMBERS)


def changed_tflite(data: bytes, seed: int) -> bytes:
    """Return the model with one to three fields of its object changed."""
    dice, model = random.Random(seed), light.unpack(data)
    for _ in range(dice.choice((1, 1, 2, 3))):
        owner, name, value = dice.choice(list(_attributes(model)))
        if isinstance(value, list) and value and not isinstance(value[0], int | float):
            copied = [dice.choice(value), *value]
            setattr(owner, name, copied if dice.randrange(2) else copied[2:])
        elif isinstance(value, str | bytes):
            setattr(owner, name, dice.choice(TEXTS))
        elif isinstance(value, bool | int | float):
            setattr(owner, name, _other(dice, value))
        elif hasattr(value, "__len__"):
            numbers = [int(one) if float(one).is_integer() else float(one) for one in value]
            at = dice.randrange(len(numbers) + 1)
            numbers[at : at + dice.randrange(2)] = [_other(dice, 1)] * dice.randrange(2)
            setattr(owner, name, numbers)
        else:
            setattr(owner, name, None)
    try:
        return light.pack(model)
    except Exception:  # noqa: BLE001 - what cannot be written is wounded instead
        return mutant(data, seed)


def _attributes(owner: Any) -> Iterator[tuple[Any, str, Any]]:
    for name, value in vars(owner).items():
        if value is None:
            continue
        yield owner, name, value
        for one in value if isinstance(value, list) else [value]:
            if type(one).__name__.endswith("T") and hasattr(one, "__dict__"):
                yield from _attributes(one)


PARENTS = {"onnx": models.mlp, "tflite": light.mlp}
DONORS = {"onnx": models.slow, "tflite": light.slow}
CHANGED = {"onnx": changed_onnx, "tflite": changed_tflite}


def breed(form: str, seed: int) -> bytes:
    """Return one mutant of a format's parent; half are wounded, the rest changed or spliced."""
    data = PARENTS[form]()
    if seed % 4 == 2:
        return CHANGED[form](data, seed)
    if seed % 4 == 3:
        return spliced(data, DONORS[form](), seed)
    return mutant(data, seed)
