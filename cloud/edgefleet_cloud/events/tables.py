"""The event log's table: rows are appended and never changed."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, Column
from sqlmodel import Field, SQLModel

from edgefleet_shared.audit import Entry


class EventRow(SQLModel, table=True):
    """One thing that happened. `id` only grows and is never given twice.

    Attributes:
        reason: Why, in the words of whoever did it.
        before: What was there; None if the event made it, or changed nothing.
        after: What was there afterwards; None if the event took it away, or changed nothing.
        hash: Chains the row to the one before it (`edgefleet_shared.audit`).
    """

    __tablename__ = "events"
    __table_args__ = {"sqlite_autoincrement": True}

    id: int | None = Field(default=None, primary_key=True)
    ts: str
    type: str = Field(index=True)
    step: str
    subject: str = Field(index=True)
    actor: str
    message: str
    data: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    reason: str = ""
    before: dict[str, Any] | None = Field(
        default=None, sa_column=Column(JSON(none_as_null=True), nullable=True)
    )
    after: dict[str, Any] | None = Field(
        default=None, sa_column=Column(JSON(none_as_null=True), nullable=True)
    )
    hash: str = ""

    def entry(self) -> Entry:
        """Return what of the row is hashed."""
        return Entry(*(getattr(self, name) for name in Entry._fields))
