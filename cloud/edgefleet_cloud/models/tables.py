"""Tables of the models room."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, Column, UniqueConstraint
from sqlmodel import Field, SQLModel


class ModelRow(SQLModel, table=True):
    """A model: a name under which versions are published. Times are RFC 3339 UTC text."""

    __tablename__ = "models"

    name: str = Field(primary_key=True)
    description: str = ""
    labels: dict[str, str] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    created: str = Field(index=True)


class ModelVersionRow(SQLModel, table=True):
    """A published, immutable version. `size` is the manifest's; `variants` as the API shows it.

    Attributes:
        provenance: Digest of its OpenSSF Model Signing bundle; '' if it brought none.
    """

    __tablename__ = "model_versions"
    __table_args__ = (
        UniqueConstraint("model", "version"),
        UniqueConstraint("model", "release_counter"),
    )

    id: str = Field(primary_key=True)
    model: str = Field(foreign_key="models.name")
    version: str
    manifest: str = Field(index=True)
    size: int
    release_counter: int
    security_floor: int
    state: str
    variants: list[dict[str, Any]] = Field(sa_column=Column(JSON, nullable=False))
    provenance: str = ""
    created: str = Field(index=True)
