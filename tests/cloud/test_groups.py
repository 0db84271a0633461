"""/v1/groups and /v1/selectors/validate."""

from __future__ import annotations

import pytest

BERLIN = 'labels.site == "berlin"'


@pytest.fixture
def berlin(cloud):
    """Two devices in Berlin, one in Paris, and a group for Berlin."""
    for name, site in (("cam-1", "berlin"), ("cam-2", "berlin"), ("cam-3", "paris")):
        body = {"id": name, "labels": {"site": site}}
        assert cloud.client.post("/v1/devices", json=body).status_code == 201
    body = {"name": "berlin", "selector": BERLIN}
    assert cloud.client.post("/v1/groups", json=body).status_code == 201
    return cloud


def _members(cloud, **query):
    answer = cloud.client.get("/v1/groups/berlin/devices", params=query)
    assert answer.status_code == 200, answer.text
    return [each["id"] for each in answer.json()["items"]]


def test_a_group_means_what_its_selector_finds_now(berlin):
    """Members change with labels, and a decommissioned device is none."""
    assert _members(berlin) == ["cam-1", "cam-2"]
    change = {"labels": {"site": "berlin"}}
    berlin.client.patch("/v1/devices/cam-3", json=change, headers={"If-Match": "*"})
    assert _members(berlin) == ["cam-1", "cam-2", "cam-3"]
    berlin.client.delete("/v1/devices/cam-2")
    assert _members(berlin) == ["cam-1", "cam-3"]
    assert _members(berlin, filter='not id == "cam-1"') == ["cam-3"]


def test_a_group_is_changed_with_its_etag_and_deleted(berlin):
    """PUT needs the ETag; after DELETE the name is unknown."""
    got = berlin.client.get("/v1/groups/berlin")
    body = {"name": "berlin", "selector": 'labels.site == "paris"'}
    assert berlin.client.put("/v1/groups/berlin", json=body).status_code == 428
    match = {"If-Match": got.headers["etag"]}
    assert berlin.client.put("/v1/groups/berlin", json=body, headers=match).status_code == 200
    assert berlin.client.put("/v1/groups/berlin", json=body, headers=match).status_code == 412
    assert _members(berlin) == ["cam-3"]
    assert berlin.client.delete("/v1/groups/berlin").status_code == 204
    assert berlin.client.get("/v1/groups/berlin").status_code == 404
    assert berlin.client.get("/v1/groups").json()["items"] == []


BAD_REQUESTS = [
    ("POST", "/v1/groups", {"name": "Berlin", "selector": BERLIN}, 422, "invalid_name"),
    ("POST", "/v1/groups", {"name": "b", "selector": "site == 1"}, 400, "invalid_filter"),
    ("POST", "/v1/groups", {"name": "b", "selector": ""}, 400, "invalid_filter"),
    ("POST", "/v1/groups", {"name": "berlin", "selector": BERLIN}, 409, "group_exists"),
    ("POST", "/v1/groups", {"name": "b"}, 422, "validation"),
    ("PUT", "/v1/groups/berlin", {"selector": "id"}, 400, "invalid_filter"),
    ("PUT", "/v1/groups/berlin", {"name": "x", "selector": BERLIN}, 422, "invalid_input"),
    ("PUT", "/v1/groups/none", {"selector": BERLIN}, 404, "not_found"),
    ("GET", "/v1/groups/none", None, 404, "not_found"),
    ("DELETE", "/v1/groups/none", None, 404, "not_found"),
    ("GET", "/v1/groups/none/devices", None, 404, "not_found"),
    ("GET", "/v1/groups?filter=x", None, 400, "invalid_filter"),
    ("GET", "/v1/groups/berlin/devices?filter=x", None, 400, "invalid_filter"),
    ("POST", "/v1/selectors/validate", {}, 422, "validation"),
]


def test_bad_requests_change_nothing(berlin):
    """Each wrong request gets its problem, and the group is as before."""
    for method, path, body, status, code in BAD_REQUESTS:
        answer = berlin.client.request(method, path, json=body, headers={"If-Match": "*"})
        assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    (group,) = berlin.client.get("/v1/groups").json()["items"]
    assert (group["name"], group["selector"]) == ("berlin", BERLIN)


def test_a_selector_is_explained(berlin):
    """A good one is counted and spelled canonically; a bad one is marked where it fails."""
    text = "(labels.site=='berlin')and not id  in ( 'cam-1' )"
    good = berlin.client.post("/v1/selectors/validate", json={"filter": text}).json()
    assert good["valid"] is True
    assert good["canonical"] == 'labels.site == "berlin" and not id in ("cam-1")'
    assert good["devices"] == 1
    bad = berlin.client.post("/v1/selectors/validate", json={"filter": "labels.site = 1"}).json()
    assert (bad["valid"], bad["position"]) == (False, 12)
    assert "==" in bad["hint"]
