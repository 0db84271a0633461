"""Tickets for operators, certificates for devices."""

from __future__ import annotations

import base64
from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field

from edgefleet_cloud.auth.guards import Scoped, allow, anyone, limited
from edgefleet_cloud.enrollments.service import Enrolled, Enrollments
from edgefleet_cloud.web import Actor, Db, part

tickets = APIRouter(prefix="/v1/devices", tags=["enrollments"])
router = APIRouter(prefix="/v1/enrollments", tags=["enrollments"])
Service = Annotated[Enrollments, Depends(part(Enrollments))]


class NewTicket(BaseModel):
    """How long a ticket shall be good."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"valid_hours": 24}]})

    valid_hours: int = Field(default=24, ge=1, le=24 * 30)


class Ticket(BaseModel):
    """A ticket. It is shown this once; the device hands it in with its certificate request."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"ticket": "eyJ2IjoxLCJ...", "not_after": "2026-02-01T12:00:00.000Z"}]
        }
    )

    ticket: str
    not_after: str


class EnrollmentRequest(BaseModel):
    """A ticket, and a PKCS#10 request in PEM signed by a fresh ECDSA P-256 key."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "ticket": "eyJ2IjoxLCJ...",
                    "csr": "-----BEGIN CERTIFICATE REQUEST-----\n...\n"
                    "-----END CERTIFICATE REQUEST-----\n",
                }
            ]
        },
    )

    ticket: str = Field(max_length=8192)
    csr: str = Field(max_length=16384)


class TransportAddress(BaseModel):
    """Where messages go."""

    kind: str
    url: str


class Enrollment(BaseModel):
    """Who a device is from now on: certificates as PEM, `root` as base64 of 1.root.json."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "fleet": "demo",
                    "device": "cam-1",
                    "certificate": "-----BEGIN CERTIFICATE-----\n...",
                    "ca": "-----BEGIN CERTIFICATE-----\n...",
                    "root": "eyJzaWduYXR1cmVzIjpb...",
                    "transport": {"kind": "mqtt", "url": "mqtt://127.0.0.1:1883"},
                    "blobs": "http://127.0.0.1:8080/v1/blobs",
                    "counter": 0,
                }
            ]
        }
    )

    fleet: str
    device: str
    certificate: str
    ca: str
    root: str
    transport: TransportAddress
    blobs: str
    counter: int

    @classmethod
    def of(cls, found: Enrolled) -> Enrollment:
        """Return the API's shape."""
        return cls(
            fleet=found.fleet,
            device=found.device,
            certificate=found.certificate,
            ca=found.ca,
            root=base64.b64encode(found.root).decode(),
            transport=TransportAddress(kind="mqtt", url=found.addresses.broker),
            blobs=f"{found.addresses.api}/v1/blobs",
            counter=found.counter,
        )


@tickets.post("/{device_id}/tickets", status_code=201, dependencies=[allow("tickets.write")])
def make_ticket(
    enrollments: Service,
    db: Db,
    scope: Scoped,
    actor: Actor,
    device_id: str,
    body: NewTicket | None = None,
) -> Ticket:
    """Make a one-time ticket with which this device may enrol, for the first time or anew."""
    life = timedelta(hours=(body or NewTicket()).valid_hours)
    with db.write() as session:
        issued = enrollments.issue(session, device_id, life, actor, scope)
    return Ticket(ticket=issued.text, not_after=issued.not_after)


@router.post(
    "",
    status_code=201,
    dependencies=[anyone("the ticket in its body authorises it"), limited("a ticket")],
)
def enroll_device(enrollments: Service, db: Db, body: EnrollmentRequest) -> Enrollment:
    """Exchange a ticket for a certificate. The ticket authorises it; no token is needed."""
    with db.write() as session:
        return Enrollment.of(enrollments.enroll(session, body.ticket, body.csr))
