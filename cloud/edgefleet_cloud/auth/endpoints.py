"""The guard of every route that is not open: `Authorization: Bearer <token>`."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from edgefleet_cloud.auth.service import TokenService
from edgefleet_cloud.errors import UnauthenticatedError
from edgefleet_cloud.web import Db, part

_bearer = HTTPBearer(auto_error=False, description="A token of `edgefleet-cloud token create`.")
Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
Service = Annotated[TokenService, Depends(part(TokenService))]


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
