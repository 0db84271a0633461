"""Signature bundles at the fleet manager: checked when they come, demanded if so configured."""

from __future__ import annotations

import base64
import json

import pytest
from securesystemslib.signer import CryptoSigner

from edgefleet_cloud.models.service import ModelService
from edgefleet_shared import provenance
from edgefleet_shared.identifiers import sha256_digest
from tests.cloud.running import RunningCloud
from tests.fleet_folder import small_package


def publish(cloud, signer=None, *, bundle: bytes | None = None, changes=None):
    """Publish a small package with a bundle; b'' brings none."""
    manifest, data, blobs = small_package()
    if bundle is None:
        resources = {**provenance.resources_of(manifest, data), **(changes or {})}
        signer = signer or cloud.folder.signer("publisher-1")
        bundle = provenance.seal(resources, "digits-1.0.0", signer)
    for content in (*blobs.values(), data, *([bundle] if bundle else [])):
        cloud.upload(content)
    metadata = cloud.folder.release(manifest, data)
    body = {
        "version": "1.0.0",
        "manifest": sha256_digest(data),
        "metadata": base64.b64encode(metadata).decode(),
        **({"provenance": sha256_digest(bundle)} if bundle else {}),
    }
    return cloud.client.post("/v1/models/digits/versions", json=body), bundle


@pytest.fixture
def strict(folder):
    """A fleet manager that demands bundles."""
    folder.config.write_text(folder.config.read_text() + "\n[intake]\nrequire_provenance = true\n")
    running = RunningCloud(folder)
    yield running
    running.stop()


def test_a_bundle_is_kept_beside_the_package(cloud):
    """The version names it, it can be read, and the OCI layout attaches it to the image."""
    answer, bundle = publish(cloud)
    assert answer.status_code == 201, answer.text
    digest = sha256_digest(bundle)
    shown = cloud.client.get("/v1/models/digits/versions/1.0.0").json()
    assert shown["provenance"] == digest
    assert cloud.client.get(f"/v1/blobs/{digest}").content == bundle
    layout = cloud.folder.online / "data" / "blobs"
    index = {
        entry["annotations"]["org.opencontainers.image.ref.name"]: entry
        for entry in json.loads((layout / "index.json").read_bytes())["manifests"]
    }
    entry = index["digits-1.0.0.sig"]
    path = layout / "blobs" / "sha256" / entry["digest"].removeprefix("sha256:")
    referrer = json.loads(path.read_bytes())
    assert entry["artifactType"] == referrer["artifactType"] == provenance.BUNDLE_TYPE
    assert referrer["subject"]["digest"] == index["digits-1.0.0"]["digest"]
    assert referrer["layers"][0]["digest"] == digest


@pytest.mark.parametrize(
    ("broken", "code"),
    [
        ({"signer": CryptoSigner.generate_ecdsa()}, "provenance"),
        ({"changes": {"model.onnx": "00" * 32}}, "provenance"),
        ({"changes": {"extra.bin": "00" * 32}}, "provenance"),
        ({"bundle": b"no bundle"}, "malformed"),
    ],
)
def test_a_bundle_that_does_not_hold_is_refused(cloud, broken, code):
    """A stranger's, one about other files, and one that is none: nothing is published."""
    answer, _ = publish(cloud, **broken)
    assert (answer.status_code // 100, answer.json()["code"]) == (4, code), answer.text
    assert cloud.client.get("/v1/models/digits/versions/1.0.0").status_code == 404
    assert publish(cloud)[0].status_code == 201  # and the honest one may follow


def test_a_fleet_may_demand_bundles(strict):
    """With `require_provenance` a version without one is refused, with one it is accepted."""
    answer, _ = publish(strict, bundle=b"")
    assert answer.json()["code"] == "provenance_missing"
    assert publish(strict)[0].status_code == 201


def test_without_the_demand_none_is_needed(cloud):
    """Fleets that do not ask for bundles take versions as before."""
    answer, _ = publish(cloud, bundle=b"")
    assert answer.status_code == 201
    assert answer.json()["provenance"] == ""


def test_a_version_found_at_start_gets_its_bundle_from_the_repetition(cloud):
    """A crash between catalog and database loses the bundle's name; publishing again brings it."""
    answer, bundle = publish(cloud)
    assert answer.status_code == 201
    database = cloud.program.database
    with database.write() as session:
        session.connection().exec_driver_sql("DELETE FROM model_versions")
    with database.write() as session:
        cloud.program.app.state.parts.get(ModelService).recover(session)
    path = "/v1/models/digits/versions/1.0.0"
    assert cloud.client.get(path).json()["provenance"] == ""
    manifest, data, _ = small_package()
    body = {"version": manifest.version, "manifest": sha256_digest(data), "metadata": ""}
    body["provenance"] = sha256_digest(bundle)
    again = cloud.client.post("/v1/models/digits/versions", json=body)
    assert (again.status_code, again.json()["provenance"]) == (200, sha256_digest(bundle))
