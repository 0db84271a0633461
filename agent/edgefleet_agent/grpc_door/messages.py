"""The messages of `inference.proto`, made at import: no generated code to outgrow its library.

The reader below takes the part of the language that the file uses. A test compares each message
with the one that Triton's client was generated from.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.resources import files
from typing import Any, Final

from google.protobuf import (  # type: ignore[import-untyped]
    descriptor_pb2,
    descriptor_pool,
    message_factory,
)

PACKAGE: Final = "inference"
SERVICE: Final = "inference.GRPCInferenceService"
_TOKENS = re.compile(r"//[^\n]*|\s+|(\w+|[{}<>=;,()]|\"[^\"]*\")")
_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS: Final = {
    "bool": _Field.TYPE_BOOL, "string": _Field.TYPE_STRING, "bytes": _Field.TYPE_BYTES,
    "int32": _Field.TYPE_INT32, "int64": _Field.TYPE_INT64, "uint32": _Field.TYPE_UINT32,
    "uint64": _Field.TYPE_UINT64, "float": _Field.TYPE_FLOAT, "double": _Field.TYPE_DOUBLE,
}  # fmt: skip


class _Reader:
    """Reads the messages of a file, one token after the other."""

    def __init__(self, text: str) -> None:
        self._tokens = iter([found for found in _TOKENS.findall(text) if found])

    def messages(self) -> Iterator[descriptor_pb2.DescriptorProto]:
        """Yield every message at the top; what is not a message is skipped."""
        for token in self._tokens:
            if token == "message":  # noqa: S105 - a keyword of the language
                yield self._message("")
            elif token == "service":  # noqa: S105
                depth = 0
                for inner in self._tokens:
                    depth += (inner == "{") - (inner == "}")
                    if inner == "}" and not depth:
                        break

    def _message(self, outer: str) -> descriptor_pb2.DescriptorProto:
        name = next(self._tokens)
        made = descriptor_pb2.DescriptorProto(name=name)
        path = f"{outer}.{name}" if outer else name
        self._expect("{")
        while (token := next(self._tokens)) != "}":
            if token == "message":  # noqa: S105
                made.nested_type.append(self._message(path))
            elif token == "oneof":  # noqa: S105
                made.oneof_decl.add(name=next(self._tokens))
                self._expect("{")
                while (kind := next(self._tokens)) != "}":
                    self._field(made, path, kind).oneof_index = 0
            else:
                self._field(made, path, token)
        return made

    def _field(self, made: descriptor_pb2.DescriptorProto, path: str, token: str) -> Any:
        repeated = token in {"repeated", "map"}
        if token == "map":  # noqa: S105
            for wanted in ("<", "string", ","):
                self._expect(wanted)
            value = next(self._tokens)
            self._expect(">")
            kind = "ParametersEntry"
            made.nested_type.append(_entry(value))
        else:
            kind = next(self._tokens) if repeated else token
        name = next(self._tokens)
        self._expect("=")
        number = int(next(self._tokens))
        self._expect(";")
        label = _Field.LABEL_REPEATED if repeated else _Field.LABEL_OPTIONAL
        field = made.field.add(name=name, number=number, label=label)
        inner = {one.name for one in made.nested_type}
        _typed(field, kind, f"{path}.{kind}" if kind in inner else kind)
        return field

    def _expect(self, wanted: str) -> None:
        found = next(self._tokens)
        if found != wanted:
            raise ValueError(f"inference.proto has {found!r} where {wanted!r} must be.")


def _typed(field: Any, kind: str, path: str) -> None:
    if kind in _SCALARS:
        field.type = _SCALARS[kind]
    else:
        field.type, field.type_name = _Field.TYPE_MESSAGE, f".{PACKAGE}.{path}"


def _entry(value: str) -> descriptor_pb2.DescriptorProto:
    """Return the message that stands for one pair of a map from strings."""
    made = descriptor_pb2.DescriptorProto(name="ParametersEntry")
    made.options.map_entry = True
    for number, (name, kind) in enumerate((("key", "string"), ("value", value)), 1):
        field = made.field.add(name=name, number=number, label=_Field.LABEL_OPTIONAL)
        _typed(field, kind, kind)
    return made


def _load() -> dict[str, Any]:
    text = files(__package__).joinpath("inference.proto").read_text("utf-8")
    file = descriptor_pb2.FileDescriptorProto(
        name="inference.proto", package=PACKAGE, syntax="proto3"
    )
    file.message_type.extend(_Reader(text).messages())
    pool = descriptor_pool.DescriptorPool()  # of our own: Triton's client may be here as well
    pool.Add(file)
    return {
        one.name: message_factory.GetMessageClass(
            pool.FindMessageTypeByName(f"{PACKAGE}.{one.name}")
        )
        for one in file.message_type
    }


MESSAGES: Final[dict[str, Any]] = _load()
"""Message classes by name, for example `ModelInferRequest`."""
