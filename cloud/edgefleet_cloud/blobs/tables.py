"""Tables of the blobs room."""

from __future__ import annotations

from sqlmodel import Field, SQLModel


class UploadRow(SQLModel, table=True):
    """An upload that was begun. How far it is, its file's length says, so that both agree."""

    __tablename__ = "uploads"

    id: str = Field(primary_key=True)
    digest: str = Field(index=True)
    size: int
    state: str
    created: str = Field(index=True)
