"""/v1/devices/{id}/desired: what else comes by the broker, for its device and for operators."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from edgefleet_cloud.auth.caller import Caller
from edgefleet_cloud.auth.guards import allow
from edgefleet_cloud.devices.service import Devices
from edgefleet_cloud.errors import ForbiddenError
from edgefleet_cloud.rollouts.announcer import Announcer
from edgefleet_cloud.web import Db, part

router = APIRouter(tags=["rollouts"])
Service = Annotated[Announcer, Depends(part(Announcer))]
DeviceService = Annotated[Devices, Depends(part(Devices))]


@router.get(
    "/v1/devices/{device_id}/desired",
    summary="Read what a device should run, as signed for it",
    response_class=Response,
    responses={200: {"content": {"application/json": {}}}},
    dependencies=[allow("devices.read", devices=True)],
)
def get_desired(
    service: Service, devices: DeviceService, db: Db, device_id: str, request: Request
) -> Response:
    """Return assignment and trust bundle in one; a device may ask for its own by its signature."""
    caller: Caller = request.state.caller
    if caller.device and caller.actor != f"devices/{device_id}":
        raise ForbiddenError(
            "A device may read its own document alone.", hint="Ask under your own id."
        )
    scope = None if caller.device else request.state.scope
    with db.write() as session:  # it may have to be signed anew
        body = service.document(session, devices.get(session, device_id, scope))
    return Response(body, media_type="application/json", headers={"Cache-Control": "no-store"})
