"""Telemetry, swap receipts, and who ran what when."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query

from edgefleet_cloud.auth.guards import Scoped, allow
from edgefleet_cloud.paging import PageOf, Paging
from edgefleet_cloud.reports.schemas import Activation, Gap, Receipt, Telemetry, TelemetryItem
from edgefleet_cloud.reports.service import Reports, TelemetryQuery
from edgefleet_cloud.web import Db, part

router = APIRouter(prefix="/v1", tags=["reports"])
Service = Annotated[Reports, Depends(part(Reports))]
At = Annotated[str, Query(description="A time, RFC 3339 in UTC.")]
Slot = Annotated[str, Query(description="A slot's name, which is its model's; all without it.")]


@router.get("/devices/{device_id}/history", dependencies=[allow("reports.read")])
def get_history(
    reports: Service,
    db: Db,
    scope: Scoped,
    device_id: str,
    paging: Paging,
    slot: Slot = "",
    at: At = "",
) -> PageOf[Activation]:
    """Answer which digests ran on a device, oldest first: ever, or those of one time.

    Times are the device's own; an activation ends where the next one of its slot begins.
    """
    with db.read() as session:
        rows, token = reports.history(session, device_id, slot, at, paging, scope)
    return PageOf(items=[Activation.of(row) for row in rows], next_page_token=token)


@router.get("/models/{name}/versions/{version}/devices", dependencies=[allow("reports.read")])
def list_devices_of_version(
    reports: Service, db: Db, scope: Scoped, name: str, version: str, paging: Paging, at: At = ""
) -> PageOf[Activation]:
    """Answer which devices had a version active at one time, or have it now."""
    with db.read() as session:
        rows, token = reports.where_ran(session, name, version, at, paging, scope)
    return PageOf(items=[Activation.of(row) for row in rows], next_page_token=token)


@router.get("/receipts", dependencies=[allow("reports.read")])
def list_receipts(
    reports: Service, db: Db, scope: Scoped, paging: Paging, device: str = "", slot: Slot = ""
) -> PageOf[Receipt]:
    """List swap receipts, oldest first: what each change of the active version did to requests."""
    with db.read() as session:
        rows, token = reports.receipts(session, device, slot, paging, scope)
    return PageOf(items=[Receipt.of(row) for row in rows], next_page_token=token)


@router.get("/telemetry", dependencies=[allow("reports.read")])
def read_telemetry(
    reports: Service,
    db: Db,
    scope: Scoped,
    slot: Slot = "",
    digest: str = "",
    version: str = "",
    device: str = "",
    start: Annotated[str, Query(alias="from", description="Windows that end after this.")] = "",
    end: Annotated[str, Query(alias="to", description="Windows that begin before this.")] = "",
) -> Telemetry:
    """Answer what each digest answered, merged exactly over devices and windows.

    `gaps` says of which streams items are missing: some may still come.
    """
    query = TelemetryQuery(slot, digest, version, device, start, end)
    with db.read() as session:
        found = reports.telemetry(session, query, scope)
        gaps = reports.gaps(session, device, scope)
    return Telemetry(
        items=[TelemetryItem.of(each) for each in found], gaps=[Gap.of(row) for row in gaps]
    )
