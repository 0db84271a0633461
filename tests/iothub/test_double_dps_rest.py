"""The double's provisioning service and Resource Manager over REST; its process."""

import json
import signal
import ssl
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from edgefleet_provisioning.iothub_double.credentials import make_token
from edgefleet_provisioning.iothub_double.provisioning import Proof
from tests.iothub import pki
from tests.iothub.service_world import HOST, VERSION, service_world, until

KEYS = {"attestation": {"type": "symmetricKey", "symmetricKey": {}}}
HUBS = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Devices/IotHubs/fleet/certificates"
SERVICES = HUBS.replace("IotHubs/fleet", "provisioningServices/fleet-dps")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A hub with a provisioning service before it."""
    with service_world(tmp_path_factory.mktemp("double")) as made:
        yield made


@pytest.fixture
def rest(world):
    """A client of the provisioning service's interface."""
    (policy, key), *_ = world.dps.policies.items()
    token = make_token(world.dps.host, key, int(world.azure.clock.now()) + 600, policy)
    with world.common(token) as client:
        yield client


@pytest.fixture
def manager(world):
    """A client of Resource Manager."""
    issuer = world.side.issuer
    secret = issuer.register("owner", "Contributor")
    scope = "https://management.azure.com/.default"
    token = issuer.token("owner", secret, scope, "https://login")["access_token"]
    with world.common(f"Bearer {token}") as client:
        yield client


@pytest.mark.parametrize("kind", ["enrollmentGroups", "enrollments"])
def test_an_enrolment_is_made_changed_listed_and_deleted(world, rest, kind):
    """Its keys are told only to who asks for them; a change needs the etag."""
    made = rest.put(f"/{kind}/plant", json=KEYS)
    assert made.status_code == 200, made.text
    assert made.json()["attestation"]["symmetricKey"]["primaryKey"] is None
    assert rest.put(f"/{kind}/plant", json=KEYS).status_code == 409
    stale = rest.put(f"/{kind}/plant", json=KEYS, headers={"If-Match": '"old"'})
    assert stale.status_code == 412
    assert stale.json()["message"]
    keys = rest.post(f"/{kind}/plant/attestationmechanism").json()["symmetricKey"]
    disabled = {**made.json(), "provisioningStatus": "disabled"}
    changed = rest.put(f"/{kind}/plant", json=disabled, headers={"If-Match": made.headers["ETag"]})
    assert changed.json()["provisioningStatus"] == "disabled"
    assert rest.post(f"/{kind}/plant/attestationmechanism").json()["symmetricKey"] == keys
    assert world.dps.enrolments.whole(kind, "plant")["provisioningStatus"] == "disabled"
    for name in ("plant-2", "plant-3"):
        rest.put(f"/{kind}/{name}", json=KEYS)
    assert _ids(rest, kind) == [["plant", "plant-2"], ["plant-3"]]
    for name in ("plant", "plant-2", "plant-3"):
        assert rest.delete(f"/{kind}/{name}").status_code == 204
    assert rest.get(f"/{kind}/plant").status_code == 404


def _ids(rest, kind):
    pages, headers = [], {"x-ms-max-item-count": "2"}
    while True:
        answer = rest.post(
            f"/{kind}/query", json={"query": f"SELECT * FROM {kind}"}, headers=headers
        )
        name = "enrollmentGroupId" if kind == "enrollmentGroups" else "registrationId"
        pages.append([one[name] for one in answer.json()])
        if "x-ms-continuation" not in answer.headers:
            return pages
        headers["x-ms-continuation"] = answer.headers["x-ms-continuation"]


def test_a_group_of_certificates_needs_one(rest):
    """Signing certificates as PEM or base64; none at all is refused."""
    ca = pki.make("plant ca", ca=True)
    signing = {"signingCertificates": {"primary": {"certificate": ca.pem.decode()}}}
    good = {"attestation": {"type": "x509", "x509": signing}}
    assert rest.put("/enrollmentGroups/certified", json=good).status_code == 200
    bad = {"attestation": {"type": "x509", "x509": {}}}
    assert rest.put("/enrollmentGroups/empty", json=bad).status_code == 400


def test_individual_enrolments_come_in_bulk(rest):
    """A list is made, and one that fails is named."""
    two = [{"registrationId": name, **KEYS} for name in ("d1", "d2")]
    body = {"mode": "create", "enrollments": two}
    assert rest.post("/enrollments", json=body).json()["isSuccessful"]
    again = rest.post("/enrollments", json=body).json()
    assert [one["registrationId"] for one in again["errors"]] == ["d1", "d2"]
    gone = {"mode": "delete", "enrollments": two}
    assert rest.post("/enrollments", json=gone).json()["isSuccessful"]


def test_registrations_are_read_and_forgotten(world, rest):
    """What the service knows of a device that has come by a group."""
    rest.put("/enrollmentGroups/line", json=KEYS)
    document = world.dps.enrolments.whole("enrollmentGroups", "line")
    identity = {"auth": "sas", "primary": None, "secondary": None}
    world.dps.register("dev-9", _proof(document, identity))
    state = rest.get("/registrations/dev-9").json()
    assert (state["assignedHub"], state["status"]) == (HOST, "assigned")
    listed = rest.post("/registrations/line/query").json()
    assert [one["registrationId"] for one in listed] == ["dev-9"]
    assert rest.delete("/registrations/dev-9").status_code == 204
    assert rest.get("/registrations/dev-9").status_code == 404


def _proof(document, identity):
    return Proof(document, "line", identity)


def test_a_hubs_token_opens_no_provisioning_service(world):
    """The service takes tokens of its own policies alone."""
    key = world.hub.policies["iothubowner"]
    token = make_token(world.hub.host, key, int(world.azure.clock.now()) + 60, "iothubowner")
    with world.common(token) as client:
        assert client.get("/enrollmentGroups/plant").status_code == 401


@pytest.mark.parametrize("path", [HUBS, SERVICES])
def test_a_ca_is_trusted_once_its_key_is_proved(world, manager, path):
    """Upload, code, proof; a proof of another code or by another key changes nothing."""
    ca, other = pki.make("fleet ca", ca=True), pki.make("fleet ca", ca=True)
    body = {"properties": {"certificate": ca.pem.decode()}}
    made = manager.put(f"{path}/fleet-ca", json=body).json()
    assert not made["properties"]["isVerified"]
    assert not _trusted(world, path)
    assert manager.post(f"{path}/fleet-ca/generateVerificationCode").status_code == 412
    etag = {"If-Match": made["etag"]}
    asked = manager.post(f"{path}/fleet-ca/generateVerificationCode", headers=etag).json()
    code, etag = asked["properties"]["verificationCode"], {"If-Match": asked["etag"]}
    for wrong in (pki.make("another code", ca), pki.make(code, other)):
        proof = {"certificate": wrong.pem.decode()}
        answer = manager.post(f"{path}/fleet-ca/verify", json=proof, headers=etag)
        assert answer.status_code == 400
    assert not _trusted(world, path)
    proof = {"certificate": pki.make(code, ca).pem.decode()}
    done = manager.post(f"{path}/fleet-ca/verify", json=proof, headers=etag).json()
    assert done["properties"]["isVerified"]
    assert _trusted(world, path) == [ca.certificate]
    listed = manager.get(path).json()["value"]
    assert [one["name"] for one in listed] == ["fleet-ca"]
    gone = manager.delete(f"{path}/fleet-ca", headers={"If-Match": done["etag"]})
    assert gone.status_code == 204
    assert not _trusted(world, path)


def _trusted(world, path):
    if path == HUBS:
        return list(world.hub.registry.authorities)
    return list(world.dps.enrolments.authorities.values())


def test_resource_manager_wants_who_may_manage(world, manager):
    """A token without the role is refused, and so is a resource that is not there."""
    issuer = world.side.issuer
    secret = issuer.register("reader", "IoT Hub Data Reader")
    scope = "https://management.azure.com/.default"
    token = issuer.token("reader", secret, scope, "https://login")["access_token"]
    with world.common(f"Bearer {token}") as client:
        assert client.get(HUBS).status_code == 401
    assert manager.get(HUBS.replace("fleet", "nobody")).status_code == 404


def test_the_double_runs_as_a_process(tmp_path):
    """It says where everything is once it answers, and ends at SIGTERM."""
    ca = pki.make("device ca", ca=True)
    trusted = tmp_path / "device-ca.pem"
    trusted.write_bytes(ca.pem)
    ready = tmp_path / "ready.json"
    process = subprocess.Popen(
        [
            sys.executable, "-m", "edgefleet_provisioning.iothub_double",
            "--folder", str(tmp_path / "azure"), "--ready-file", str(ready),
            "--trust", str(trusted), "--hub", "fleet-a", "--hub", "fleet-b",
        ]
    )  # fmt: skip
    try:
        until(lambda: ready.exists() or process.poll() is not None, "the double")
        facts = json.loads(ready.read_bytes())
        assert [hub["name"] for hub in facts["hubs"]] == ["fleet-a", "fleet-b"]
        for hub in facts["hubs"]:
            assert _get(facts, hub, "/statistics/devices")["totalDeviceCount"] == 0
        for name in ("events_connection_string_file", "dps_connection_string_file"):
            assert Path(facts[name]).stat().st_mode & 0o077 == 0
        assert facts["dps_scope"].startswith("0ne")
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert not ready.exists()


def _get(facts, hub, path):
    text = Path(hub["connection_string_file"]).read_text().strip()
    pairs = dict(part.split("=", 1) for part in text.split(";"))
    assert pairs["HostName"] == hub["host"]
    token = make_token(
        pairs["HostName"], pairs["SharedAccessKey"], 4_000_000_000, pairs["SharedAccessKeyName"]
    )
    context = ssl.create_default_context(cafile=facts["ca"])
    answer = httpx.get(
        f"https://{hub['rest']}{path}", params=VERSION, headers={"Authorization": token},
        verify=context,
    )  # fmt: skip
    return answer.raise_for_status().json()


_WRONG = {
    "an address of another machine": (["--address", "192.0.2.1"], "another --address"),
    "a CA that is not there": (["--trust", "/nowhere.pem"], "the PEM file of a CA"),
    "no units": (["--units", "0"], "1 to 200 units"),
}


@pytest.mark.parametrize("case", _WRONG)
def test_the_process_says_what_is_wrong(tmp_path, case):
    """Each refusal names what to do, and the double does not start."""
    options, hint = _WRONG[case]
    command = [sys.executable, "-m", "edgefleet_provisioning.iothub_double", "--folder", "azure"]
    done = subprocess.run(
        [*command, *options], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode != 0
    assert hint.lower() in done.stderr.lower()
    assert "Traceback" not in done.stderr
