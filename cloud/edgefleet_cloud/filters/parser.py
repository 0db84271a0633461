"""From a filter's text to its tree: recursive descent, checked against a schema, capped."""

from __future__ import annotations

from edgefleet_cloud.filters.errors import FilterError, misfit
from edgefleet_cloud.filters.fields import Kind, Schema
from edgefleet_cloud.filters.tokens import Token, tokens
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
    Value,
)

MAX_DEPTH = 16
MAX_TERMS = 64
MAX_VALUES = 200
MAX_STARS = 8

_KEYWORDS = frozenset({"and", "or", "not", "in", "like", "exists", "true", "false"})
_ORDERS: dict[str, Order] = {"==": "==", "!=": "==", "<": "<", "<=": "<=", ">": ">", ">=": ">="}


def parse(text: str, schema: Schema) -> Node:
    """Return what a filter means.

    Raises:
        FilterError: It cannot be used; the error says at which character and what to write there.
    """
    return _Parser(text, schema).whole()


class _Parser:
    def __init__(self, text: str, schema: Schema) -> None:
        self._tokens = list(tokens(text))
        self._next = 0
        self._schema = schema
        self._depth = 0
        self._terms = 0

    def whole(self) -> Node:
        if self._peek().sort == "end":
            raise misfit(0, "it is empty", hint='For example: labels.site == "berlin".')
        node = self._either()
        token = self._peek()
        if token.sort != "end":
            raise self._unexpected(token, "'and', 'or' or the end")
        return node

    def _either(self) -> Node:
        nodes = [self._both()]
        while self._take("or"):
            nodes.append(self._both())
        return nodes[0] if len(nodes) == 1 else Or(tuple(nodes))

    def _both(self) -> Node:
        nodes = [self._single()]
        while self._take("and"):
            nodes.append(self._single())
        return nodes[0] if len(nodes) == 1 else And(tuple(nodes))

    def _single(self) -> Node:
        token = self._peek()
        if self._take("not"):
            self._deeper(token)
            node: Node = Not(self._single())
            self._depth -= 1
            return node
        if self._take("("):
            self._deeper(token)
            node = self._either()
            self._expect(")")
            self._depth -= 1
            return node
        return self._term()

    def _term(self) -> Node:
        self._terms += 1
        if self._terms > MAX_TERMS:
            raise misfit(
                self._peek().position,
                f"it may compare {MAX_TERMS} times",
                hint="Join values with 'in', or give the devices a label of their own.",
            )
        if self._take("exists"):
            self._expect("(")
            field = self._field()
            self._expect(")")
            return Exists(field)
        field = self._field()
        token = self._peek()
        if self._take("not"):
            return Not(self._membership(field, "'in' or 'like' after 'not'"))
        if token.sort == "sign" and token.text in _ORDERS:
            return self._comparison(field)
        return self._membership(field, "a comparison such as '==', 'in' or 'like'")

    def _comparison(self, field: Field) -> Node:
        sign = self._advance()
        if sign.text not in {"==", "!="} and self._schema.kind(field) is Kind.FLAG:
            raise misfit(sign.position, f"{field} has no order", hint="Use '==' or '!='.")
        node = Compare(field, _ORDERS[sign.text], self._value(field))
        return Not(node) if sign.text == "!=" else node

    def _membership(self, field: Field, expected: str) -> Node:
        if self._take("in"):
            return In(field, self._values(field))
        if self._take("like"):
            return self._like(field)
        raise self._unexpected(self._peek(), expected)

    def _values(self, field: Field) -> tuple[Value, ...]:
        opening = self._peek()
        self._expect("(")
        values = [self._value(field)]
        while self._take(","):
            values.append(self._value(field))
        self._expect(")")
        if len(values) > MAX_VALUES:
            raise misfit(opening.position, f"a list may have {MAX_VALUES} values")
        return tuple(values)

    def _like(self, field: Field) -> Node:
        token = self._peek()
        if self._schema.kind(field) is not Kind.TEXT:
            raise misfit(token.position, f"{field} is not text, which 'like' needs")
        pattern = str(self._value(field))
        if pattern.count("*") > MAX_STARS:
            raise misfit(token.position, f"a pattern may have {MAX_STARS} stars")
        return Like(field, pattern)

    def _field(self) -> Field:
        token = self._peek()
        if token.sort != "word" or token.text in _KEYWORDS:
            raise self._unexpected(token, "a field")
        self._advance()
        return self._schema.find(token.text, token.position)

    def _value(self, field: Field) -> Value:
        token = self._peek()
        if token.sort != "value":
            raise self._unexpected(token, "a value", hint="Text stands in quotes.")
        self._advance()
        return self._schema.check(field, token.value, token.position)

    def _deeper(self, token: Token) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise misfit(token.position, f"it is nested deeper than {MAX_DEPTH}")

    def _peek(self) -> Token:
        return self._tokens[self._next]

    def _advance(self) -> Token:
        token = self._tokens[self._next]
        self._next += 1
        return token

    def _take(self, text: str) -> bool:
        token = self._peek()
        if token.sort in {"word", "sign"} and token.text == text:
            self._next += 1
            return True
        return False

    def _expect(self, text: str) -> None:
        if not self._take(text):
            raise self._unexpected(self._peek(), f"{text!r}")

    def _unexpected(self, token: Token, expected: str, hint: str = "") -> FilterError:
        got = "it ends" if token.sort == "end" else f"it has {token.text[:80]!r}"
        if token.text.lower() in _KEYWORDS and token.text != token.text.lower():
            hint = f"Write {token.text.lower()!r}."
        return misfit(token.position, f"{got} where {expected} should stand", hint=hint)
