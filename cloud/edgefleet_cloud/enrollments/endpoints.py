"""Tickets for operators, certificates for devices."""

from __future__ import annotations

import base64
from datetime import timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field

from edgefleet_cloud.auth.guards import Scoped, allow, anyone, limited
from edgefleet_cloud.devices.schemas import Device
from edgefleet_cloud.enrollments.asking import Asking
from edgefleet_cloud.enrollments.renewals import Renewals
from edgefleet_cloud.enrollments.service import Enrolled, Enrollments
from edgefleet_cloud.errors import ForbiddenError
from edgefleet_cloud.web import Actor, Db, decode_base64, part
from edgefleet_shared.errors import InvalidInputError, TrustError

tickets = APIRouter(prefix="/v1/devices", tags=["enrollments"])
router = APIRouter(prefix="/v1/enrollments", tags=["enrollments"])
renewals = APIRouter(prefix="/v1/renewals", tags=["enrollments"])
Asks = Annotated[Asking, Depends(part(Asking))]
Renewing = Annotated[Renewals, Depends(part(Renewals))]
Service = Annotated[Enrollments, Depends(part(Enrollments))]


class NewTicket(BaseModel):
    """How long a ticket shall be good, and where its device shall be reached."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"valid_hours": 24}]})

    valid_hours: int = Field(default=24, ge=1, le=24 * 30)
    way: str = Field(default="", max_length=80)  # a hub's name, or mqtt; '' = the default


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
    device: str = Field(default="", max_length=200)  # wished for, with a group's ticket


class TransportAddress(BaseModel):
    """Where messages go: kind `mqtt` with the broker, or `iothub` with iothub:// or dps://."""

    kind: str
    url: str


class Enrollment(BaseModel):
    """Who a device is from now on: certificates as PEM, `root` as base64 of 1.root.json.

    `minimum` is the version of each role of the catalog as it stands now: an older one, even if it
    has not expired, is never believed by this device.
    """

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
                    "minimum": {"root": 1, "timestamp": 4, "snapshot": 3, "targets": 1},
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
    minimum: dict[str, int]

    @classmethod
    def of(cls, found: Enrolled) -> Enrollment:
        """Return the API's shape."""
        return cls(
            fleet=found.fleet,
            device=found.device,
            certificate=found.certificate,
            ca=found.ca,
            root=base64.b64encode(found.root).decode(),
            transport=TransportAddress(kind=found.transport.kind, url=found.transport.url),
            blobs=f"{found.api}/v1/blobs",
            counter=found.counter,
            minimum=dict(found.minimum),
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
    wish = body or NewTicket()
    life = timedelta(hours=wish.valid_hours)
    with db.write() as session:
        issued = enrollments.issue(session, device_id, life, actor, scope, wish.way)
    return Ticket(ticket=issued.text, not_after=issued.not_after)


_CERTIFICATE: dict[str, Any] = {
    "serial": "5AF2",
    "key": "sha256:" + "9f86d081884c7d65" * 4,
    "issuer": "sha256:" + "3a3ea00cfc35332c" * 4,
    "not_before": "2026-01-31T11:55:00.000Z",
    "not_after": "2026-03-02T12:00:00.000Z",
    "revoked": None,
    "reason": "",
    "session": False,
}


class Certificate(BaseModel):
    """A certificate that a device was given; `session` means for TLS alone."""

    model_config = ConfigDict(json_schema_extra={"examples": [_CERTIFICATE]})

    serial: str
    key: str
    issuer: str
    not_before: str
    not_after: str
    revoked: str | None
    reason: str
    session: bool


class Certificates(BaseModel):
    """A device's certificates, newest first."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"items": [_CERTIFICATE]}]})

    items: list[Certificate]


@tickets.get("/{device_id}/certificates", dependencies=[allow("devices.read")])
def list_certificates(enrollments: Service, db: Db, scope: Scoped, device_id: str) -> Certificates:
    """List the certificates that a device was given, newest first."""
    with db.read() as session:
        rows = enrollments.certificates(session, device_id, scope)
        fields = set(Certificate.model_fields)
        return Certificates(items=[Certificate(**row.model_dump(include=fields)) for row in rows])


class RenewalRequest(BaseModel):
    """Who asks, and the request in base64: a DSSE envelope signed by the device's present key."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"device": "cam-1", "request": "eyJwYXlsb2FkIjo..."}]},
    )

    device: str = Field(max_length=200)
    request: str = Field(max_length=65536)


class RenewalAnswer(BaseModel):
    """In base64: the director's DSSE envelope, and the TUF files that say who the director is."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"renewed": "eyJwYXlsb2FkIjo...", "bundle": "eyJ2Ijox..."}]}
    )

    renewed: str
    bundle: str


@tickets.post("/{device_id}/renew", status_code=202, dependencies=[allow("devices.provision")])
def ask_to_renew(asking: Asks, db: Db, scope: Scoped, actor: Actor, device_id: str) -> Device:
    """Ask a device to renew its key and certificate, now or on its next contact."""
    with db.write() as session:
        return Device.of(asking.ask(session, device_id, actor, scope))


@renewals.post(
    "", dependencies=[anyone("the device's own key authorises it"), limited("a device's key")]
)
def renew_device(service: Renewing, db: Db, body: RenewalRequest) -> RenewalAnswer:
    """Renew a device's key. The device's present key authorises it; no token is needed."""
    sealed = decode_base64(body.request, "The request")
    try:
        with db.write() as session:
            answer = service.renew(session, body.device, sealed)
    except (InvalidInputError, TrustError, ForbiddenError) as error:
        with db.write() as session:
            service.refuse(session, body.device, error)
        raise
    return RenewalAnswer(
        renewed=base64.b64encode(answer.sealed).decode(),
        bundle=base64.b64encode(answer.bundle).decode(),
    )


@router.post(
    "",
    status_code=201,
    dependencies=[anyone("the ticket in its body authorises it"), limited("a ticket")],
)
def enroll_device(enrollments: Service, db: Db, body: EnrollmentRequest) -> Enrollment:
    """Exchange a ticket for a certificate. The ticket authorises it; no token is needed."""
    with db.write() as session:
        return Enrollment.of(enrollments.enroll(session, body.ticket, body.csr, body.device))
