"""A filter's tree against one resource in memory."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

from edgefleet_cloud.filters.tree import (
    And,
    Compare,
    Exists,
    Field,
    In,
    Like,
    Node,
    Not,
    Or,
    Order,
)

_ORDERS: dict[Order, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def matches(node: Node, resource: Mapping[str, Any]) -> bool:
    """Return whether a resource passes the filter.

    Args:
        node: What `parse` gave.
        resource: Field name to value; map fields to a mapping of text by key; times as RFC 3339
            text in the form of `times.format_time`. Missing and None are the same.
    """
    match node:
        case Not(inner):
            return not matches(inner, resource)
        case And(nodes):
            return all(matches(each, resource) for each in nodes)
        case Or(nodes):
            return any(matches(each, resource) for each in nodes)
        case Compare(field, order, value):
            found = _read(field, resource)
            return found is not None and _ORDERS[order](found, value)
        case In(field, values):
            return _read(field, resource) in values
        case Like(field, pattern):
            found = _read(field, resource)
            return found is not None and _like(found, pattern)
        case Exists(field):
            return _read(field, resource) is not None


def _read(field: Field, resource: Mapping[str, Any]) -> Any:
    value = resource.get(field.name)
    if field.key is None or value is None:
        return value
    return value.get(field.key)


def _like(text: str, pattern: str) -> bool:
    """Match without going back: the earliest place for each part leaves most for the next."""
    first, *rest = pattern.split("*")
    if not rest:
        return text == pattern
    *middle, last = rest
    if not text.startswith(first):
        return False
    position = len(first)
    for part in middle:
        found = text.find(part, position)
        if found < 0:
            return False
        position = found + len(part)
    return text.endswith(last) and len(text) - len(last) >= position
