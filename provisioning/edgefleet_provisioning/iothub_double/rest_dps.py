"""The service interface of the Device Provisioning Service over REST: enrolments, registrations."""

from __future__ import annotations

import base64
import re
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from edgefleet_provisioning.iothub_double import rest_web as web
from edgefleet_provisioning.iothub_double.clock import iso
from edgefleet_provisioning.iothub_double.enrolments import Kind
from edgefleet_provisioning.iothub_double.entra import DPS, Issuer
from edgefleet_provisioning.iothub_double.provisioning import Provisioning
from edgefleet_provisioning.iothub_double.refusals import HubError, bad

PAGE, PAGE_MAX, BULK_MAX = 100, 1000, 10
RIGHTS = {"provisioningserviceowner": frozenset({"enroll"})}
_KINDS: tuple[Kind, ...] = ("enrollments", "enrollmentGroups")
_QUERY = re.compile(r"\s*select\s+\*\s+from\s+(enrollments|enrollmentgroups)\s*", re.IGNORECASE)
_NAMES: dict[Kind, str] = {"enrollments": "registrationId", "enrollmentGroups": "enrollmentGroupId"}
Work = Callable[[Request], Awaitable[Any]]


def routes(dps: Provisioning, issuer: Issuer) -> list[Route]:
    """Return the routes of a provisioning service.

    Args:
        dps: The service.
        issuer: Of Entra ID's tokens.
    """
    made = [
        _route(dps, issuer, "POST", "/enrollments", _bulk(dps)),
        _route(dps, issuer, "POST", "/registrations/{name}/query", _states(dps)),
        _route(dps, issuer, "GET", "/registrations/{name}", _state(dps)),
        _route(dps, issuer, "DELETE", "/registrations/{name}", _forget(dps)),
    ]
    for kind in _KINDS:
        one = f"/{kind}/{{name}}"
        made += [
            _route(dps, issuer, "POST", f"/{kind}/query", _query(dps, kind)),
            _route(dps, issuer, "POST", f"{one}/attestationmechanism", _attestation(dps, kind)),
            _route(dps, issuer, "PUT", one, _put(dps, kind)),
            _route(dps, issuer, "GET", one, _get(dps, kind)),
            _route(dps, issuer, "DELETE", one, _delete(dps, kind)),
        ]
    return made


def _route(dps: Provisioning, issuer: Issuer, verb: str, path: str, work: Work) -> Route:
    async def handle(request: Request) -> Response:
        try:
            web.allow(
                request,
                "enroll",
                host=dps.host,
                policies={name: (key, RIGHTS[name]) for name, key in dps.policies.items()},
                issuer=issuer,
                audience=DPS,
                clock=dps.azure.clock,
            )
            web.need_version(request)
            found = await work(request)
        except HubError as error:
            return _refusal(error, iso(dps.azure.clock.now()))
        return found if isinstance(found, Response) else web.answer(found)

    return Route(path, handle, methods=[verb])


def _refusal(error: HubError, now: str) -> Response:
    message = str(error).removeprefix(f"ErrorCode:{error.code};")
    told = {
        "errorCode": error.status * 1000,
        "trackingId": "double",
        "message": message,
        "timestampUtc": now,
    }
    retry = {"Retry-After": str(round(error.retry_after))} if error.retry_after else None
    return JSONResponse(told, error.status, retry)


def _name(request: Request) -> str:
    return str(request.path_params["name"])


def _put(dps: Provisioning, kind: Kind) -> Work:
    async def work(request: Request) -> Any:
        said, if_match = await web.mapping(request), request.headers.get("if-match")
        return dps.enrolments.put(kind, _name(request), said, if_match)

    return work


def _get(dps: Provisioning, kind: Kind) -> Work:
    async def work(request: Request) -> Any:
        return dps.enrolments.get(kind, _name(request))

    return work


def _delete(dps: Provisioning, kind: Kind) -> Work:
    async def work(request: Request) -> Any:
        dps.enrolments.delete(kind, _name(request), request.headers.get("if-match"))
        return Response(status_code=204)

    return work


def _attestation(dps: Provisioning, kind: Kind) -> Work:
    async def work(request: Request) -> Any:
        return dps.enrolments.whole(kind, _name(request))["attestation"]

    return work


def _query(dps: Provisioning, kind: Kind) -> Work:
    async def work(request: Request) -> Response:
        said = await web.mapping(request)
        match = _QUERY.fullmatch(str(said.get("query", "")))
        if match is None or match[1].lower() != kind.lower():
            raise bad(f"The double knows one query here: everything FROM {kind}.")
        return _page(request, dps.enrolments.all(kind), _NAMES[kind])

    return work


def _bulk(dps: Provisioning) -> Work:
    async def work(request: Request) -> Any:
        said = await web.mapping(request)
        mode, listed = said.get("mode"), said.get("enrollments")
        if mode not in {"create", "update", "updateIfMatchETag", "delete"}:
            raise bad("mode is create, update, updateIfMatchETag or delete.")
        if not isinstance(listed, list) or not 0 < len(listed) <= BULK_MAX:
            raise bad(f"A bulk operation takes 1 to {BULK_MAX} enrolments.")
        errors = []
        for one in listed:
            name = str(one.get("registrationId", ""))
            etag = one.get("etag") if mode == "updateIfMatchETag" else "*"
            try:
                if mode == "delete":
                    dps.enrolments.delete("enrollments", name)
                else:
                    dps.enrolments.put("enrollments", name, one, None if mode == "create" else etag)
            except HubError as error:
                about = {"registrationId": name, "errorCode": error.status * 1000}
                errors.append({**about, "errorStatus": str(error)})
        return {"isSuccessful": not errors, "errors": errors}

    return work


def _states(dps: Provisioning) -> Work:
    async def work(request: Request) -> Response:
        return _page(request, dps.states(_name(request)), "registrationId")

    return work


def _state(dps: Provisioning) -> Work:
    async def work(request: Request) -> Any:
        return dps.state(_name(request))

    return work


def _forget(dps: Provisioning) -> Work:
    async def work(request: Request) -> Any:
        dps.forget(_name(request))
        return Response(status_code=204)

    return work


def _page(request: Request, found: list[dict[str, Any]], name: str) -> Response:
    try:
        most = int(request.headers.get("x-ms-max-item-count") or PAGE)
        after = base64.b64decode(request.headers.get("x-ms-continuation") or "", validate=True)
    except ValueError as error:
        raise bad("x-ms-max-item-count or x-ms-continuation is wrong.") from error
    if not 0 < most <= PAGE_MAX:
        raise bad(f"x-ms-max-item-count is 1 to {PAGE_MAX}.")
    left = sorted((one for one in found if one[name] > after.decode()), key=lambda one: one[name])
    headers = {"x-ms-item-type": "Enrollment"}
    if len(left) > most:
        headers["x-ms-continuation"] = base64.b64encode(left[most - 1][name].encode()).decode()
    return JSONResponse(left[:most], headers=headers)
