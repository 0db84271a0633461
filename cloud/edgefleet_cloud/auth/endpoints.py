"""The guards of the routes: a bearer token, or for blobs a device's own signature."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from edgefleet_cloud.auth.devices import DeviceAccess
from edgefleet_cloud.auth.service import TokenService
from edgefleet_cloud.errors import UnauthenticatedError
from edgefleet_cloud.web import Db, part
from edgefleet_shared import access

_bearer = HTTPBearer(auto_error=False, description="A token of `edgefleet-cloud token create`.")
Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
Service = Annotated[TokenService, Depends(part(TokenService))]
Devices = Annotated[DeviceAccess, Depends(part(DeviceAccess))]


def require_token(request: Request, credentials: Credentials, service: Service, db: Db) -> None:
    """Let the request pass if it carries a valid token; remember whose as the actor.

    Raises:
        UnauthenticatedError: No token, or none that holds.
    """
    if credentials is None:
        raise UnauthenticatedError(
            "This route needs a token.", hint="Send `Authorization: Bearer <token>`."
        )
    with db.read() as session:
        row = service.check(session, credentials.credentials)
    request.state.actor = f"token/{row.name}"


def require_reader(
    request: Request, credentials: Credentials, service: Service, devices: Devices, db: Db
) -> None:
    """Let the request pass if it carries a valid token or a device's statement.

    Raises:
        UnauthenticatedError: Neither.
    """
    header = request.headers.get("Authorization", "")
    if access.claimed_device(header) is None:
        require_token(request, credentials, service, db)
    else:
        request.state.actor = f"devices/{devices.check(header)}"
