"""The tickets' tables."""

from __future__ import annotations

from sqlalchemy import JSON, Column
from sqlmodel import Field, SQLModel


class TicketRow(SQLModel, table=True):
    """One ticket, known by the hash of its secret alone; `used` is when it was burnt, or None.

    `way` is where its device shall be reached: a hub's name, or `mqtt`; '' = as is the default.
    """

    __tablename__ = "tickets"

    secret_hash: str = Field(primary_key=True)
    device: str = Field(foreign_key="devices.id", index=True)
    created: str
    not_after: str
    used: str | None = None
    way: str = ""


class GroupTicketRow(SQLModel, table=True):
    """One ticket for up to `limit` devices of a kind; `used` of them have enrolled with it.

    Their ids begin with `prefix` and `-`; `ended` is when somebody ended it, or None. None of them
    is outside of `scope`, that of who made it; '' is everything. `way` is as a ticket's.
    """

    __tablename__ = "group_tickets"

    id: str = Field(primary_key=True)
    secret_hash: str = Field(unique=True)
    prefix: str
    labels: dict[str, str] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    hardware: str
    limit: int
    scope: str = ""
    used: int = 0
    created: str
    not_after: str
    ended: str | None = None
    way: str = ""


class GroupUseRow(SQLModel, table=True):
    """One use of a group ticket: the key that used it, and whose it is."""

    __tablename__ = "group_ticket_uses"

    ticket: str = Field(primary_key=True, foreign_key="group_tickets.id")
    key: str = Field(primary_key=True)
    device: str
