"""create_app: routers, error handlers and middleware, nothing else."""

from __future__ import annotations

from fastapi import APIRouter, Depends, FastAPI
from pydantic import BaseModel, ConfigDict

import edgefleet_cloud
from edgefleet_cloud import http_errors
from edgefleet_cloud.audit import endpoints as audit
from edgefleet_cloud.auth import endpoints as tokens
from edgefleet_cloud.auth.guards import anyone, authenticate
from edgefleet_cloud.blobs import endpoints as uploads
from edgefleet_cloud.broker import endpoints as broker
from edgefleet_cloud.config import Limits
from edgefleet_cloud.database import Database
from edgefleet_cloud.devices import endpoints as devices
from edgefleet_cloud.enrollments import endpoints as enrollments
from edgefleet_cloud.enrollments import group_endpoints as group_tickets
from edgefleet_cloud.events import endpoints as events
from edgefleet_cloud.groups import endpoints as groups
from edgefleet_cloud.http_errors import Problem
from edgefleet_cloud.idempotency.middleware import Idempotency, show_again
from edgefleet_cloud.idempotency.service import Repeated
from edgefleet_cloud.iothub import endpoints as iothubs
from edgefleet_cloud.middleware import BodyLimit, Outermost
from edgefleet_cloud.models import endpoints as models
from edgefleet_cloud.ports import system_clock
from edgefleet_cloud.reports import endpoints as reports
from edgefleet_cloud.rollouts import documents
from edgefleet_cloud.rollouts import endpoints as rollouts
from edgefleet_cloud.trust import endpoints as trust
from edgefleet_cloud.web import Db, Parts

# Behind a bearer token.
GUARDED: tuple[APIRouter, ...] = (
    trust.router,
    uploads.router,
    models.router,
    devices.router,
    enrollments.tickets,
    group_tickets.router,
    groups.router,
    iothubs.router,
    events.router,
    audit.router,
    reports.router,
    rollouts.router,
    tokens.router,
)
# These authorise their callers themselves.
OPEN: tuple[APIRouter, ...] = (
    enrollments.router,
    enrollments.renewals,
    uploads.blob_router,
    broker.router,
    documents.router,
)

health = APIRouter(tags=["health"])


class Health(BaseModel):
    """The server's word on itself."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"status": "ok"}]})

    status: str = "ok"


@health.get("/healthz", summary="Is the process alive?", dependencies=[anyone("it tells nothing")])
async def healthz() -> Health:
    """Answer, whatever else is wrong."""
    return Health()


@health.get("/readyz", summary="Can requests be served?", dependencies=[anyone("it tells nothing")])
def readyz(db: Db) -> Health:
    """Answer once the database does."""
    with db.read() as session:
        session.connection().exec_driver_sql("SELECT 1")
    return Health()


def create_app(parts: Parts, *, https: bool = False) -> FastAPI:
    """Return the API over these services; `Database` and `Limits` must be among them.

    Args:
        parts: The services.
        https: Whether callers reach it by https.
    """
    app = FastAPI(
        title="edgefleet fleet manager",
        version=edgefleet_cloud.__version__,
        openapi_url="/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        responses={"default": {"model": Problem, "description": "A problem (RFC 9457)"}},
    )
    app.state.parts = parts
    http_errors.install(app)
    for router in GUARDED:
        app.include_router(router, dependencies=[Depends(authenticate)])
    for router in (*OPEN, health):
        app.include_router(router)
    app.add_exception_handler(Repeated, show_again)
    app.add_middleware(Idempotency, database=parts.get(Database), clock=system_clock)
    app.add_middleware(BodyLimit, max_bytes=parts.get(Limits).body_max_bytes)
    app.add_middleware(Outermost, https=https)
    return app
