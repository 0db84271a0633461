"""Reading and writing models; every function works in the caller's transaction."""

from __future__ import annotations

from collections.abc import Sequence

from sqlmodel import Session, col, func, select

from edgefleet_cloud.filters import Kind, Schema, condition, parse
from edgefleet_cloud.models.tables import ModelRow, ModelVersionRow
from edgefleet_cloud.paging import PageQuery, paginate

_SORTABLE = {"name": ModelRow.name, "created": ModelRow.created}
_VERSIONS_SORTABLE = {
    "created": ModelVersionRow.created,
    "release_counter": ModelVersionRow.release_counter,
}
MODELS = Schema({"name": Kind.TEXT, "created": Kind.TIME}, frozenset({"labels"}))
VERSIONS = Schema(
    {
        "version": Kind.TEXT,
        "manifest": Kind.TEXT,
        "state": Kind.TEXT,
        "release_counter": Kind.NUMBER,
        "security_floor": Kind.NUMBER,
        "created": Kind.TIME,
    }
)
_MODEL_COLUMNS = {name: getattr(ModelRow, name) for name in (*MODELS.fields, *MODELS.maps)}
_VERSION_COLUMNS = {name: getattr(ModelVersionRow, name) for name in VERSIONS.fields}


def get_model(session: Session, name: str) -> ModelRow | None:
    """Return a model, or None."""
    return session.get(ModelRow, name)


def page_of_models(session: Session, query: PageQuery) -> tuple[Sequence[ModelRow], str]:
    """Return one page of the models; raises InvalidInputError for a bad filter or token."""
    statement = select(ModelRow)
    if query.filter:
        statement = statement.where(condition(parse(query.filter, MODELS), _MODEL_COLUMNS))
    return paginate(session, statement, query, _SORTABLE, ModelRow.name, default="name")


def get_version(session: Session, model: str, version: str) -> ModelVersionRow | None:
    """Return a version of a model, or None."""
    return session.exec(
        select(ModelVersionRow).where(
            ModelVersionRow.model == model, ModelVersionRow.version == version
        )
    ).first()


def by_manifest(session: Session, manifest: str) -> ModelVersionRow | None:
    """Return the version with this manifest digest, or None."""
    return session.exec(select(ModelVersionRow).where(ModelVersionRow.manifest == manifest)).first()


def newest_counter(session: Session, model: str) -> int:
    """Return the highest release counter of a model; 0: nothing is published."""
    found = session.exec(
        select(func.max(col(ModelVersionRow.release_counter))).where(ModelVersionRow.model == model)
    ).one()
    return found or 0


def page_of_versions(
    session: Session, model: str, query: PageQuery
) -> tuple[Sequence[ModelVersionRow], str]:
    """Return one page of a model's versions; raises InvalidInputError for a bad filter or token."""
    statement = select(ModelVersionRow).where(ModelVersionRow.model == model)
    if query.filter:
        statement = statement.where(condition(parse(query.filter, VERSIONS), _VERSION_COLUMNS))
    return paginate(
        session,
        statement,
        query,
        _VERSIONS_SORTABLE,
        ModelVersionRow.release_counter,
        default="release_counter",
    )
