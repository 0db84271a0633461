"""The signed statements about the log; rows are appended and never changed."""

from __future__ import annotations

from sqlalchemy import Column, LargeBinary
from sqlmodel import Field, SQLModel


class HeadRow(SQLModel, table=True):
    """One statement; `edgefleet_shared.audit.Head` says what its fields mean.

    Attributes:
        envelope: The DSSE envelope, as it was signed.
        key: Id of the key that signed it.
    """

    __tablename__ = "audit_heads"

    number: int = Field(primary_key=True)
    last: int
    count: int
    hash: str
    time: str
    previous: str
    key: str
    envelope: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
