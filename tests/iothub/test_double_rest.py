"""The double's service interface over REST, and its issuer, driven by httpx and azure-identity."""

import json
import threading

import httpx
import pytest
from azure.core.exceptions import ClientAuthenticationError

from edgefleet_provisioning.iothub_double.credentials import make_token
from tests.iothub.service_world import HOST, OTHER, VERSION, service_world

ANY = {"If-Match": "*"}
SCOPE = "https://iothubs.azure.net/.default"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two hubs behind one server."""
    with service_world(tmp_path_factory.mktemp("double"), hosts=(HOST, OTHER)) as found:
        yield found


@pytest.fixture
def world(made):
    """The same, its first hub without a device and with full buckets."""
    for identity in made.hub.registry.all():
        made.hub.registry.delete(identity.device)
    made.azure.clock.advance(120)
    return made


@pytest.fixture
def rest(world):
    """A client with all rights."""
    with world.client() as client:
        yield client


def _refused(response, status, code):
    assert response.status_code == status, response.text
    assert response.json()["Message"].startswith(f"ErrorCode:{code};"), response.text
    assert "ExceptionMessage" in response.json()


def test_a_device_is_made_changed_and_deleted(rest):
    """Each step needs the etag that the hub last gave, or `*`."""
    made = rest.put("/devices/d1", json={"deviceId": "d1"})
    assert made.status_code == 200
    assert made.json()["authentication"]["type"] == "sas"
    assert made.json()["authentication"]["symmetricKey"]["primaryKey"]
    assert made.headers["ETag"] == f'"{made.json()["etag"]}"'
    _refused(rest.put("/devices/d1", json={"deviceId": "d1"}), 409, "DeviceAlreadyExists")
    disabled = {**made.json(), "status": "disabled", "statusReason": "revoked"}
    old = {"If-Match": '"AAAA"'}
    _refused(rest.put("/devices/d1", json=disabled, headers=old), 412, "PreconditionFailed")
    right = {"If-Match": made.headers["ETag"]}
    changed = rest.put("/devices/d1", json=disabled, headers=right).json()
    assert (changed["status"], changed["statusReason"]) == ("disabled", "revoked")
    assert changed["authentication"] == made.json()["authentication"]
    assert rest.delete("/devices/d1", headers=ANY).status_code == 204
    _refused(rest.get("/devices/d1"), 404, "DeviceNotFound")
    _refused(rest.put("/devices/d1", json=disabled, headers=ANY), 404, "DeviceNotFound")


def test_certificates_take_the_place_of_keys(rest):
    """A device of a CA has no key; one with its own certificate has thumbprints."""
    ca = {"deviceId": "d1", "authentication": {"type": "certificateAuthority"}}
    made = rest.put("/devices/d1", json=ca).json()["authentication"]
    assert made["type"] == "certificateAuthority"
    assert made["symmetricKey"]["primaryKey"] is None
    prints = {"primaryThumbprint": "a" * 40, "secondaryThumbprint": ""}
    own = {"authentication": {"type": "selfSigned", "x509Thumbprint": prints}}
    kept = rest.put("/devices/d2", json=own).json()["authentication"]["x509Thumbprint"]
    assert kept["primaryThumbprint"] == "A" * 40
    bad = {"authentication": {"type": "selfSigned", "x509Thumbprint": {"primaryThumbprint": "x"}}}
    _refused(rest.put("/devices/d3", json=bad), 400, "ArgumentInvalid")


def test_devices_are_listed_and_counted(rest):
    """A list of at most `top`, and how many are enabled."""
    for number in range(4):
        status = "disabled" if number == 0 else "enabled"
        rest.put(f"/devices/d{number}", json={"status": status})
    listed = rest.get("/devices", params={**VERSION, "top": 3}).json()
    assert [one["deviceId"] for one in listed] == ["d0", "d1", "d2"]
    _refused(rest.get("/devices", params={**VERSION, "top": 1001}), 400, "ArgumentInvalid")
    told = rest.get("/statistics/devices").json()
    assert told == {"totalDeviceCount": 4, "enabledDeviceCount": 3, "disabledDeviceCount": 1}
    assert rest.get("/statistics/service").json() == {"connectedDeviceCount": 0}


def test_bulk_operations_say_which_failed(rest):
    """One that fails stops no other, and the answer is 400."""
    three = [{"id": name, "importMode": "create"} for name in ("d1", "d2", "d3")]
    three[0]["tags"] = {"site": "a"}
    assert rest.post("/devices", json=three).json()["isSuccessful"]
    assert rest.get("/twins/d1").json()["tags"] == {"site": "a"}
    mixed = [
        {"id": "d1", "importMode": "create"},
        {"id": "d2", "importMode": "update", "status": "disabled"},
        {"id": "d3", "importMode": "deleteIfMatchETag", "eTag": "old"},
        {"id": "d4", "importMode": "delete"},
    ]
    answer = rest.post("/devices", json=mixed)
    assert answer.status_code == 400
    assert {one["deviceId"]: one["errorCode"] for one in answer.json()["errors"]} == {
        "d1": "DeviceAlreadyExists", "d3": "PreconditionFailed", "d4": "DeviceNotFound",
    }  # fmt: skip
    assert rest.get("/devices/d2").json()["status"] == "disabled"
    over = [{"id": f"x{number}"} for number in range(101)]
    _refused(rest.post("/devices", json=over), 400, "ArgumentInvalid")


def test_a_twin_is_patched_and_replaced(rest):
    """A patch merges and null deletes; PUT replaces; both heed If-Match and the twin's rules."""
    rest.put("/devices/d1", json={})
    patch = {"tags": {"site": "a"}, "properties": {"desired": {"a": {"b": 1, "c": 2}}}}
    first = rest.patch("/twins/d1", json=patch)
    assert first.headers["ETag"] == f'"{first.json()["etag"]}"'
    merged = rest.patch("/twins/d1", json={"properties": {"desired": {"a": {"b": None}}}}).json()
    assert merged["properties"]["desired"]["a"] == {"c": 2}
    assert merged["properties"]["desired"]["$version"] == 3
    stale = {"If-Match": first.headers["ETag"]}
    _refused(rest.patch("/twins/d1", json=patch, headers=stale), 412, "PreconditionFailed")
    put = {"properties": {"desired": {"z": 1}}}
    replaced = rest.put("/twins/d1", json=put, headers=ANY).json()
    assert "a" not in replaced["properties"]["desired"]
    assert replaced["tags"] == {"site": "a"}
    dotted = {"properties": {"desired": {"a.b": 1}}}
    assert rest.patch("/twins/d1", json=dotted).status_code == 400
    _refused(rest.get("/twins/nobody"), 404, "DeviceNotFound")


def test_modules_have_identities_and_twins(rest):
    """A module lies below its device, and goes with it."""
    rest.put("/devices/d1", json={})
    made = rest.put("/devices/d1/modules/m1", json={"moduleId": "m1", "managedBy": "me"})
    assert made.json()["managedBy"] == "me"
    rest.patch("/twins/d1/modules/m1", json={"properties": {"desired": {"a": 1}}})
    twin = rest.get("/twins/d1/modules/m1").json()
    assert (twin["moduleId"], twin["properties"]["desired"]["a"]) == ("m1", 1)
    assert [one["moduleId"] for one in rest.get("/devices/d1/modules").json()] == ["m1"]
    _refused(rest.put("/devices/nobody/modules/m1", json={}), 404, "DeviceNotFound")
    rest.delete("/devices/d1", headers=ANY)
    _refused(rest.get("/twins/d1/modules/m1"), 404, "ModuleNotFound")


_QUERIES = {
    "SELECT * FROM devices": ["d0", "d1", "d2", "d3", "d4"],
    "SELECT deviceId FROM devices WHERE tags.site = 'a'": ["d0", "d2", "d4"],
    "SELECT deviceId FROM devices WHERE tags.site != 'a' AND status = 'enabled'": ["d1", "d3"],
    "SELECT deviceId FROM devices WHERE properties.desired.n >= 3": ["d3", "d4"],
    "select deviceId from devices where deviceId in ['d1', 'd3']": ["d1", "d3"],
    "SELECT deviceId FROM devices WHERE NOT (tags.site = 'a' OR properties.desired.n = 1)": ["d3"],
    "SELECT deviceId FROM devices WHERE is_defined(properties.reported.edgefleet)": [],
    "SELECT deviceId FROM devices WHERE properties.desired.n > '1'": [],
}


@pytest.mark.parametrize("query", _QUERIES)
def test_a_query_finds_what_it_asks_for(world, rest, query):
    """Comparisons, lists, NOT, AND, OR and is_defined over twins."""
    _five(world)
    found = rest.post("/devices/query", json={"query": query})
    assert found.status_code == 200, found.text
    assert [one["deviceId"] for one in found.json()] == _QUERIES[query]
    kind = "Twin" if "*" in query else "Raw"
    assert found.headers["x-ms-item-type"] == kind


def test_a_query_comes_in_pages(world, rest):
    """A continuation leads to the next page, whatever is deleted meanwhile, and fits its query."""
    _five(world)
    body = {"query": "SELECT deviceId FROM devices"}
    two = {"x-ms-max-item-count": "2"}
    first = rest.post("/devices/query", json=body, headers=two)
    assert [one["deviceId"] for one in first.json()] == ["d0", "d1"]
    world.hub.registry.delete("d0")
    onward = {**two, "x-ms-continuation": first.headers["x-ms-continuation"]}
    second = rest.post("/devices/query", json=body, headers=onward)
    assert [one["deviceId"] for one in second.json()] == ["d2", "d3"]
    onward["x-ms-continuation"] = second.headers["x-ms-continuation"]
    third = rest.post("/devices/query", json=body, headers=onward)
    assert [one["deviceId"] for one in third.json()] == ["d4"]
    assert "x-ms-continuation" not in third.headers
    other = {"query": "SELECT * FROM devices"}
    _refused(rest.post("/devices/query", json=other, headers=onward), 400, "ArgumentInvalid")


_NO_QUERIES = [
    "",
    "DELETE FROM devices",
    "SELECT * FROM jobs",
    "SELECT * FROM devices WHERE",
    "SELECT * FROM devices WHERE a ~ 1",
    "SELECT * FROM devices ORDER BY a",
]


@pytest.mark.parametrize("query", _NO_QUERIES)
def test_a_query_that_is_not_understood_is_refused(rest, query):
    """The double says so instead of answering something else."""
    assert rest.post("/devices/query", json={"query": query}).status_code == 400


def _five(world):
    for number in range(5):
        world.hub.registry.create(f"d{number}")
        patch = {
            "tags": {"site": "b" if number % 2 else "a"},
            "properties": {"desired": {"n": number}},
        }
        world.hub.patch_twin(f"d{number}", "", patch)


class _Device:
    """A connected device that answers methods, or does not."""

    def __init__(self, hub, device, answers=True):
        self._hub = hub
        self._answers = answers
        self.session = hub.sessions.attach(device, "", self)

    def method(self, rid, name, payload):
        if self._answers:
            say = self._hub.sessions.answer
            threading.Thread(target=say, args=(self.session, rid, 201, payload)).start()
        return True

    def thrown_out(self, reason):
        pass


def _unanswered(response, status, number):
    assert response.status_code == status, response.text
    assert json.loads(response.json()["Message"])["errorCode"] == number


def test_a_method_reaches_a_connected_device(world, rest):
    """Its status and payload come back; a device that is away or mute is told apart."""
    world.hub.registry.create("d1")
    call = {"methodName": "ping", "payload": {"a": 1}, "responseTimeoutInSeconds": 10}
    _unanswered(rest.post("/twins/d1/methods", json=call), 404, 404103)
    _refused(rest.post("/twins/nobody/methods", json=call), 404, "DeviceNotFound")
    device = _Device(world.hub, "d1")
    assert rest.post("/twins/d1/methods", json=call).json() == {"status": 201, "payload": {"a": 1}}
    world.hub.sessions.detach(device.session)
    mute = _Device(world.hub, "d1", answers=False)
    soon = {**call, "responseTimeoutInSeconds": 1}
    _refused(rest.post("/twins/d1/methods", json=soon), 400, "ArgumentInvalid")
    world.side.rest.api.method_min_s = 0.1
    at_once = {**call, "responseTimeoutInSeconds": 0.1}
    _unanswered(rest.post("/twins/d1/methods", json=at_once), 504, 504101)
    world.side.rest.api.method_min_s = 5.0
    world.hub.sessions.detach(mute.session)


def test_a_method_waits_for_a_device_that_is_about_to_connect(world, rest):
    """ConnectTimeoutInSeconds."""
    world.hub.registry.create("d1")
    timer = threading.Timer(0.3, lambda: _Device(world.hub, "d1"))
    timer.start()
    call = {"methodName": "ping", "payload": 1, "connectTimeoutInSeconds": 20}
    assert rest.post("/twins/d1/methods", json=call).json() == {"status": 201, "payload": 1}
    timer.join()


def test_each_operation_has_its_bucket(world, rest):
    """Over the limit comes 429 with Retry-After, and the clock fills the bucket again."""
    world.hub.registry.create("d1")
    world.hub.throttles.set("twin_reads", 3, period_s=3000)
    asked = [rest.get("/twins/d1") for _ in range(4)]
    assert [one.status_code for one in asked] == [200, 200, 200, 429]
    _refused(asked[3], 429, "ThrottlingException")
    assert 900 < int(asked[3].headers["Retry-After"]) <= 1000
    assert rest.get("/devices/d1").status_code == 200
    world.azure.clock.advance(1001)
    assert rest.get("/twins/d1").status_code == 200
    world.hub.throttles.set("twin_reads", 100)


_RIGHTS = [
    ("service", "GET", "/twins/d1", 200),
    ("service", "GET", "/devices/d1", 401),
    ("registryRead", "GET", "/devices/d1", 200),
    ("registryRead", "PUT", "/devices/d9", 401),
    ("registryRead", "GET", "/twins/d1", 401),
    ("registryReadWrite", "PUT", "/devices/d8", 200),
    ("device", "GET", "/devices/d1", 401),
]


@pytest.mark.parametrize(("policy", "verb", "path", "status"), _RIGHTS)
def test_a_policy_may_what_its_rights_say(world, policy, verb, path, status):
    """service, registryRead, registryReadWrite and device each open another part."""
    world.hub.registry.create("d1")
    with world.client(policy=policy) as client:
        body = {} if verb == "PUT" else None
        assert client.request(verb, path, json=body).status_code == status


def test_bad_tokens_are_refused(world, rest):
    """Expired, wrongly signed, of another hub, of no policy, or none at all."""
    world.hub.registry.create("d1")
    hub, other = world.hub, world.azure.hub(OTHER)
    now, key = int(world.azure.clock.now()), hub.policies["service"]
    bad = {
        "expired": make_token(hub.host, key, now - 10, "service"),
        "wrong key": make_token(hub.host, other.policies["service"], now + 60, "service"),
        "another hub": make_token(other.host, other.policies["service"], now + 60, "service"),
        "no policy": make_token(hub.host, key, now + 60),
        "unknown policy": make_token(hub.host, key, now + 60, "nobody"),
        "another path": make_token(f"{hub.host}/devices/d2", key, now + 60, "service"),
        "none": "",
    }
    for case, token in bad.items():
        answer = rest.get("/twins/d1", headers={"Authorization": token})
        assert answer.status_code == 401, case
    good = make_token(f"{hub.host}/twins", key, now + 60, "service")
    assert rest.get("/twins/d1", headers={"Authorization": good}).status_code == 200


def test_the_version_of_the_interface_must_be_named(rest):
    """A request without api-version is refused, one for an unknown path too."""
    plain = rest.build_request("GET", "/devices/d1")
    plain.url = plain.url.copy_with(query=None)
    _refused(rest.send(plain), 400, "InvalidProtocolVersion")
    assert rest.get("/nothing").status_code == 404


def test_entra_tokens_open_what_their_roles_allow(world, rest):
    """azure-identity gets a token of the double's issuer, which the hub takes by its roles."""
    world.hub.registry.create("d1")
    issuer = world.side.issuer
    secrets = {
        "all": issuer.register("all", "IoT Hub Data Contributor"),
        "twins": issuer.register("twins", "IoT Hub Twin Contributor"),
    }
    tokens = {name: world.credential(name, found) for name, found in secrets.items()}
    paths = {("all", "/twins/d1"): 200, ("all", "/devices/d1"): 200}
    paths |= {("twins", "/twins/d1"): 200, ("twins", "/devices/d1"): 401}
    for (name, path), status in paths.items():
        bearer = {"Authorization": f"Bearer {tokens[name].get_token(SCOPE).token}"}
        assert rest.get(path, headers=bearer).status_code == status
    other = tokens["all"].get_token("https://management.azure.com/.default").token
    assert rest.get("/twins/d1", headers={"Authorization": f"Bearer {other}"}).status_code == 401
    forged = tokens["all"].get_token(SCOPE).token[:-6] + "AAAAAA"
    assert rest.get("/twins/d1", headers={"Authorization": f"Bearer {forged}"}).status_code == 401
    world.azure.clock.advance(3700)
    late = {"Authorization": f"Bearer {tokens['all'].get_token(SCOPE).token}"}
    assert rest.get("/twins/d1", headers=late).status_code == 401
    for credential in tokens.values():
        credential.close()


def test_a_wrong_secret_gets_no_token(world):
    """The issuer refuses as Entra ID does."""
    world.side.issuer.register("app", "IoT Hub Data Contributor")
    with (
        world.credential("app", "wrong") as credential,
        pytest.raises(ClientAuthenticationError, match="AADSTS7000215"),
    ):
        credential.get_token(SCOPE)


def test_the_common_port_serves_each_hub_by_name_or_token(world):
    """Without a port of its own a hub is meant by the Host header, or by the token."""
    other = world.azure.hub(OTHER)
    other.registry.create("only-there")
    with world.client(other) as client:
        base = httpx.URL(f"https://127.0.0.1:{world.side.rest.port}")
        by_token = client.get(base.join("/devices/only-there"))
        by_name = client.get(base.join("/devices/only-there"), headers={"Host": OTHER})
        wrong = client.get(base.join("/devices/only-there"), headers={"Host": HOST})
    assert (by_token.status_code, by_name.status_code, wrong.status_code) == (200, 200, 401)
