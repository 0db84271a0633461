"""Tables of the auth room. Times are RFC 3339 UTC text in the form of `times.format_time`."""

from __future__ import annotations

from sqlmodel import Field, SQLModel


class TokenRow(SQLModel, table=True):
    """A bearer token by its sha256; the token itself is shown once and stored nowhere.

    Attributes:
        scope: The filter within which its role holds, in its one spelling; '' is everything.
        maker: The actor who made it.
        expires: Until when it holds; '' is for ever.
        used: When it was last used, to the hour; '' is never.
    """

    __tablename__ = "tokens"

    name: str = Field(primary_key=True)
    hash: str = Field(unique=True)
    role: str = "viewer"
    scope: str = ""
    maker: str = ""
    created: str
    expires: str = ""
    used: str = ""
    revoked: str = ""
