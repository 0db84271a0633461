"""HTTP for models: parse, open a session, ask the service, show the answer."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field

from edgefleet_cloud.models import repository
from edgefleet_cloud.models.service import ModelService
from edgefleet_cloud.models.tables import ModelRow
from edgefleet_cloud.paging import PageOf, Paging
from edgefleet_cloud.web import Actor, Db, part

router = APIRouter(prefix="/v1/models", tags=["models"])
Service = Annotated[ModelService, Depends(part(ModelService))]


class ModelIn(BaseModel):
    """A model to create."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"name": "digits", "description": "Handwritten digits", "labels": {}}]
        },
    )

    name: str
    description: str = Field(default="", max_length=1000)
    labels: dict[str, str] = Field(default_factory=dict, max_length=64)


class Model(BaseModel):
    """A model."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "digits",
                    "description": "Handwritten digits",
                    "labels": {"team": "vision"},
                    "created": "2026-11-21T03:22:50.000Z",
                }
            ]
        }
    )

    name: str
    description: str
    labels: dict[str, str]
    created: str


@router.get("", summary="List the models")
def list_models(db: Db, paging: Paging) -> PageOf[Model]:
    """Return one page of the models."""
    with db.read() as session:
        rows, token = repository.page_of_models(session, paging)
        return PageOf[Model](items=[_show(row) for row in rows], next_page_token=token)


@router.post("", status_code=201, summary="Create a model")
def create_model(body: ModelIn, service: Service, db: Db, actor: Actor) -> Model:
    """Create a model; publishing a version does so by itself."""
    with db.write() as session:
        row = service.create(session, body.name, body.description, body.labels, actor)
        return _show(row)


@router.get("/{name}", summary="Show a model")
def get_model(name: str, service: Service, db: Db) -> Model:
    """Return one model."""
    with db.read() as session:
        return _show(service.get(session, name))


def _show(row: ModelRow) -> Model:
    return Model(name=row.name, description=row.description, labels=row.labels, created=row.created)
