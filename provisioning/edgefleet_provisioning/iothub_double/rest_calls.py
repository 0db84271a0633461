"""Direct methods and queries of a hub over REST."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from edgefleet_provisioning.iothub_double import rest_web as web
from edgefleet_provisioning.iothub_double.clock import iso
from edgefleet_provisioning.iothub_double.limits import method_cost
from edgefleet_provisioning.iothub_double.refusals import HubError, bad
from edgefleet_provisioning.iothub_double.rest_query import Query
from edgefleet_provisioning.iothub_double.sessions import Answer
from edgefleet_provisioning.iothub_double.state import Hub

PAGE, PAGE_MAX = 100, 1000
METHOD_MAX_S = 300
_NUMBERS = {"DeviceNotOnline": 404103, "GatewayTimeout": 504101, "InvalidResponse": 502000}
_POLL_S = 0.05


async def invoke(hub: Hub, request: Request, least_s: float) -> Response:
    """Run a direct method on a device or module and return what it answers.

    Where the device is the reason, Azure puts a number and JSON into the refusal's message.

    Raises:
        HubError: 400, 404 or 429.
    """
    try:
        return JSONResponse(await _invoke(hub, request, least_s))
    except HubError as error:
        if error.code not in _NUMBERS:
            raise
        told = {
            "errorCode": _NUMBERS[error.code],
            "trackingId": "double",
            "message": str(error).removeprefix(f"ErrorCode:{error.code};"),
            "info": {},
            "timestampUtc": iso(hub.clock.now()),
        }
        body = {"Message": json.dumps(told), "ExceptionMessage": ""}
        return JSONResponse(body, error.status, {"iothub-errorcode": error.code})


async def _invoke(hub: Hub, request: Request, least_s: float) -> dict[str, Any]:
    said = await web.mapping(request)
    where = request.path_params["device"], request.path_params.get("module", "")
    name = said.get("methodName")
    if not isinstance(name, str) or not name:
        raise bad("methodName is missing.")
    wait_s = said.get("responseTimeoutInSeconds", 30)
    connect_s = said.get("connectTimeoutInSeconds", 0)
    timed = isinstance(wait_s, int | float) and isinstance(connect_s, int | float)
    if not timed or not least_s <= wait_s <= METHOD_MAX_S:
        raise bad(f"responseTimeoutInSeconds is {least_s} to {METHOD_MAX_S}.")
    payload = json.dumps(said.get("payload")).encode()
    hub.throttles.spend("methods", method_cost(payload))
    answer = await _call(hub, *where, name, payload, connect_s, wait_s)
    try:
        return {"status": answer.status, "payload": json.loads(answer.payload or b"null")}
    except ValueError as error:
        raise HubError(502, "InvalidResponse", "The device's answer is no JSON.") from error


async def _call(
    hub: Hub, device: str, module: str, name: str, payload: bytes, connect_s: float, wait_s: float
) -> Answer:
    loop = asyncio.get_running_loop()
    until = loop.time() + connect_s
    while True:
        try:
            future = hub.method(device, module, name, payload)
            break
        except HubError as error:
            if error.code != "DeviceNotOnline" or loop.time() >= until:
                raise
        await asyncio.sleep(_POLL_S)
    try:
        async with asyncio.timeout(wait_s):
            return await asyncio.wrap_future(future)
    except TimeoutError as error:
        told = f"Timed out waiting for the response of {device}."
        raise HubError(504, "GatewayTimeout", told) from error


async def ask(hub: Hub, request: Request) -> Response:
    """Return a page of what a query finds.

    Raises:
        HubError: 400.
    """
    text = (await web.mapping(request)).get("query")
    if not isinstance(text, str):
        raise bad("query is missing.")
    try:
        most = int(request.headers.get("x-ms-max-item-count") or PAGE)
    except ValueError as error:
        raise bad("x-ms-max-item-count is no number.") from error
    if not 0 < most <= PAGE_MAX:
        raise bad(f"x-ms-max-item-count is 1 to {PAGE_MAX}.")
    query = Query(text)
    mark = hashlib.sha256(text.encode()).hexdigest()[:16]
    after = _continued(request.headers.get("x-ms-continuation"), mark)
    rows, last = _page(hub, query, after, most)
    headers = {"x-ms-item-type": query.kind}
    if last is not None:
        token = json.dumps([mark, *last]).encode()
        headers["x-ms-continuation"] = base64.b64encode(token).decode()
    return JSONResponse(rows, headers=headers)


def _page(
    hub: Hub, query: Query, after: tuple[str, str], most: int
) -> tuple[list[dict[str, Any]], tuple[str, str] | None]:
    """Return rows, and the last one's name if there are more."""
    rows: list[dict[str, Any]] = []
    last: tuple[str, str] | None = None
    for name in _names(hub, modules=query.modules):
        if name <= after:
            continue
        try:
            twin = hub.twin(*name)
        except HubError:
            continue  # deleted just now
        if query.condition(twin):
            if len(rows) == most:
                return rows, last
            rows.append(query.row(twin))
            last = name
    return rows, None


def _names(hub: Hub, *, modules: bool) -> list[tuple[str, str]]:
    devices = hub.registry.all()
    if not modules:
        return sorted((one.device, "") for one in devices)
    return sorted(
        (one.device, one.module)
        for device in devices
        for one in hub.registry.modules(device.device)
    )


def _continued(token: str | None, mark: str) -> tuple[str, str]:
    if not token:
        return "", ""
    try:
        found = json.loads(base64.b64decode(token, validate=True))
        query, device, module = found
    except (ValueError, TypeError) as error:
        raise bad("The continuation is none of this hub's.") from error
    if query != mark:
        raise bad("The continuation belongs to another query.")
    return str(device), str(module)
