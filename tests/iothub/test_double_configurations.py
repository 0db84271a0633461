"""IoT Edge over the double's REST interface: modules set at once, deployments, layered ones."""

import pytest

from tests.iothub.service_world import service_world

AGENT = {"properties.desired": {"modules": {"edgefleet": {"type": "docker"}}}}
BASE = {
    "content": {
        "modulesContent": {
            "$edgeAgent": AGENT,
            "$edgeHub": {"properties.desired": {"routes": {}}},
            "edgefleet": {"properties.desired": {"iothub": {"report_min_s": 5}}},
        }
    },
    "targetCondition": "tags.site = 'a'",
    "priority": 10,
}
LAYER = {
    "content": {
        "modulesContent": {
            "$edgeAgent": {"properties.desired.modules.camera": {"type": "docker"}},
            "edgefleet": {"properties.desired.iothub.report_min_s": 60},
        }
    },
    "targetCondition": "*",
    "priority": 20,
}
ANY = {"If-Match": "*"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A hub and a client with all rights."""
    with service_world(tmp_path_factory.mktemp("double")) as world, world.client() as client:
        yield world, client


@pytest.fixture
def rest(made):
    """The client; two IoT Edge devices, of sites a and b; no configuration."""
    world, client = made
    world.azure.clock.advance(60)
    for one in client.get("/configurations").json():
        client.delete(f"/configurations/{one['id']}", headers=ANY)
    for name, site in (("edge-a", "a"), ("edge-b", "b")):
        client.delete(f"/devices/{name}", headers=ANY)
        client.put(f"/devices/{name}", json={"capabilities": {"iotEdge": True}})
        client.patch(f"/twins/{name}", json={"tags": {"site": site}})
    return client


def _desired(rest, device, module):
    found = rest.get(f"/twins/{device}/modules/{module}").json()["properties"]["desired"]
    return {name: value for name, value in found.items() if not name.startswith("$")}


def _modules(rest, device):
    return sorted(one["moduleId"] for one in rest.get(f"/devices/{device}/modules").json())


def test_an_edge_device_has_its_runtimes_modules(rest):
    """$edgeAgent and $edgeHub are there from the beginning, managed by IoT Edge."""
    assert _modules(rest, "edge-a") == ["$edgeAgent", "$edgeHub"]
    assert rest.get("/devices/edge-a/modules/$edgeAgent").json()["managedBy"] == "iotEdge"


def test_set_modules_makes_them_and_their_twins(rest):
    """applyConfigurationContent: the identities of the modules, and their desired properties."""
    answer = rest.post("/devices/edge-a/applyConfigurationContent", json=BASE["content"])
    assert answer.status_code == 204
    assert _modules(rest, "edge-a") == ["$edgeAgent", "$edgeHub", "edgefleet"]
    assert _desired(rest, "edge-a", "edgefleet") == {"iothub": {"report_min_s": 5}}
    assert _desired(rest, "edge-a", "$edgeAgent") == AGENT["properties.desired"]


def test_set_modules_needs_an_edge_device_and_desired_properties(rest):
    """A plain device and a path elsewhere are refused."""
    rest.put("/devices/plain", json={})
    path = "/devices/{}/applyConfigurationContent"
    assert rest.post(path.format("plain"), json=BASE["content"]).status_code == 400
    assert rest.post(path.format("nobody"), json=BASE["content"]).status_code == 404
    assert rest.post(path.format("edge-a"), json={}).status_code == 400
    other = {"modulesContent": {"m": {"tags.site": "b"}}}
    assert rest.post(path.format("edge-a"), json=other).status_code == 400
    rest.delete("/devices/plain", headers=ANY)


def test_a_deployment_goes_where_its_condition_says(rest):
    """Devices that fit have it, others not, until their tags change."""
    made = rest.put("/configurations/base", json=BASE)
    assert made.status_code == 200, made.text
    assert made.json()["systemMetrics"]["results"] == {"targetedCount": 1}
    assert _modules(rest, "edge-a") == ["$edgeAgent", "$edgeHub", "edgefleet"]
    assert _modules(rest, "edge-b") == ["$edgeAgent", "$edgeHub"]
    rest.patch("/twins/edge-b", json={"tags": {"site": "a"}})
    assert _desired(rest, "edge-b", "edgefleet") == {"iothub": {"report_min_s": 5}}


def test_a_layered_deployment_adds_to_the_base(rest):
    """It changes what it names and nothing else; without it the base is back."""
    rest.put("/configurations/base", json=BASE)
    rest.put("/configurations/layer", json=LAYER)
    agent = _desired(rest, "edge-a", "$edgeAgent")["modules"]
    assert agent == {"edgefleet": {"type": "docker"}, "camera": {"type": "docker"}}
    assert _desired(rest, "edge-a", "edgefleet") == {"iothub": {"report_min_s": 60}}
    assert "camera" in _modules(rest, "edge-a")
    assert _modules(rest, "edge-b") == ["$edgeAgent", "$edgeHub"]  # a layer needs a base
    assert rest.delete("/configurations/layer", headers=ANY).status_code == 204
    assert _desired(rest, "edge-a", "edgefleet") == {"iothub": {"report_min_s": 5}}


def test_an_unchanged_configuration_writes_no_twin(rest):
    """A twin's version grows only where its content changes."""
    rest.put("/configurations/base", json=BASE)
    before = rest.get("/twins/edge-a/modules/edgefleet").json()["version"]
    rest.patch("/twins/edge-b", json={"tags": {"line": "7"}})
    assert rest.get("/twins/edge-a/modules/edgefleet").json()["version"] == before


def test_plain_devices_are_configured_by_their_twins(rest):
    """DeviceContent lays desired properties into the twins of devices that are no IoT Edge ones."""
    rest.put("/devices/plain", json={})
    rest.patch("/twins/plain", json={"properties": {"desired": {"mine": 1}}})
    content = {"deviceContent": {"properties.desired.edge.rate": 7}}
    said = {"content": content, "targetCondition": "deviceId = 'plain'", "priority": 1}
    rest.put("/configurations/plain", json=said)
    found = rest.get("/twins/plain").json()["properties"]["desired"]
    assert (found["mine"], found["edge"]) == (1, {"rate": 7})
    rest.delete("/devices/plain", headers=ANY)


def test_configurations_have_etags(rest):
    """409 for one that exists, 412 for an old etag, 404 for one that does not, 400 for nonsense."""
    made = rest.put("/configurations/base", json=BASE)
    assert rest.put("/configurations/base", json=BASE).status_code == 409
    old = {"If-Match": '"old"'}
    assert rest.put("/configurations/base", json=BASE, headers=old).status_code == 412
    right = {"If-Match": made.headers["ETag"]}
    assert rest.put("/configurations/base", json=BASE, headers=right).status_code == 200
    assert rest.put("/configurations/none", json=BASE, headers=ANY).status_code == 404
    odd = {**BASE, "targetCondition": "tags.site ~ 'a'"}
    assert rest.put("/configurations/odd", json=odd).status_code == 400
    assert rest.get("/configurations/odd").status_code == 404
