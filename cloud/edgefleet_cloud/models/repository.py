"""Reading and writing models; every function works in the caller's transaction."""

from __future__ import annotations

from collections.abc import Sequence

from sqlmodel import Session, select

from edgefleet_cloud.models.tables import ModelRow
from edgefleet_cloud.paging import PageQuery, paginate

_SORTABLE = {"name": ModelRow.name, "created": ModelRow.created}


def get_model(session: Session, name: str) -> ModelRow | None:
    """Return a model, or None."""
    return session.get(ModelRow, name)


def page_of_models(session: Session, query: PageQuery) -> tuple[Sequence[ModelRow], str]:
    """Return one page of the models."""
    return paginate(session, select(ModelRow), query, _SORTABLE, ModelRow.name, default="name")
