"""Reading tokens; every function works in the caller's transaction."""

from __future__ import annotations

from collections.abc import Sequence

from sqlmodel import Session, select

from edgefleet_cloud.auth.tables import TokenRow


def by_hash(session: Session, digest: str) -> TokenRow | None:
    """Return the token with this hash, revoked or not."""
    return session.exec(select(TokenRow).where(TokenRow.hash == digest)).first()


def by_name(session: Session, name: str) -> TokenRow | None:
    """Return the token of this name, revoked or not."""
    return session.get(TokenRow, name)


def every(session: Session) -> Sequence[TokenRow]:
    """Return all tokens, by name."""
    return session.exec(select(TokenRow).order_by(TokenRow.name)).all()
