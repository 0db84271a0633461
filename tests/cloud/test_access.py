"""Roles: every route names its permission, and every role gets just what the table says."""

from __future__ import annotations

import re

import pytest

from edgefleet_cloud import compose
from edgefleet_cloud.auth.guards import Allow, Anyone
from edgefleet_cloud.auth.roles import EVERY, PERMISSIONS, Role, grants
from tests.cloud.access_world import OPEN, caller, routes

ROUTES = routes()


def test_every_route_is_walked():
    """The walk below misses no route that the API describes."""
    described = {
        (method.upper(), path)
        for path, methods in compose.api_description()["paths"].items()
        for method in methods
    }
    assert {(route.method, route.path) for route in ROUTES} == described


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_every_route_declares_its_permission(route):
    """Each route has exactly one guard: `dependencies=[allow("resource.verb")]`, or says why not.

    A new route that fails here: see `auth/guards.py` and, for a new permission, `auth/roles.py`.
    """
    assert len(route.guards) == 1, f"{route.method} {route.path} declares {route.guards}"


def test_few_routes_are_open():
    """What needs no token is written down here, so that one more is a decision."""
    found = {route.path for route in ROUTES if isinstance(route.guards[0], Anyone)}
    assert found == OPEN


def test_no_permission_is_idle():
    """Each permission of the table is asked for by some route."""
    used = {route.guards[0].permission for route in ROUTES if isinstance(route.guards[0], Allow)}
    assert used == EVERY


def test_an_unknown_permission_cannot_be_declared():
    """A slip of the pen fails when the module is read, not when somebody asks."""
    with pytest.raises(ValueError, match="stands in no role"):
        Allow("devices.wirte")


def test_reading_changes_nothing():
    """No role that only reads may send anything but GET, and viewer is such a role."""
    assert all(permission.endswith(".read") for permission in PERMISSIONS[Role.VIEWER])
    writing = [
        route
        for route in ROUTES
        if isinstance(route.guards[0], Allow)
        and route.guards[0].permission.endswith(".read")
        and route.method not in {"GET", "HEAD"}
    ]
    assert [route.path for route in writing] == ["/v1/selectors/validate"]


@pytest.mark.parametrize("role", Role)
def test_each_role_at_each_route(cloud, role):
    """A role is refused with 403 just where the table does not give it the permission."""
    client = caller(cloud, f"a-{role}", role)
    wrong = []
    for route in ROUTES:
        guard = route.guards[0]
        if not isinstance(guard, Allow):
            continue
        path = re.sub(r"\{[^}]*\}", "0" * 8, route.path)
        answer = client.request(route.method, path, json={}, headers={"If-Match": "*"})
        held = grants(role, guard.permission, scoped=False)
        if (answer.status_code == 403) is held or answer.status_code in {401, 500}:
            wrong.append((route.method, route.path, answer.status_code))
    assert wrong == []


def test_a_refusal_names_the_permission(cloud):
    """Who may not do something is told which permission is missing."""
    client = caller(cloud, "eye", "viewer")
    answer = client.post("/v1/groups", json={"name": "all", "selector": "id like '*'"})
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    assert "groups.write" in answer.json()["detail"]


def test_everybody_may_ask_who_they_are(cloud):
    """A caller sees its name, its roles and their scopes."""
    client = caller(cloud, "eye", "viewer", "labels.site == 'berlin'")
    assert client.get("/v1/whoami").json() == {
        "actor": "token/eye",
        "roles": [{"role": "viewer", "scope": 'labels.site == "berlin"'}],
    }
    assert cloud.anyone.get("/v1/whoami").status_code == 401
