"""The fleet manager's client of a hub's service API, over TLS, against the double."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from azure.identity import ClientSecretCredential

from edgefleet_cloud.errors import NotFoundError
from edgefleet_cloud.hub_config import IotHub
from edgefleet_cloud.iothub import tokens
from edgefleet_cloud.iothub.registry import identity, with_status
from edgefleet_cloud.iothub.rest import HubRest, RefusedError, Throttled
from edgefleet_shared.errors import InvalidInputError, UnavailableError
from tests.iothub.service_world import World, service_world


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One double for all tests here; each takes devices of its own."""
    with service_world(tmp_path_factory.mktemp("double")) as made:
        yield made


def configured(service: World, folder: Path, policy: str = "iothubowner", **more) -> IotHub:
    """Return a hub as cloud.toml would name it."""
    path = folder / "connection.txt"
    path.write_text(service.hub.connection_string(policy))
    fields = {
        "name": "main",
        "host": service.hub.host,
        "connection_file": str(path),
        "events_file": "x",
        "ca": str(service.ca),
        "gateway": service.side.hub_url(service.hub).removeprefix("https://"),
    }
    return IotHub(**{**fields, **more})


@pytest.fixture
def rest(service: World, tmp_path: Path) -> Iterator[HubRest]:
    """A client with the owner's policy."""
    made = HubRest(configured(service, tmp_path))
    yield made
    made.close()


def test_a_twin_is_patched_and_read(rest: HubRest) -> None:
    """A patch is merged, null removes; the answer is the whole twin."""
    rest.put_device(identity("twin-1"))
    first = rest.patch_twin("twin-1", {"properties": {"desired": {"a": {"b": 1, "c": 2}}}})
    rest.patch_twin("twin-1", {"properties": {"desired": {"a": {"b": None}}}})
    found = rest.twin("twin-1")
    assert found is not None
    assert found["properties"]["desired"]["a"] == {"c": 2}
    assert found["properties"]["desired"]["$version"] == 3
    assert found["deviceId"] == first["deviceId"] == "twin-1"


def test_a_patch_only_of_what_was_seen(rest: HubRest) -> None:
    """With an etag that has passed, nothing is changed."""
    rest.put_device(identity("twin-2"))
    old = rest.twin("twin-2")
    assert old is not None
    rest.patch_twin("twin-2", {"tags": {"x": 1}}, etag=old["etag"])
    with pytest.raises(RefusedError) as caught:
        rest.patch_twin("twin-2", {"tags": {"x": 2}}, etag=old["etag"])
    assert caught.value.status == 412


def test_who_is_not_there_is_none(rest: HubRest) -> None:
    """Reading says so; writing is refused as unknown."""
    assert rest.twin("nobody") is None
    assert rest.device("nobody") is None
    rest.delete_device("nobody")
    with pytest.raises(NotFoundError, match="not registered"):
        rest.patch_twin("nobody", {"properties": {"desired": {}}})


def test_the_life_of_an_identity(rest: HubRest) -> None:
    """Created once, disabled, enabled, deleted."""
    made = rest.put_device(identity("life-1"))
    assert made["authentication"]["type"] == "certificateAuthority"
    with pytest.raises(RefusedError) as caught:
        rest.put_device(identity("life-1"))
    assert caught.value.status == 409
    for status in ("disabled", "enabled"):
        found = rest.device("life-1")
        assert found is not None
        changed = rest.put_device(with_status(found, status), etag="*")
        assert changed["status"] == status
    rest.delete_device("life-1")
    assert rest.device("life-1") is None


def test_a_device_with_keys_keeps_them_when_it_is_disabled(service: World, rest: HubRest) -> None:
    """Only the status is ours to change."""
    before = service.hub.registry.create("keys-1", auth="sas")
    key = before.primary
    found = rest.device("keys-1")
    assert found is not None
    rest.put_device(with_status(found, "disabled"), etag="*")
    after = service.hub.registry.get("keys-1")
    assert (after.status, after.auth, after.primary) == ("disabled", "sas", key)


def test_many_identities_at_once(rest: HubRest) -> None:
    """Up to a hundred in one request; what is wrong with some is told."""
    many = [{**_bulk(f"bulk-{n}"), "importMode": "create"} for n in range(30)]
    assert rest.bulk(many) == []
    assert rest.device("bulk-29") is not None
    with pytest.raises(InvalidInputError, match="more than 100"):
        rest.bulk([_bulk(f"b-{n}") for n in range(101)])


def _bulk(device: str) -> dict[str, object]:
    made = identity(device)
    return {"id": device, "status": made["status"], "authentication": made["authentication"]}


def test_a_query_goes_on_page_after_page(rest: HubRest) -> None:
    """Every row comes once, whatever a page holds; whoever counts queries is asked before each."""
    for n in range(7):
        rest.put_device(identity(f"page-{n}"))
    asked: list[int] = []
    rows = list(rest.query("SELECT * FROM devices", 3, lambda: asked.append(1)))
    names = [row["deviceId"] for row in rows]
    assert len(names) == len(set(names))
    assert {f"page-{n}" for n in range(7)} <= set(names)
    assert len(asked) == -(-len(names) // 3) or len(asked) == len(names) // 3 + 1


def test_statistics_count_devices(rest: HubRest) -> None:
    """How many there are, enabled or not."""
    rest.put_device(identity("count-1"))
    assert rest.statistics()["totalDeviceCount"] >= 1


def test_a_method_of_a_device_that_is_away(rest: HubRest) -> None:
    """It is not online, which is told as not found."""
    rest.put_device(identity("method-1"))
    with pytest.raises(NotFoundError):
        rest.invoke("method-1", "ping", {}, timeout_s=5)


def test_a_throttle_says_how_long(service: World, rest: HubRest) -> None:
    """429 is told apart from failures, with the wait that the hub asks for."""
    rest.put_device(identity("slow-1"))
    before = service.hub.throttles.limit("twin_updates")
    service.hub.throttles.set("twin_updates", 1, 10)
    try:
        rest.patch_twin("slow-1", {"tags": {"n": 1}})
        with pytest.raises(Throttled) as caught:
            rest.patch_twin("slow-1", {"tags": {"n": 2}})
        assert 1 <= caught.value.retry_after_s <= 60
    finally:
        service.hub.throttles.set("twin_updates", *before)


def test_what_breaks_a_twins_rules_is_refused(rest: HubRest) -> None:
    """A key with a dot is no key of a twin; again would not help."""
    rest.put_device(identity("rules-1"))
    with pytest.raises(RefusedError) as caught:
        rest.patch_twin("rules-1", {"properties": {"desired": {"a.b": 1}}})
    assert caught.value.status == 400


def test_a_wrong_key_and_too_small_a_policy(service: World, tmp_path: Path) -> None:
    """Both are told as a matter of credentials, with what to check."""
    hub = configured(service, tmp_path)
    wrong = HubRest(hub, tokens.Sas(hub.host, "iothubowner", "d3Jvbmc="))
    small = HubRest(configured(service, tmp_path, "registryRead"))
    for rest, call in ((wrong, "device"), (small, "patch")):
        with pytest.raises(UnavailableError) as caught:
            rest.device("x") if call == "device" else rest.patch_twin("x", {})
        assert caught.value.code == "iothub_credentials"
        assert "connection_file" in caught.value.hint
        rest.close()


def test_a_token_of_entra_id_opens_the_hub(service: World, tmp_path: Path) -> None:
    """azure-identity itself gets it from the issuer; a role that may less is told as such."""
    for role, allowed in (("IoT Hub Data Contributor", True), ("IoT Hub Data Reader", False)):
        with _credential(service, role) as credential:
            rest = HubRest(configured(service, tmp_path), tokens.Entra(credential))
            name = f"entra-{int(allowed)}"
            if allowed:
                rest.put_device(identity(name))
                assert rest.device(name) is not None
            else:
                with pytest.raises(UnavailableError) as caught:
                    rest.put_device(identity(name))
                assert caught.value.code == "iothub_credentials"
            rest.close()


def _credential(service: World, role: str) -> ClientSecretCredential:
    issuer = service.side.issuer
    return ClientSecretCredential(
        issuer.tenant,
        role,
        issuer.register(role, role),
        authority=f"https://127.0.0.1:{service.side.rest.port}",
        disable_instance_discovery=True,
        connection_verify=str(service.ca),
    )


def test_a_certificate_that_nobody_vouches_for(service: World, tmp_path: Path) -> None:
    """Without the CA file the hub does not prove who it is, and is not spoken to."""
    rest = HubRest(configured(service, tmp_path, ca=""))
    with pytest.raises(UnavailableError, match="CERTIFICATE_VERIFY_FAILED"):
        rest.device("x")
    rest.close()


def test_a_gateway_must_be_the_hub(service: World, tmp_path: Path) -> None:
    """Whoever answers at the gateway's address must have the hub's name in its certificate."""
    hub = configured(service, tmp_path)
    other = HubRest(
        IotHub(**{**_fields(hub), "host": "stranger.azure-devices.test"}),
        tokens.Sas("x", "y", "d3Jvbmc="),
    )
    with pytest.raises(UnavailableError, match="CERTIFICATE_VERIFY_FAILED"):
        other.device("x")
    other.close()


def _fields(hub: IotHub) -> dict[str, object]:
    return {name: getattr(hub, name) for name in hub.__struct_fields__}


def test_a_hub_that_nobody_reaches(service: World, tmp_path: Path) -> None:
    """It is unavailable, and the hint names where it was looked for."""
    rest = HubRest(configured(service, tmp_path, gateway="127.0.0.1:9"))
    with pytest.raises(UnavailableError) as caught:
        rest.device("x")
    assert "127.0.0.1:9" in caught.value.hint
    rest.close()


def test_a_ca_file_that_is_none(tmp_path: Path) -> None:
    """It is said at the start."""
    (tmp_path / "ca.pem").write_text("no certificate")
    hub = IotHub(name="a", host="h", events_file="x", ca=str(tmp_path / "ca.pem"))
    with pytest.raises(InvalidInputError) as caught:
        HubRest(hub, SimpleNamespace())  # type: ignore[arg-type]  # never asked
    assert caught.value.code == "iothub_ca"
