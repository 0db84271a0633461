"""/v1/tokens: who may ask, as what and until when; and /v1/whoami for everybody."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field

from edgefleet_cloud.auth import repository
from edgefleet_cloud.auth.caller import Caller, describe
from edgefleet_cloud.auth.guards import allow, authenticate, known
from edgefleet_cloud.auth.roles import Role
from edgefleet_cloud.auth.service import LIFE, MAX_DAYS, TokenService, Wish
from edgefleet_cloud.auth.tables import TokenRow
from edgefleet_cloud.paging import PageOf, Paging
from edgefleet_cloud.web import Actor, Db, part

router = APIRouter(prefix="/v1", tags=["tokens"])
Service = Annotated[TokenService, Depends(part(TokenService))]
Me = Annotated[Caller, Depends(authenticate)]

_TOKEN: dict[str, Any] = {
    "name": "ci",
    "role": "publisher",
    "scope": 'model == "digits"',
    "maker": "token/admin",
    "created": "2026-01-31T12:00:00.000Z",
    "expires": "2026-05-01T12:00:00.000Z",
    "used": "2026-01-31T13:00:00.000Z",
    "revoked": "",
}


class NewToken(BaseModel):
    """A token to make; `scope` is a filter over devices or, for a publisher, over `model`."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"name": "ci", "role": "publisher", "scope": "model == 'digits'"}]
        },
    )

    name: str
    role: Role = Role.VIEWER
    scope: str = ""
    days: int = Field(default=LIFE.days, ge=1, le=MAX_DAYS)


class Token(BaseModel):
    """A token, without its text. `expires` '': never; `used`: to the hour; `revoked` '': not."""

    model_config = ConfigDict(json_schema_extra={"examples": [_TOKEN]})

    name: str
    role: str
    scope: str
    maker: str
    created: str
    expires: str
    used: str
    revoked: str

    @classmethod
    def of(cls, row: TokenRow) -> Token:
        """Return the API's shape of a row."""
        return cls(**row.model_dump(include=set(cls.model_fields)))


class MadeToken(Token):
    """A new token and, this once, its text."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{**_TOKEN, "token": "eft_3q2-7w..."}]}
    )

    token: str


class HeldRole(BaseModel):
    """A role, and the scope in which it is held; '' is everything."""

    role: str
    scope: str


class WhoAmI(BaseModel):
    """Who the fleet manager takes the caller for."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"actor": "token/ci", "roles": [{"role": "viewer", "scope": ""}]}]
        }
    )

    actor: str
    roles: list[HeldRole]


@router.get("/whoami", dependencies=[known("everybody may know who they are")])
def who_am_i(caller: Me) -> WhoAmI:
    """Answer whom the caller's token stands for, and what they hold."""
    roles = [HeldRole(role=held.role, scope=describe(held.scope)) for held in caller.bindings]
    return WhoAmI(actor=caller.actor, roles=roles)


@router.get("/tokens", dependencies=[allow("tokens.read")])
def list_tokens(db: Db, query: Paging) -> PageOf[Token]:
    """List tokens, revoked and expired ones too; filter on name, role, maker and created."""
    with db.read() as session:
        rows, token = repository.page(session, query)
        return PageOf(items=[Token.of(row) for row in rows], next_page_token=token)


@router.post("/tokens", status_code=201, dependencies=[allow("tokens.write")])
def create_token(service: Service, db: Db, actor: Actor, caller: Me, body: NewToken) -> MadeToken:
    """Make a token, at most as strong as the caller; its text is shown this once."""
    wish = Wish(body.name, body.role, body.scope, timedelta(days=body.days))
    with db.write() as session:
        row, text = service.create(session, wish, actor, caller)
        return MadeToken(**Token.of(row).model_dump(), token=text)


@router.get("/tokens/{name}", dependencies=[allow("tokens.read")])
def get_token(service: Service, db: Db, name: str) -> Token:
    """Answer one token, without its text."""
    with db.read() as session:
        return Token.of(service.get(session, name))


@router.delete("/tokens/{name}", dependencies=[allow("tokens.write")])
def revoke_token(service: Service, db: Db, actor: Actor, name: str) -> Token:
    """Make a token invalid from now on; its name is not given again."""
    with db.write() as session:
        return Token.of(service.revoke(session, name, actor))
