"""API tokens: shown once, for a time, never stronger than who made them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from edgefleet_cloud.auth.caller import Binding, Caller, read_scope
from edgefleet_cloud.auth.roles import Role
from edgefleet_cloud.auth.service import TokenService, Wish
from edgefleet_cloud.errors import ForbiddenError, UnauthenticatedError
from edgefleet_cloud.events.feed import EventFeed
from edgefleet_cloud.events.service import EventLog
from tests.cloud.access_world import caller

BERLIN = "labels.site == 'berlin'"


class Clock:
    """A clock that the test turns."""

    now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    """A clock that stands still."""
    return Clock()


@pytest.fixture
def tokens(clock):
    """The service over a clock of its own."""
    return TokenService(clock, EventLog(EventFeed(), clock))


def test_it_is_shown_once(cloud):
    """The answer to POST has the text; no other answer has it, nor its hash."""
    made = cloud.client.post("/v1/tokens", json={"name": "ci"}).json()
    assert made["token"].startswith("eft_")
    assert (made["role"], made["maker"], made["scope"]) == ("viewer", "token/admin", "")
    assert cloud.client.get("/v1/tokens/ci").json() == {
        key: value for key, value in made.items() if key != "token"
    }
    listed = cloud.client.get("/v1/tokens", params={"filter": "role == 'viewer'"}).json()["items"]
    assert [row["name"] for row in listed] == ["ci"]
    assert made["token"] not in cloud.client.get("/v1/events").text


def test_a_revoked_one_opens_nothing(cloud):
    """After DELETE the token is refused; the event says who did it, and its name is gone."""
    client = caller(cloud, "ci", "viewer")
    assert client.get("/v1/devices").status_code == 200
    assert cloud.client.delete("/v1/tokens/ci").json()["revoked"]
    assert client.get("/v1/devices").status_code == 401
    told = cloud.client.get("/v1/events", params={"filter": "type like 'token.*'"}).json()["items"]
    assert [(e["type"], e["actor"]) for e in told if e["subject"] == "tokens/ci"] == [
        ("token.created", "token/admin"),
        ("token.revoked", "token/admin"),
    ]
    again = cloud.client.post("/v1/tokens", json={"name": "ci"})
    assert (again.status_code, again.json()["code"]) == (409, "already_exists")


def test_it_ends(database, tokens, clock):
    """A token holds until the moment it expires, 90 days unless somebody says otherwise."""
    with database.write() as session:
        row, text = tokens.create(session, Wish("ci"), "shell")
    clock.now += timedelta(days=90) - timedelta(milliseconds=1)
    with database.read() as session:
        assert tokens.check(session, text)[0].actor == "token/ci"
    clock.now += timedelta(milliseconds=1)
    with database.read() as session, pytest.raises(UnauthenticatedError):
        tokens.check(session, text)
    assert row.expires == "2026-04-01T00:00:00.000Z"


def test_its_last_use_is_known_to_the_hour(cloud):
    """A use is noted, and not again within the hour."""
    client = caller(cloud, "ci", "viewer")
    assert cloud.client.get("/v1/tokens/ci").json()["used"] == ""
    client.get("/v1/devices")
    first = cloud.client.get("/v1/tokens/ci").json()["used"]
    client.get("/v1/devices")
    assert first
    assert cloud.client.get("/v1/tokens/ci").json()["used"] == first


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"name": "ci", "days": 367}, 422),
        ({"name": "ci", "days": None}, 422),
        ({"name": "ci", "role": "root"}, 422),
        ({"name": "ci", "scope": "online == true"}, 400),
        ({"name": "ci", "scope": " "}, 400),
        ({"name": "C I"}, 422),
    ],
)
def test_one_that_cannot_be(cloud, body, status):
    """A life beyond 366 days, an unknown role and a scope that is none are refused."""
    assert cloud.client.post("/v1/tokens", json=body).status_code == status


@pytest.mark.parametrize("role", [role for role in Role if role is not Role.ADMIN])
def test_only_an_admin_makes_them(cloud, role):
    """No other role makes, lists or revokes tokens, not even its own."""
    client = caller(cloud, "me", role)
    assert client.post("/v1/tokens", json={"name": "other", "role": role}).status_code == 403
    assert client.get("/v1/tokens").status_code == 403
    assert client.delete("/v1/tokens/me").status_code == 403


def test_an_admin_within_a_scope_makes_none(cloud):
    """What concerns the whole fleet is not held within a scope, by an admin neither."""
    client = caller(cloud, "half", "admin", BERLIN)
    for method, path, body in (
        ("POST", "/v1/tokens", {"name": "whole", "role": "admin"}),
        ("GET", "/v1/tokens", None),
        ("DELETE", "/v1/tokens/admin", None),
        ("POST", "/v1/trust/metadata", {"files": {"2.root.json": ""}}),
        ("POST", "/v1/models", {"name": "digits"}),
    ):
        assert client.request(method, path, json=body).status_code == 403, path


@pytest.mark.parametrize(
    ("mine", "wanted", "may"),
    [
        ([(Role.ADMIN, "")], (Role.ADMIN, ""), True),
        ([(Role.ADMIN, "")], (Role.PUBLISHER, "model == 'digits'"), True),
        ([(Role.OPERATOR, BERLIN)], (Role.OPERATOR, BERLIN), True),
        ([(Role.OPERATOR, BERLIN)], (Role.VIEWER, BERLIN), True),
        ([(Role.OPERATOR, BERLIN)], (Role.VIEWER, ""), False),
        ([(Role.OPERATOR, BERLIN)], (Role.OPERATOR, "labels.site == 'paris'"), False),
        ([(Role.OPERATOR, BERLIN)], (Role.OPERATOR, f"{BERLIN} or id like '*'"), False),
        ([(Role.OPERATOR, BERLIN), (Role.VIEWER, "")], (Role.VIEWER, ""), True),
        ([(Role.OPERATOR, BERLIN), (Role.VIEWER, "")], (Role.OPERATOR, ""), False),
        ([(Role.VIEWER, "")], (Role.PUBLISHER, ""), False),
        ([(Role.PUBLISHER, "model == 'digits'")], (Role.PUBLISHER, ""), False),
        ([], (Role.VIEWER, ""), False),
    ],
)
def test_nobody_gives_more_than_they_hold(database, tokens, mine, wanted, may):
    """Whoever makes a token holds each of its permissions, at least as far."""
    bindings = tuple(Binding(role, read_scope(role, text)) for role, text in mine)
    maker = Caller("token/maker", bindings)
    wish = Wish("new", *wanted)
    with database.write() as session:
        if may:
            assert tokens.create(session, wish, maker.actor, maker)[0].role == wanted[0]
            return
        with pytest.raises(ForbiddenError) as refused:
            tokens.create(session, wish, maker.actor, maker)
        assert refused.value.code == "stronger"


def test_guesses_open_nothing(cloud):
    """Neither a prefix of a token, nor its hash, nor more than it, nor an empty one is it."""
    made = cloud.client.post("/v1/tokens", json={"name": "ci"}).json()["token"]
    for guess in (made[:-1], made + "A", made.upper(), "eft_", made.encode().hex()):
        assert cloud.bearing(guess).get("/v1/whoami").status_code == 401, guess


@pytest.mark.parametrize("column", ["role", "scope"])
def test_what_cannot_be_read_opens_nothing(database, tokens, column):
    """A role or scope that this version does not know, as after going back to it, is no role."""
    with database.write() as session:
        row, text = tokens.create(session, Wish("ci", Role.ADMIN), "shell")
        setattr(row, column, "color == 'red'")
    with database.read() as session, pytest.raises(UnauthenticatedError):
        tokens.check(session, text)
