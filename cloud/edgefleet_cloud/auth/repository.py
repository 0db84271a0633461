"""Reading tokens; every function works in the caller's transaction."""

from __future__ import annotations

from collections.abc import Sequence

from sqlmodel import Session, select

from edgefleet_cloud.auth.tables import TokenRow
from edgefleet_cloud.filters import Kind, Schema, condition, parse
from edgefleet_cloud.paging import PageQuery, paginate

TOKENS = Schema(dict.fromkeys(("name", "role", "maker"), Kind.TEXT) | {"created": Kind.TIME})
_COLUMNS = {name: getattr(TokenRow, name) for name in TOKENS.fields}


def by_hash(session: Session, digest: str) -> TokenRow | None:
    """Return the token with this hash, revoked or not."""
    return session.exec(select(TokenRow).where(TokenRow.hash == digest)).first()


def by_name(session: Session, name: str) -> TokenRow | None:
    """Return the token of this name, revoked or not."""
    return session.get(TokenRow, name)


def every(session: Session) -> Sequence[TokenRow]:
    """Return all tokens, by name."""
    return session.exec(select(TokenRow).order_by(TokenRow.name)).all()


def page(session: Session, query: PageQuery) -> tuple[Sequence[TokenRow], str]:
    """Return one page of the tokens; raises InvalidInputError for a bad filter or page token."""
    statement = select(TokenRow)
    if query.filter:
        statement = statement.where(condition(parse(query.filter, TOKENS), _COLUMNS))
    sortable = {"name": TokenRow.name, "created": TokenRow.created}
    return paginate(session, statement, query, sortable, TokenRow.name, default="name")
