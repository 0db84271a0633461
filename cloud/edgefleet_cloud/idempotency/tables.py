"""Tables of the idempotency room."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, Column
from sqlmodel import Field, SQLModel


class IdempotencyRow(SQLModel, table=True):
    """One key of one caller. It is committed with the request's effect; its answer comes after.

    `caller` and `request` are sha256; `status` 0 says that the answer is not known (yet).
    """

    __tablename__ = "idempotency_keys"

    caller: str = Field(primary_key=True)
    key: str = Field(primary_key=True)
    request: str
    created: str = Field(index=True)
    status: int = 0
    headers: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    body: bytes = b""
