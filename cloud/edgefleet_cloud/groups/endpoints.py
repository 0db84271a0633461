"""/v1/groups, and /v1/selectors/validate for those who are still writing one."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, ConfigDict

from edgefleet_cloud.auth.guards import Scoped, allow
from edgefleet_cloud.devices import repository as devices_repository
from edgefleet_cloud.devices.schemas import Device
from edgefleet_cloud.filters import FilterError, render
from edgefleet_cloud.groups.service import Groups
from edgefleet_cloud.groups.tables import GroupRow
from edgefleet_cloud.paging import PageOf, Paging
from edgefleet_cloud.web import Actor, Db, IfMatch, check_match, part, set_etag
from edgefleet_shared.errors import InvalidInputError

router = APIRouter(prefix="/v1", tags=["groups"])
Service = Annotated[Groups, Depends(part(Groups))]
_SELECTOR = 'labels.site == "berlin" and not id == "cam-3"'


class Group(BaseModel):
    """A named selector; it means no device outside of `scope`, within which it was made."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "berlin",
                    "selector": _SELECTOR,
                    "scope": "",
                    "created": "2026-11-21T03:22:50.000Z",
                    "updated": "2026-11-21T03:22:50.000Z",
                }
            ]
        }
    )

    name: str
    selector: str
    scope: str
    created: str
    updated: str

    @classmethod
    def of(cls, row: GroupRow) -> Group:
        """Return the API's shape of a row."""
        return cls(**row.model_dump(include=set(cls.model_fields)))


class NewGroup(BaseModel):
    """A group to create."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"name": "berlin", "selector": _SELECTOR}]},
    )

    name: str
    selector: str


class GroupChange(BaseModel):
    """What a group shall mean. A name may be repeated, not changed."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"selector": _SELECTOR}]}
    )

    selector: str
    name: str | None = None


class SelectorText(BaseModel):
    """A filter over devices."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"filter": _SELECTOR}]}
    )

    filter: str


class SelectorVerdict(BaseModel):
    """What a filter means, or where it fails; `position` counts characters from 0.

    `canonical` is the filter in its one spelling, `devices` how many devices it means now.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "valid": True,
                    "canonical": _SELECTOR,
                    "devices": 3,
                    "position": None,
                    "message": "",
                    "hint": "",
                }
            ]
        }
    )

    valid: bool
    canonical: str = ""
    devices: int = 0
    position: int | None = None
    message: str = ""
    hint: str = ""


@router.get("/groups", dependencies=[allow("groups.read")])
def list_groups(groups: Service, db: Db, scope: Scoped, query: Paging) -> PageOf[Group]:
    """List groups; filter on name, selector and created."""
    with db.read() as session:
        rows, token = groups.page(session, query, scope)
        return PageOf(items=[Group.of(row) for row in rows], next_page_token=token)


@router.post("/groups", status_code=201, dependencies=[allow("groups.write")])
def create_group(
    groups: Service, db: Db, scope: Scoped, actor: Actor, body: NewGroup, response: Response
) -> Group:
    """Name a selector."""
    with db.write() as session:
        row = groups.create(session, body.name, body.selector, actor, scope)
        set_etag(response, row.revision)
        return Group.of(row)


@router.get("/groups/{name}", dependencies=[allow("groups.read")])
def get_group(groups: Service, db: Db, scope: Scoped, name: str, response: Response) -> Group:
    """Answer one group."""
    with db.read() as session:
        row = groups.get(session, name, scope)
        set_etag(response, row.revision)
        return Group.of(row)


@router.put("/groups/{name}", dependencies=[allow("groups.write")])
def change_group(
    groups: Service,
    db: Db,
    scope: Scoped,
    actor: Actor,
    name: str,
    body: GroupChange,
    response: Response,
    if_match: IfMatch = None,
) -> Group:
    """Give a group another selector."""
    with db.write() as session:
        row = groups.get(session, name, scope)
        check_match(if_match, row.revision)
        if body.name not in {None, name}:
            raise InvalidInputError(
                "A group keeps its name.", hint="Create another and delete this one."
            )
        groups.change(session, row, body.selector, actor, scope)
        set_etag(response, row.revision)
        return Group.of(row)


@router.delete("/groups/{name}", status_code=204, dependencies=[allow("groups.write")])
def delete_group(groups: Service, db: Db, scope: Scoped, actor: Actor, name: str) -> None:
    """Forget a group; its devices are untouched."""
    with db.write() as session:
        groups.delete(session, groups.get(session, name, scope), actor, scope)


@router.get("/groups/{name}/devices", dependencies=[allow("groups.read")])
def list_members(
    groups: Service, db: Db, scope: Scoped, name: str, query: Paging
) -> PageOf[Device]:
    """List the devices that a group means now; `filter` narrows further."""
    with db.read() as session:
        rows, token = groups.page_of_members(session, name, query, scope)
        return PageOf(items=[Device.of(row) for row in rows], next_page_token=token)


@router.post("/selectors/validate", dependencies=[allow("devices.read")])
def validate_selector(
    groups: Service, db: Db, scope: Scoped, body: SelectorText
) -> SelectorVerdict:
    """Say what a filter means, or at which character it fails and what to write there."""
    try:
        node = groups.devices.selector(body.filter)
    except FilterError as error:
        return SelectorVerdict(
            valid=False, position=error.position, message=error.message, hint=error.hint
        )
    with db.read() as session:
        count = devices_repository.count(session, node, scope)
    return SelectorVerdict(valid=True, canonical=render(node), devices=count)
