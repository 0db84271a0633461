"""The groups' table."""

from __future__ import annotations

from sqlmodel import Field, SQLModel


class GroupRow(SQLModel, table=True):
    """A named selector.

    Attributes:
        scope: Within which it means devices: that of who made it, '' is everything.
        revision: The ETag.
    """

    __tablename__ = "groups"

    name: str = Field(primary_key=True)
    selector: str
    scope: str = ""
    created: str
    updated: str
    revision: int = 1
