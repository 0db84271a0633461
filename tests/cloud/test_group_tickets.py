"""One ticket for N devices, never more; and lists of devices, all or none."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy import select

from edgefleet_cloud.authority.requests import describe
from edgefleet_cloud.enrollments.tables import GroupTicketRow
from edgefleet_cloud.ports import system_clock
from edgefleet_shared.times import format_time
from tests.http_device import HttpDevice, csr, new_key


@pytest.fixture
def group(cloud):
    """A maker of group tickets; returns the answer's JSON."""

    def make(limit: int = 2, prefix: str = "cam", **fields) -> dict:
        body = {"prefix": prefix, "limit": limit, "labels": {"site": "berlin"}} | fields
        made = cloud.client.post("/v1/group-tickets", json=body)
        assert made.status_code == 201, made.text
        return made.json()

    return make


def enroll(cloud, ticket: str, key=None, **fields):
    """Hand a group ticket in; return the answer."""
    body = {"ticket": ticket, "csr": csr(key or new_key()), **fields}
    return cloud.anyone.post("/v1/enrollments", json=body)


def test_each_device_is_bound_on_its_first_use(cloud, group):
    """A wished id, one derived from the key, the same key again, and the ticket is used up."""
    made, key = group(limit=2), new_key()
    first = enroll(cloud, made["ticket"], key, device="cam-gate")
    assert first.status_code == 201
    digits = describe((other := new_key()).public_key()).digest[7:19]
    second = enroll(cloud, made["ticket"], other)
    assert second.json()["device"] == f"cam-{digits}"
    assert enroll(cloud, made["ticket"], key, device="cam-gate").status_code == 201
    third = enroll(cloud, made["ticket"])
    assert (third.status_code, third.json()["code"]) == (403, "ticket_refused")
    found = cloud.client.get("/v1/devices/cam-gate").json()
    assert (found["state"], found["labels"]) == ("enrolled", {"site": "berlin"})
    (listed,) = cloud.client.get("/v1/group-tickets").json()["items"]
    assert (listed["used"], listed["limit"]) == (2, 2)
    assert "ticket" not in listed
    assert made["ticket"] not in cloud.client.get("/v1/events").text


def test_at_once_no_more_enrol_than_the_limit(cloud, group):
    """Twelve devices with a ticket for five: five are taken."""
    ticket = group(limit=5)["ticket"]
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: enroll(cloud, ticket).status_code, range(12)))
    assert sorted(answers) == [201] * 5 + [403] * 7
    assert len(cloud.client.get("/v1/devices").json()["items"]) == 5


def test_a_group_ticket_takes_nobody_elses_name(cloud, group):
    """Not an enrolled device's, not one of another prefix, kind or label, not what is no name."""
    ticket = group(limit=9)["ticket"]
    taken = HttpDevice(cloud, "cam-1")
    taken.register()
    assert taken.enroll().status_code == 201
    other = {"id": "cam-2", "labels": {"site": "oslo"}}
    assert cloud.client.post("/v1/devices", json=other).status_code == 201
    for name in ("cam-1", "cam-2", "door-1", "cam"):
        answer = enroll(cloud, ticket, device=name)
        assert (answer.status_code, answer.json()["code"]) == (403, "ticket_refused"), name
    for name in ("cam-../x", "cam-+", "cam-a/b", "cam-A"):
        answer = enroll(cloud, ticket, device=name)
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_name"), name
    fits = {"id": "cam-3", "labels": {"site": "berlin", "line": "4"}}
    assert cloud.client.post("/v1/devices", json=fits).status_code == 201
    assert enroll(cloud, ticket, device="cam-3").status_code == 201
    assert cloud.client.get("/v1/group-tickets").json()["items"][0]["used"] == 1
    key = new_key()
    assert enroll(cloud, ticket, key, device="cam-4").status_code == 201
    assert enroll(cloud, ticket, key, device="cam-5").status_code == 403


def test_a_group_ticket_ends(cloud, group):
    """By its time, and by an operator; those who have enrolled stay."""
    early, late = group(limit=9), group(limit=9)
    assert enroll(cloud, early["ticket"]).status_code == 201
    assert cloud.client.delete(f"/v1/group-tickets/{early['id']}").status_code == 204
    assert cloud.client.delete(f"/v1/group-tickets/{early['id']}").status_code == 204
    assert cloud.client.delete("/v1/group-tickets/none").status_code == 404
    with cloud.program.database.write() as session:
        query = select(GroupTicketRow).where(GroupTicketRow.id == late["id"])
        session.scalars(query).one().not_after = format_time(system_clock() - timedelta(seconds=1))
    for made in (early, late):
        assert enroll(cloud, made["ticket"]).json()["code"] == "ticket_refused"
    assert len(cloud.client.get("/v1/devices").json()["items"]) == 1


@pytest.mark.parametrize(
    "wrong", [{"prefix": "../x"}, {"prefix": "c" * 60}, {"labels": {"A B": "x"}}, {"limit": 0}]
)
def test_a_group_that_cannot_be_gets_no_ticket(cloud, wrong):
    """Prefix, label and limit are checked before anything is made."""
    body = {"prefix": "cam", "limit": 2} | wrong
    assert cloud.client.post("/v1/group-tickets", json=body).status_code == 422
    assert cloud.client.get("/v1/group-tickets").json()["items"] == []


def test_devices_are_registered_all_or_none(cloud):
    """One bad line and nothing is; each problem has its place and field; a dry run does nothing."""
    cloud.client.post("/v1/devices", json={"id": "cam-1"})
    good = [{"id": f"new-{n}", "labels": {"site": "berlin"}} for n in range(3)]
    bad = [
        {"id": "cam-1"}, {"id": "../x"}, {"id": "new-1"}, {"id": "new-9", "labels": {"A B": "1"}},
        {"id": "new-8", "hardware": "a b"},
    ]  # fmt: skip
    refused = cloud.client.post("/v1/devices/import", json={"devices": good + bad})
    assert (refused.status_code, refused.json()["code"]) == (422, "import_refused")
    places = [(p["place"], p["field"]) for p in refused.json()["problems"]]
    assert places == [(3, "id"), (4, "id"), (5, "id"), (6, "labels"), (7, "hardware")]
    dry = cloud.client.post("/v1/devices/import", json={"devices": good, "dry_run": True})
    assert dry.json() == {"devices": 3, "dry_run": True}
    assert len(cloud.client.get("/v1/devices").json()["items"]) == 1
    assert cloud.client.post("/v1/devices/import", json={"devices": good}).status_code == 200
    assert len(cloud.client.get("/v1/devices").json()["items"]) == 4
