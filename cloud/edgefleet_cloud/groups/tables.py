"""The groups' table."""

from __future__ import annotations

from sqlmodel import Field, SQLModel


class GroupRow(SQLModel, table=True):
    """A named selector; `revision` is the ETag."""

    __tablename__ = "groups"

    name: str = Field(primary_key=True)
    selector: str
    created: str
    updated: str
    revision: int = 1
