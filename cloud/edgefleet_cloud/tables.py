"""Every table of every room, so that SQLModel.metadata is whole; migrations compare against it."""

from __future__ import annotations

from sqlmodel import SQLModel

from edgefleet_cloud.auth import tables as auth
from edgefleet_cloud.models import tables as models

METADATA = SQLModel.metadata

__all__ = ["METADATA", "auth", "models"]
