"""/v1/group-tickets: one ticket for many devices."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field

from edgefleet_cloud.auth.guards import Scoped, allow
from edgefleet_cloud.enrollments.groups import Kind
from edgefleet_cloud.enrollments.service import Enrollments
from edgefleet_cloud.enrollments.tables import GroupTicketRow
from edgefleet_cloud.web import Actor, Db, part

router = APIRouter(prefix="/v1/group-tickets", tags=["enrollments"])
Service = Annotated[Enrollments, Depends(part(Enrollments))]

_TICKET: dict[str, Any] = {
    "id": "0199f3a1-6f0e-7cc2-9f5e-0d8f3d9c1a2b",
    "prefix": "cam",
    "labels": {"site": "berlin"},
    "hardware": "generic-x86_64",
    "limit": 50,
    "used": 3,
    "created": "2026-01-31T12:00:00.000Z",
    "not_after": "2026-02-01T12:00:00.000Z",
    "ended": None,
    "way": "",
}


class NewGroupTicket(BaseModel):
    """What devices may enrol with it, how many, and how long."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"prefix": "cam", "labels": {"site": "berlin"}, "limit": 50}]
        },
    )

    prefix: str
    labels: dict[str, str] = Field(default_factory=dict)
    hardware: str = "generic-x86_64"
    limit: int = Field(ge=1, le=100_000)
    valid_hours: int = Field(default=24, ge=1, le=24 * 30)
    way: str = Field(default="", max_length=80)  # a hub's name, or mqtt; '' = the default


class GroupTicket(BaseModel):
    """A group ticket, without its text."""

    model_config = ConfigDict(json_schema_extra={"examples": [_TICKET]})

    id: str
    prefix: str
    labels: dict[str, str]
    hardware: str
    limit: int
    used: int
    created: str
    not_after: str
    ended: str | None
    way: str

    @classmethod
    def of(cls, row: GroupTicketRow) -> GroupTicket:
        """Return the API's shape of a row."""
        return cls(**row.model_dump(exclude={"secret_hash"}))


class MadeGroupTicket(GroupTicket):
    """A new group ticket; its text is shown this once."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{**_TICKET, "ticket": "eyJ2Ijox..."}]}
    )

    ticket: str


class GroupTickets(BaseModel):
    """All of them, newest first."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"items": [_TICKET]}]})

    items: list[GroupTicket]


@router.post("", status_code=201, dependencies=[allow("tickets.write")])
def make_group_ticket(
    enrollments: Service, db: Db, scope: Scoped, actor: Actor, body: NewGroupTicket
) -> MadeGroupTicket:
    """Make a ticket with which up to `limit` devices of one kind enrol, each with its own key."""
    kind = Kind(body.prefix, body.labels, body.hardware, body.limit, body.way)
    life = timedelta(hours=body.valid_hours)
    with db.write() as session:
        row, issued = enrollments.issue_group(session, kind, life, actor, scope)
        return MadeGroupTicket(**GroupTicket.of(row).model_dump(), ticket=issued.text)


@router.get("", dependencies=[allow("devices.read")])
def list_group_tickets(enrollments: Service, db: Db, scope: Scoped) -> GroupTickets:
    """List group tickets and how often they were used."""
    with db.read() as session:
        rows = enrollments.groups.page(session, scope)
        return GroupTickets(items=[GroupTicket.of(row) for row in rows])


@router.delete("/{ticket_id}", status_code=204, dependencies=[allow("tickets.write")])
def end_group_ticket(
    enrollments: Service, db: Db, scope: Scoped, actor: Actor, ticket_id: str
) -> None:
    """End a group ticket: no further device enrols with it."""
    with db.write() as session:
        enrollments.end_group(session, ticket_id, actor, scope)
