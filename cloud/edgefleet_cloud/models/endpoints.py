"""HTTP for models: parse, open a session, ask the service, show the answer."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, ConfigDict, Field

from edgefleet_cloud.auth.caller import Scope, describe
from edgefleet_cloud.auth.guards import Scoped, allow
from edgefleet_cloud.errors import ForbiddenError
from edgefleet_cloud.filters import matches
from edgefleet_cloud.models import repository
from edgefleet_cloud.models.service import ModelService
from edgefleet_cloud.models.tables import ModelRow, ModelVersionRow
from edgefleet_cloud.paging import PageOf, Paging
from edgefleet_cloud.web import Actor, Db, decode_base64, part

router = APIRouter(prefix="/v1/models", tags=["models"])
Service = Annotated[ModelService, Depends(part(ModelService))]

_DIGEST = "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"


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


class VersionIn(BaseModel):
    """A version to publish; its blobs are uploaded already."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"version": "1.0.0", "manifest": _DIGEST, "metadata": "eyJzaWduYXR1cmVzIjpb..."}
            ]
        },
    )

    version: str = Field(max_length=64)
    manifest: str = Field(max_length=80)
    metadata: str = Field(description="The publisher's newly signed role file, in base64.")
    provenance: str = Field(
        default="", max_length=80, description="Digest of its OpenSSF Model Signing bundle."
    )


class VariantOut(BaseModel):
    """One build of a version; `size` is that of all its files, in bytes."""

    id: str
    accelerator: str
    runtime: str
    hardware: list[str]
    size: int


class ModelVersion(BaseModel):
    """A published version, immutable. `size` is the manifest's, in bytes."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "0199f3a1-6f0e-7cc2-9f5e-0d8f3d9c1a2b",
                    "model": "digits",
                    "version": "1.0.0",
                    "manifest": _DIGEST,
                    "size": 1843,
                    "release_counter": 1,
                    "security_floor": 0,
                    "state": "published",
                    "created": "2026-11-21T03:22:50.000Z",
                    "provenance": _DIGEST,
                    "variants": [
                        {
                            "id": "onnx-cpu",
                            "accelerator": "cpu",
                            "runtime": "onnxruntime",
                            "hardware": ["*"],
                            "size": 4711,
                        }
                    ],
                }
            ]
        }
    )

    id: str
    model: str
    version: str
    manifest: str
    size: int
    release_counter: int
    security_floor: int
    state: str
    created: str
    variants: list[VariantOut]
    provenance: str


@router.get("", summary="List the models", dependencies=[allow("models.read")])
def list_models(db: Db, paging: Paging) -> PageOf[Model]:
    """Return one page of the models."""
    with db.read() as session:
        rows, token = repository.page_of_models(session, paging)
        return PageOf[Model](items=[_show(row) for row in rows], next_page_token=token)


@router.post("", status_code=201, summary="Create a model", dependencies=[allow("models.write")])
def create_model(body: ModelIn, service: Service, db: Db, scope: Scoped, actor: Actor) -> Model:
    """Create a model; publishing a version does so by itself."""
    _check_scope(scope, body.name)
    with db.write() as session:
        row = service.create(session, body.name, body.description, body.labels, actor)
        return _show(row)


@router.get("/{name}", summary="Show a model", dependencies=[allow("models.read")])
def get_model(name: str, service: Service, db: Db) -> Model:
    """Return one model."""
    with db.read() as session:
        return _show(service.get(session, name))


@router.get(
    "/{name}/versions", summary="List a model's versions", dependencies=[allow("models.read")]
)
def list_versions(name: str, service: Service, db: Db, paging: Paging) -> PageOf[ModelVersion]:
    """Return one page of what is published."""
    with db.read() as session:
        service.get(session, name)
        rows, token = repository.page_of_versions(session, name, paging)
        items = [_show_version(row) for row in rows]
        return PageOf[ModelVersion](items=items, next_page_token=token)


@router.post(
    "/{name}/versions",
    status_code=201,
    summary="Publish a version",
    dependencies=[allow("models.write")],
)
def publish_version(
    name: str,
    body: VersionIn,
    response: Response,
    service: Service,
    db: Db,
    scope: Scoped,
    actor: Actor,
) -> ModelVersion:
    """Accept a signed version; 200 if this very one is published already."""
    _check_scope(scope, name)
    metadata = decode_base64(body.metadata, "metadata")
    with db.write() as session:
        row, new = service.publish(
            session, name, body.version, body.manifest, metadata, actor, body.provenance
        )
        if not new:
            response.status_code = 200
        return _show_version(row)


@router.get(
    "/{name}/versions/{version}", summary="Show a version", dependencies=[allow("models.read")]
)
def get_version(name: str, version: str, service: Service, db: Db) -> ModelVersion:
    """Return one published version."""
    with db.read() as session:
        return _show_version(service.version(session, name, version))


@router.get(
    "/{name}/versions/{version}/manifest",
    summary="Read a version's manifest",
    response_class=Response,
    responses={200: {"content": {"application/json": {}}}},
    dependencies=[allow("models.read")],
)
def get_manifest(name: str, version: str, service: Service, db: Db) -> Response:
    """Return the exact bytes that the publisher signed."""
    with db.read() as session:
        return Response(service.manifest(session, name, version), media_type="application/json")


def _show_version(row: ModelVersionRow) -> ModelVersion:
    fields = row.model_dump(exclude={"variants"})
    return ModelVersion(**fields, variants=[VariantOut(**each) for each in row.variants])


def _show(row: ModelRow) -> Model:
    return Model(name=row.name, description=row.description, labels=row.labels, created=row.created)


def _check_scope(scope: Scope, model: str) -> None:
    if scope is not None and not matches(scope, {"model": model}):
        raise ForbiddenError(
            f"The model {model[:80]!r} is outside of your scope.",
            code="outside_scope",
            hint=f"Your scope is {describe(scope)}.",
        )
