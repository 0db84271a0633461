"""A filter's tree as an SQL condition: the same meaning as `evaluate.matches`, row by row."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import (
    Boolean,
    ColumnElement,
    Dialect,
    String,
    TypeDecorator,
    and_,
    literal,
    not_,
    or_,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.expression import FunctionElement

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

Columns = Mapping[str, Any]
"""Field name to column; a map field to a column of SQLAlchemy's JSON type."""

_ORDERS: dict[Order, Callable[[Any, Any], ColumnElement[bool]]] = {
    "==": operator.eq,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def condition(node: Node, columns: Columns) -> ColumnElement[bool]:
    """Return the filter as a condition over columns.

    NULL never leaves a comparison: each is `column IS NOT NULL AND ...`, so NOT turns it round.
    """
    match node:
        case Not(inner):
            return not_(condition(inner, columns))
        case And(nodes):
            return and_(*(condition(each, columns) for each in nodes))
        case Or(nodes):
            return or_(*(condition(each, columns) for each in nodes))
        case Compare(field, order, value):
            column = _column(field, columns)
            return and_(column.is_not(None), _ORDERS[order](column, value))
        case In(field, values):
            column = _column(field, columns)
            return and_(column.is_not(None), column.in_(values))
        case Like(field, pattern):
            column = _column(field, columns)
            return and_(column.is_not(None), _Glob(column, literal(pattern, _GlobPattern())))
        case Exists(field):
            return _column(field, columns).is_not(None)


def _column(field: Field, columns: Columns) -> ColumnElement[Any]:
    column = columns[field.name]
    found: ColumnElement[Any] = column if field.key is None else column[field.key].as_string()
    return found


class _GlobPattern(TypeDecorator[str]):
    """Our pattern in the words of the database: GLOB on SQLite, whose LIKE ignores case."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        if value is None:
            return None
        if dialect.name == "sqlite":
            return re.sub(r"([?\[])", r"[\1]", value)
        return re.sub(r"([%_!])", r"!\1", value).replace("*", "%")


class _Glob(FunctionElement[bool]):
    """Whether text matches a pattern."""

    type = Boolean()
    inherit_cache = True


@compiles(_Glob, "sqlite")
def _glob(element: _Glob, compiler: SQLCompiler, **words: Any) -> str:
    text, pattern = (compiler.process(clause, **words) for clause in element.clauses)
    return f"({text} GLOB {pattern})"


@compiles(_Glob)
def _like(element: _Glob, compiler: SQLCompiler, **words: Any) -> str:
    text, pattern = (compiler.process(clause, **words) for clause in element.clauses)
    return f"({text} LIKE {pattern} ESCAPE '!')"
