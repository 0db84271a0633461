"""/v1/iothubs: how the fleet manager stands with its Azure IoT Hubs."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends

from edgefleet_cloud.auth.guards import Scoped, allow
from edgefleet_cloud.iothub.schemas import IotHubStatus
from edgefleet_cloud.iothub.status import Hubs
from edgefleet_cloud.paging import PageOf
from edgefleet_cloud.web import Db, part

router = APIRouter(prefix="/v1/iothubs", tags=["iothubs"])
Service = Annotated[Hubs, Depends(part(Hubs))]


@router.get("", dependencies=[allow("devices.read")])
def list_iothubs(hubs: Service, db: Db, scope: Scoped) -> PageOf[IotHubStatus]:
    """List the hubs that are configured, each as this server sees it now."""
    with db.read() as session:
        found = hubs.all(session, named=scope is None)
        return PageOf(items=[IotHubStatus.of(each) for each in found])


@router.get("/{name}", dependencies=[allow("devices.read")])
def get_iothub(hubs: Service, db: Db, scope: Scoped, name: str) -> IotHubStatus:
    """Answer one hub: limits, what waits, how far events are behind, what its registry holds."""
    with db.read() as session:
        return IotHubStatus.of(hubs.get(session, name, named=scope is None))
