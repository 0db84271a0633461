"""/v1/iothubs: how the fleet manager stands with its Azure IoT Hubs."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends

from edgefleet_cloud.auth.guards import Scoped, allow
from edgefleet_cloud.devices.service import Devices
from edgefleet_cloud.events.service import EventLog
from edgefleet_cloud.iothub.schemas import Admission, Answer, IotHubStatus
from edgefleet_cloud.iothub.status import Hubs
from edgefleet_cloud.iothub.tables import UNKNOWN
from edgefleet_cloud.iothub.ways import Ways
from edgefleet_cloud.paging import PageOf
from edgefleet_cloud.ports import system_clock
from edgefleet_cloud.web import Actor, Db, part
from edgefleet_shared.steps import Step
from edgefleet_shared.times import format_time

router = APIRouter(prefix="/v1/iothubs", tags=["iothubs"])
Service = Annotated[Hubs, Depends(part(Hubs))]
AllWays = Annotated[Ways, Depends(part(Ways))]
AllDevices = Annotated[Devices, Depends(part(Devices))]
Log = Annotated[EventLog, Depends(part(EventLog))]


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


@router.put(
    "/{name}/devices/{device_id}", status_code=202, dependencies=[allow("devices.provision")]
)
def admit_device(
    ways: AllWays,
    devices: AllDevices,
    events: Log,
    db: Db,
    scope: Scoped,
    actor: Actor,
    name: str,
    device_id: str,
) -> Admission:
    """Have a hub know a device that enrolled on another way; its configuration then moves it."""
    with db.write() as session:
        row = devices.get(session, device_id, scope)
        hub, before = ways.welcome(session, row, name, format_time(system_clock()))
        events.record(
            session,
            type="device.admitted",
            step=Step.ANNOUNCE,
            subject=f"devices/{row.id}",
            message=f"{row.id} may come by IoT Hub {hub.name}.",
            actor=actor,
            data={"hub": hub.name},
            before=None if before is None else {"hub": hub.name, "status": before},
            after={"hub": hub.name, "status": UNKNOWN},
        )
        return Admission(hub=hub.name, device=row.id, url=hub.address)


@router.post("/{name}/devices/{device_id}/ping", dependencies=[allow("devices.write")])
def ping_device(
    hubs: Service, devices: AllDevices, db: Db, scope: Scoped, name: str, device_id: str
) -> Answer:
    """Ask a device by a direct method whether it hears us now, whatever it has last reported."""
    with db.read() as session:
        row = devices.get(session, device_id, scope)
    said = hubs.ping(name, row.id)
    return Answer(hub=name, device=row.id, **said._asdict())
