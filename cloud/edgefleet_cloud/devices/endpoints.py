"""/v1/devices: register, look up, label, decommission, and what a device should and does run."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Response

from edgefleet_cloud.auth.guards import Scoped, allow
from edgefleet_cloud.devices import importing
from edgefleet_cloud.devices.importing import Wanted
from edgefleet_cloud.devices.schemas import (
    Device,
    DeviceChange,
    DeviceState,
    Imported,
    NewDevice,
    NewDevices,
)
from edgefleet_cloud.devices.service import Devices
from edgefleet_cloud.paging import PageOf, Paging
from edgefleet_cloud.web import Actor, Db, IfMatch, check_match, part, set_etag

router = APIRouter(prefix="/v1/devices", tags=["devices"])
Service = Annotated[Devices, Depends(part(Devices))]


@router.get("", dependencies=[allow("devices.read")])
def list_devices(devices: Service, db: Db, scope: Scoped, query: Paging) -> PageOf[Device]:
    """List devices; filter on id, hardware, state, online, last_seen, created and labels.*."""
    with db.read() as session:
        rows, token = devices.page(session, query, scope)
        return PageOf(items=[Device.of(row) for row in rows], next_page_token=token)


@router.post("", status_code=201, dependencies=[allow("devices.provision")])
def register_device(
    devices: Service, db: Db, scope: Scoped, actor: Actor, body: NewDevice, response: Response
) -> Device:
    """Register a device; `POST /v1/devices/{id}/tickets` then lets it enrol."""
    with db.write() as session:
        row = devices.create(session, body.id, body.labels, body.hardware, actor, scope)
        set_etag(response, row.revision)
        return Device.of(row)


@router.post("/import", dependencies=[allow("devices.provision")])
def import_devices(
    devices: Service, db: Db, scope: Scoped, actor: Actor, body: NewDevices
) -> Imported:
    """Register up to 20,000 devices, all of them or none; every problem is named."""
    wanted = [Wanted(each.id, each.labels, each.hardware) for each in body.devices]
    with db.write() as session:
        importing.register(session, devices, wanted, actor, scope, dry_run=body.dry_run)
    return Imported(devices=len(wanted), dry_run=body.dry_run)


@router.get("/{device_id}", dependencies=[allow("devices.read")])
def get_device(
    devices: Service, db: Db, scope: Scoped, device_id: str, response: Response
) -> Device:
    """Answer one device. Its ETag changes with what operators set, not with reports."""
    with db.read() as session:
        row = devices.get(session, device_id, scope)
        set_etag(response, row.revision)
        return Device.of(row)


@router.patch("/{device_id}", dependencies=[allow("devices.write")])
def change_device(
    devices: Service,
    db: Db,
    scope: Scoped,
    actor: Actor,
    device_id: str,
    body: DeviceChange,
    response: Response,
    if_match: IfMatch = None,
) -> Device:
    """Change labels and hardware by a merge patch."""
    with db.write() as session:
        row = devices.get(session, device_id, scope)
        check_match(if_match, row.revision)
        devices.change(session, row, body.labels, body.hardware, actor, scope)
        set_etag(response, row.revision)
        return Device.of(row)


@router.delete("/{device_id}", dependencies=[allow("devices.provision")])
def decommission_device(
    devices: Service, db: Db, scope: Scoped, actor: Actor, device_id: str
) -> Device:
    """Decommission a device: its key counts no more, its history stays, its id is not reused."""
    with db.write() as session:
        return Device.of(
            devices.decommission(session, devices.get(session, device_id, scope), actor)
        )


@router.post("/{device_id}/revoke", dependencies=[allow("devices.provision")])
def revoke_device(devices: Service, db: Db, scope: Scoped, actor: Actor, device_id: str) -> Device:
    """Take a device's key and certificates back and end its connection; a ticket readmits it."""
    with db.write() as session:
        return Device.of(devices.revoke(session, devices.get(session, device_id, scope), actor))


@router.get("/{device_id}/state", dependencies=[allow("devices.read")])
def get_device_state(devices: Service, db: Db, scope: Scoped, device_id: str) -> DeviceState:
    """Answer what a device should run beside what it last reported."""
    with db.read() as session:
        row = devices.get(session, device_id, scope)
        return DeviceState.of(row, devices.desired(session, device_id))
