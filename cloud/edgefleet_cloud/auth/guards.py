"""The guards of the routes, of which every route declares one.

    @router.get("/v1/devices", dependencies=[allow("devices.read")])
    @router.post("/v1/enrollments", dependencies=[anyone("the ticket in the body authorises it")])

and asks for `caller: Actor` and `scope: Scoped` where it needs them. `tests/cloud/test_access.py`
fails for a route without a declaration.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from edgefleet_cloud.auth.caller import Caller, Scope
from edgefleet_cloud.auth.gate import Gate
from edgefleet_cloud.auth.roles import EVERY
from edgefleet_cloud.errors import UnauthenticatedError
from edgefleet_cloud.web import Parts
from edgefleet_shared import access

_bearer = HTTPBearer(auto_error=False, description="An API token.")
Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]


def authenticate(request: Request, credentials: Credentials) -> Caller:
    """Return who asks; their name is the request's actor.

    Raises:
        UnauthenticatedError: Nobody, or somebody who cannot prove it.
    """
    gate, client = _gate(request)
    header = request.headers.get("Authorization", "")
    if credentials is not None:
        caller = gate.check(credentials.credentials, client)
    elif access.claimed_device(header) is not None:
        caller = gate.check_device(header, client)
    else:
        raise UnauthenticatedError(
            "This route needs a token.", hint="Send `Authorization: Bearer <token>`."
        )
    request.state.caller, request.state.actor = caller, caller.actor
    if claim := getattr(request.state, "claim", None):
        claim.of(caller.actor)
    return caller


def _gate(request: Request) -> tuple[Gate, str]:
    parts: Parts = request.app.state.parts
    gate = parts.get(Gate)
    peer = request.client.host if request.client else ""
    return gate, gate.client(peer, ",".join(request.headers.getlist("X-Forwarded-For")))


def _limited(what: str) -> Callable[[Request], Iterator[None]]:
    def attempt(request: Request) -> Iterator[None]:
        gate, client = _gate(request)
        with gate.attempt(client, what):
            yield

    return attempt


class Allow:
    """Lets callers pass who hold a permission, and remembers how far it reaches.

    Args:
        permission: The one permission that the route needs.
        devices: Whether an enrolled device may pass too, by its signed statement.
    """

    def __init__(self, permission: str, *, devices: bool = False) -> None:
        if permission not in EVERY:
            raise ValueError(f"{permission} stands in no role of auth/roles.py")
        self.permission = permission
        self.devices = devices

    async def __call__(
        self, request: Request, caller: Annotated[Caller, Depends(authenticate)]
    ) -> None:
        """Admit a caller.

        Raises:
            ForbiddenError: Somebody who does not hold the permission.
        """
        if not (caller.device and self.devices):
            request.state.scope = caller.reach(self.permission)


class Admit:
    """Lets callers pass whatever they hold.

    Args:
        why: Why the route needs no permission.
    """

    def __init__(self, why: str) -> None:
        self.why = why


class Anyone(Admit):
    """Lets everybody pass."""

    async def __call__(self) -> None:
        """Admit everybody."""


class Known(Admit):
    """Lets everybody pass who proves who they are."""

    async def __call__(self, caller: Annotated[Caller, Depends(authenticate)]) -> None:
        """Admit the caller."""


def allow(permission: str, *, devices: bool = False) -> Any:
    """Return the declaration of a route that needs a permission (`auth/roles.py` names them)."""
    return Depends(Allow(permission, devices=devices))


def known(why: str) -> Any:
    """Return the declaration of a route for everybody who is known, without a permission."""
    return Depends(Known(why))


def anyone(why: str) -> Any:
    """Return the declaration of a route that authorises its callers in another way, or never."""
    return Depends(Anyone(why))


def limited(what: str) -> Any:
    """Return a dependency for a route that lets callers in by `what`: failures are counted."""
    return Depends(_limited(what))


async def _scope(request: Request) -> Scope:
    scope: Scope = request.state.scope  # missing on a route without allow(): an error, never all
    return scope


async def _stands(request: Request) -> Callable[[], bool]:
    parts: Parts = request.app.state.parts
    return partial(parts.get(Gate).stands, request.state.caller)


Scoped = Annotated[Scope, Depends(_scope)]
"""Parameter type: how far the route's permission reaches for this caller."""

Stands = Annotated[Callable[[], bool], Depends(_stands)]
"""Parameter type of a route that answers for long: asks whether the caller's token still holds."""
