"""The tickets' table."""

from __future__ import annotations

from sqlmodel import Field, SQLModel


class TicketRow(SQLModel, table=True):
    """One ticket, known by the hash of its secret alone; `used` is when it was burnt, or None."""

    __tablename__ = "tickets"

    secret_hash: str = Field(primary_key=True)
    device: str = Field(foreign_key="devices.id", index=True)
    created: str
    not_after: str
    used: str | None = None
