"""What a filter means, as a tree of frozen values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Value = str | int | float | bool
Order = Literal["==", "<", "<=", ">", ">="]


@dataclass(frozen=True, slots=True)
class Field:
    """A field, or one key of a map field such as `labels.site`."""

    name: str
    key: str | None = None

    def __str__(self) -> str:
        return self.name if self.key is None else f"{self.name}.{self.key}"


@dataclass(frozen=True, slots=True)
class Compare:
    """A field against one value."""

    field: Field
    order: Order
    value: Value


@dataclass(frozen=True, slots=True)
class In:
    """A field against a list of values."""

    field: Field
    values: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Like:
    """A field against text in which `*` stands for any text."""

    field: Field
    pattern: str


@dataclass(frozen=True, slots=True)
class Exists:
    """Whether a field has a value."""

    field: Field


@dataclass(frozen=True, slots=True)
class Not:
    """The opposite."""

    node: Node


@dataclass(frozen=True, slots=True)
class And:
    """All of two or more."""

    nodes: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """Any of two or more."""

    nodes: tuple[Node, ...]


Node = Compare | In | Like | Exists | Not | And | Or


def render(node: Node) -> str:
    """Return the filter in its one canonical spelling; parsing it gives the same tree."""
    match node:
        case Compare(field, order, value):
            return f"{field} {order} {_literal(value)}"
        case In(field, values):
            return f"{field} in ({', '.join(_literal(value) for value in values)})"
        case Like(field, pattern):
            return f"{field} like {_literal(pattern)}"
        case Exists(field):
            return f"exists({field})"
        case Not(inner):
            return f"not {_grouped(inner)}"
        case And(nodes):
            return " and ".join(_grouped(each) for each in nodes)
        case Or(nodes):
            return " or ".join(_grouped(each) for each in nodes)


def _grouped(node: Node) -> str:
    text = render(node)
    return f"({text})" if isinstance(node, And | Or) else text


def _literal(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    return str(value)
