"""Tables of the auth room."""

from __future__ import annotations

from sqlmodel import Field, SQLModel


class TokenRow(SQLModel, table=True):
    """A bearer token by its sha256; the token itself is shown once and stored nowhere."""

    __tablename__ = "tokens"

    name: str = Field(primary_key=True)
    hash: str = Field(unique=True)
    role: str = "admin"
    created: str
    revoked: str = ""
