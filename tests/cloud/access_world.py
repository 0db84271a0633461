"""Callers of every sort, and what routes say of themselves."""

from __future__ import annotations

from typing import Any, NamedTuple

import httpx
from fastapi.routing import APIRoute

from edgefleet_cloud import app as app_module
from edgefleet_cloud.auth.guards import Admit, Allow
from tests.cloud.running import RunningCloud

OPEN = {
    "/healthz",
    "/readyz",
    "/v1/enrollments",
    "/v1/renewals",
    "/v1/authority/certificates",
    "/v1/authority/crl",
}
"""What needs no token, written down so that one more is a decision."""


class Route(NamedTuple):
    """A method and a path of the API, and the guards that it declares."""

    method: str
    path: str
    guards: tuple[Allow | Admit, ...]


def routes() -> list[Route]:
    """Return every route that the app includes, one a method."""
    found = []
    for router in (*app_module.GUARDED, *app_module.OPEN, app_module.health):
        for route in router.routes:
            assert isinstance(route, APIRoute), route
            guards = [d.dependency for d in route.dependencies]
            mine = tuple(guard for guard in guards if isinstance(guard, Allow | Admit))
            path = route.path.replace(":path}", "}")
            found += [Route(method, path, mine) for method in sorted(route.methods)]
    return found


def caller(cloud: RunningCloud, name: str, role: str, scope: str = "", **more: Any) -> httpx.Client:
    """Return a client whose token has this role and scope."""
    body = {"name": name, "role": role, "scope": scope, **more}
    made = cloud.client.post("/v1/tokens", json=body)
    assert made.status_code == 201, made.text
    return cloud.bearing(made.json()["token"])
