"""What all REST interfaces of the double share: who asks, JSON in and out, refusals."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from edgefleet_provisioning.iothub_double.clock import Clock
from edgefleet_provisioning.iothub_double.credentials import check_token, read_token, refused
from edgefleet_provisioning.iothub_double.entra import Issuer
from edgefleet_provisioning.iothub_double.refusals import HubError, bad

Handler = Callable[[Request], Awaitable[Response]]
Policies = Mapping[str, tuple[str, frozenset[str]]]
"""Names of shared access policies: each with its key, in base64, and its rights."""
BODY_MAX = 4 * 1024 * 1024


def refusing(handler: Handler) -> Handler:
    """Return a handler that answers a `HubError` as Azure does."""

    async def guarded(request: Request) -> Response:
        try:
            return await handler(request)
        except HubError as error:
            return refusal(error)

    return guarded


def refusal(error: HubError) -> Response:
    """Return Azure's answer to a request that it refuses."""
    headers = {"iothub-errorcode": error.code}
    if error.retry_after is not None:
        headers["Retry-After"] = str(max(1, round(error.retry_after)))
    told = {"Message": str(error), "ExceptionMessage": "Tracking ID:double"}
    return JSONResponse(told, error.status, headers)


def need_version(request: Request) -> None:
    """Raise 400 unless the request names a version of the interface."""
    if not request.query_params.get("api-version"):
        raise bad("The query parameter api-version is missing.", "InvalidProtocolVersion")


def allow(
    request: Request,
    right: str,
    *,
    host: str,
    policies: Policies,
    issuer: Issuer,
    audience: str,
    clock: Clock,
) -> None:
    """Look whether who asks may do this.

    Args:
        request: The request.
        right: One of `read`, `write`, `service`, `enroll`.
        host: The resource's name: a token is for it or for a path below.
        policies: Which may sign.
        issuer: Of Entra ID's tokens.
        audience: For which these must be.
        clock: The double's time.

    Raises:
        HubError: 401.
    """
    said = request.headers.get("authorization", "")
    if said.startswith("Bearer "):
        rights = issuer.rights(said.removeprefix("Bearer "), audience)
    else:
        found = read_token(said)
        key, rights = policies.get(found.policy, ("", frozenset()))
        keys = [key] if key else []
        check_token(found, host + request.url.path, keys, clock.now())
    if right not in rights:
        raise refused(f"The right {right} is missing.")


async def body(request: Request) -> Any:
    """Return the request's JSON.

    Raises:
        HubError: 400 or 413.
    """
    data = await request.body()
    if len(data) > BODY_MAX:
        raise HubError(413, "RequestEntityTooLarge", f"More than {BODY_MAX} bytes.")
    try:
        return json.loads(data)
    except ValueError as error:
        raise bad("The body is no JSON.") from error


async def mapping(request: Request) -> dict[str, Any]:
    """Return the request's JSON object.

    Raises:
        HubError: 400 or 413.
    """
    found = await body(request)
    if not isinstance(found, dict):
        raise bad("The body is no JSON object.")
    return found


def answer(found: Any, status: int = 200) -> Response:
    """Return JSON, with its etag as a header if it has one."""
    etag = found.get("etag") if isinstance(found, Mapping) else None
    return JSONResponse(found, status, {"ETag": f'"{etag}"'} if etag else None)
