"""GET /v1/audit/heads: the signed statements about the log of changes."""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict

from edgefleet_cloud.audit.service import Heads
from edgefleet_cloud.audit.tables import HeadRow
from edgefleet_cloud.auth.guards import allow
from edgefleet_cloud.paging import PageOf, Paging
from edgefleet_cloud.web import Db, part
from edgefleet_shared.audit import HEAD_TYPE

router = APIRouter(prefix="/v1/audit", tags=["audit"])
Service = Annotated[Heads, Depends(part(Heads))]


class AuditHead(BaseModel):
    """One signed statement: this was the log at that time."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "number": 2,
                    "last": 42,
                    "count": 42,
                    "hash": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
                    "time": "2026-11-24T12:00:00.000Z",
                    "previous": "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae",
                    "envelope": {
                        "payload": "eyJ2IjoxLC4uLn0=",
                        "payloadType": HEAD_TYPE,
                        "signatures": [{"keyid": "3f0c...", "sig": "MEUCIQ..."}],
                    },
                }
            ]
        }
    )

    number: int
    last: int
    count: int
    hash: str
    time: str
    previous: str
    envelope: dict[str, Any]

    @classmethod
    def of(cls, row: HeadRow) -> AuditHead:
        """Return the API's shape of a row."""
        fields = row.model_dump(exclude={"envelope", "key"})
        return cls(**fields, envelope=json.loads(row.envelope))


@router.get("/heads", summary="List the signed heads", dependencies=[allow("audit.read")])
def list_heads(service: Service, db: Db, query: Paging) -> PageOf[AuditHead]:
    """Answer a page of signed statements, oldest first; `edgefleet audit verify` checks them."""
    with db.read() as session:
        rows, token = service.page(session, query)
        return PageOf(items=[AuditHead.of(row) for row in rows], next_page_token=token)
