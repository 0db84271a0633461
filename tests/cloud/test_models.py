"""Models and versions over HTTP: accept what is whole and signed, refuse the rest."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from edgefleet_shared.identifiers import sha256_digest
from edgefleet_shared.package import encode_manifest, publisher_role
from tests.fleet_folder import small_package


def _versions(cloud, **query):
    return cloud.client.get("/v1/models/digits/versions", params=query).json()


def test_a_signed_version_is_accepted(cloud):
    """A signed version is listed with its variants, and its manifest comes back bit for bit."""
    manifest, data, blobs = small_package()
    answer = cloud.publish(manifest, data, blobs)
    assert answer.status_code == 201, answer.text
    version = answer.json()
    assert version["manifest"] == sha256_digest(data)
    assert (version["size"], version["release_counter"]) == (len(data), 1)
    assert version["variants"][0]["size"] == len(next(iter(blobs.values())))
    assert cloud.client.get("/v1/models/digits").json()["name"] == "digits"
    assert _versions(cloud)["items"] == [version]
    assert cloud.client.get("/v1/models/digits/versions/1.0.0").json() == version
    raw = cloud.client.get("/v1/models/digits/versions/1.0.0/manifest")
    assert raw.content == data


def test_publishing_the_same_again_changes_nothing(cloud):
    """A repetition, as after a lost answer, finds the version with status 200."""
    package = small_package()
    first = cloud.publish(*package)
    again = cloud.client.post(
        "/v1/models/digits/versions",
        json={"version": "1.0.0", "manifest": sha256_digest(package[1]), "metadata": ""},
    )
    assert again.status_code == 200
    assert again.json() == first.json()


def test_variants_that_answer_differently_are_not_accepted(cloud):
    """Whatever tool made the package: an application would meet the difference on some devices."""
    manifest, _, blobs = small_package()
    first = manifest.variants[0]
    (y,) = first.outputs
    other = msgspec.structs.replace(
        first, id="other", outputs=[msgspec.structs.replace(y, name="z")]
    )
    manifest = msgspec.structs.replace(manifest, variants=[first, other])
    answer = cloud.publish(manifest, encode_manifest(manifest), blobs)
    assert (answer.status_code, answer.json()["code"]) == (422, "variant_tensors")
    assert cloud.client.get("/v1/models/digits").status_code == 404


def test_publishing_is_an_event(cloud):
    """The event of a publication carries the word accept, the subject and who did it."""
    cloud.publish(*small_package())
    events = cloud.client.get("/v1/events").json()["items"]
    event = next(e for e in events if e["type"] == "model.version.published")
    assert (event["step"], event["actor"]) == ("accept", "token/admin")
    assert event["subject"] == "models/digits/versions/1.0.0"


def test_versions_are_paged_in_order(cloud):
    """Three versions come in pages of two, each exactly once, by release counter."""
    for number in (1, 2, 3):
        assert cloud.publish(*small_package(f"{number}.0.0", number)).status_code == 201
    first = _versions(cloud, page_size=2)
    second = _versions(cloud, page_size=2, page_token=first["next_page_token"])
    assert [v["version"] for v in first["items"] + second["items"]] == ["1.0.0", "2.0.0", "3.0.0"]
    assert second["next_page_token"] == ""
    newest = _versions(cloud, order_by="release_counter desc", page_size=1)
    assert newest["items"][0]["version"] == "3.0.0"


def _refused(answer, status, code):
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text


def _nothing_happened(cloud):
    assert cloud.client.get("/v1/models").json()["items"] == []
    assert "2.publisher%2Fdigits.json" not in cloud.client.get("/v1/trust/metadata").json()["files"]


def _post(cloud, package, data, signed, **changes):
    body = {
        "version": package.version,
        "manifest": sha256_digest(data),
        "metadata": base64.b64encode(signed).decode(),
    }
    return cloud.client.post(f"/v1/models/{package.name}/versions", json={**body, **changes})


def test_a_missing_manifest_or_file_is_named(cloud):
    """Publishing before uploading says which blob is missing."""
    manifest, data, _blobs = small_package()
    metadata = cloud.folder.release(manifest, data)
    _refused(_post(cloud, manifest, data, metadata), 422, "blob_missing")
    cloud.upload(data)
    answer = _post(cloud, manifest, data, metadata)
    _refused(answer, 422, "blob_missing")
    assert "model.onnx" in answer.json()["detail"]
    _nothing_happened(cloud)


def test_the_manifest_must_be_of_this_version(cloud):
    """A manifest under another version or model is refused."""
    manifest, data, blobs = small_package()
    for content in (*blobs.values(), data):
        cloud.upload(content)
    metadata = cloud.folder.release(manifest, data)
    _refused(_post(cloud, manifest, data, metadata, version="1.0.1"), 422, "manifest_mismatch")
    _nothing_happened(cloud)


def test_lists_are_filtered(cloud):
    """The one filter language holds for models and versions too; a wrong field is refused."""
    assert cloud.publish(*small_package()).status_code == 201
    cloud.client.post("/v1/models", json={"name": "faces", "labels": {"site": "oslo"}})

    def models(text):
        return cloud.client.get("/v1/models", params={"filter": text})

    assert [m["name"] for m in models("labels.site == 'oslo'").json()["items"]] == ["faces"]
    assert len(_versions(cloud, filter="release_counter >= 1")["items"]) == 1
    assert _versions(cloud, filter="release_counter > 1")["items"] == []
    assert models("colour == 'red'").json()["code"] == "invalid_filter"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"version": "one"}, "invalid_version"),
        ({"manifest": "sha256:short"}, "invalid_digest"),
        ({"metadata": "?"}, "base64"),
        ({"version": None}, "validation"),
    ],
)
def test_malformed_requests(cloud, changes, code):
    """Each malformed field is refused by its own code."""
    manifest, data, _blobs = small_package()
    _refused(_post(cloud, manifest, data, b"x", **changes), 422, code)


def test_a_blob_that_is_no_manifest_is_refused(cloud):
    """Bytes that are stored but are no manifest cannot be published."""
    digest = cloud.upload(b"not a manifest")
    manifest, data, _blobs = small_package()
    _refused(_post(cloud, manifest, data, b"x", manifest=digest), 422, "malformed")


def test_only_the_publisher_may_release(cloud):
    """Signed by another owner's key, or not at all, nothing is released."""
    manifest, data, blobs = small_package()
    answer = cloud.publish(manifest, data, blobs, signer=cloud.folder.signer("targets-1"))
    _refused(answer, 422, "metadata_signature")
    _refused(_post(cloud, manifest, data, b"{}"), 422, "malformed_metadata")
    _refused(_post(cloud, manifest, data, b""), 422, "malformed_metadata")
    _nothing_happened(cloud)


def test_metadata_must_release_this_manifest(cloud):
    """A signature over another manifest's digest or counters is a disagreement."""
    manifest, data, blobs = small_package()
    for content in (*blobs.values(), data):
        cloud.upload(content)
    other = encode_manifest(msgspec.structs.replace(manifest, description="another"))
    _refused(_post(cloud, manifest, data, cloud.folder.release(manifest, other)), 422, "disagree")
    lying = msgspec.structs.replace(manifest, release_counter=7)
    _refused(_post(cloud, manifest, data, cloud.folder.release(lying, data)), 422, "disagree")
    _nothing_happened(cloud)


def test_a_release_must_not_carry_others(cloud):
    """Metadata that releases a second manifest in passing is refused."""
    manifest, data, blobs = small_package()
    stowaway, other, _ = small_package("6.6.6", 6)
    publisher = cloud.folder.current(publisher_role("digits"))
    cloud.folder.release(stowaway, other, publisher=publisher)
    publisher.signed.version = 1
    answer = cloud.publish(manifest, data, blobs, publisher=publisher)
    _refused(answer, 422, "unexpected_release")
    _nothing_happened(cloud)


def test_a_release_never_changes(cloud):
    """Metadata that forgets an earlier release is refused, and the earlier one stays."""
    cloud.publish(*small_package())
    manifest, data, blobs = small_package("2.0.0", 2)
    publisher = cloud.folder.current(publisher_role("digits"))
    publisher.signed.targets.clear()
    answer = cloud.publish(manifest, data, blobs, publisher=publisher)
    _refused(answer, 422, "release_changed")
    assert [v["version"] for v in _versions(cloud)["items"]] == ["1.0.0"]


def test_a_version_cannot_be_published_with_other_content(cloud):
    """The same version with another manifest is a conflict."""
    manifest, data, blobs = small_package()
    cloud.publish(manifest, data, blobs)
    other = encode_manifest(msgspec.structs.replace(manifest, description="x", release_counter=2))
    _refused(_post(cloud, manifest, other, b"x"), 409, "version_exists")


def test_release_counters_grow(cloud):
    """A version with a counter that was used before is a conflict."""
    cloud.publish(*small_package("1.0.0", 5))
    _refused(cloud.publish(*small_package("2.0.0", 5)), 409, "release_counter")


def test_metadata_versions_are_used_once(cloud):
    """Of two publishers who sign on the same state, the second is told to sign again."""
    one, two = small_package("1.0.0", 1), small_package("2.0.0", 2)
    stale = cloud.folder.release(*two[:2])
    cloud.publish(*one)
    for content in (*two[2].values(), two[1]):
        cloud.upload(content)
    _refused(_post(cloud, two[0], two[1], stale), 409, "metadata_version")


def test_expired_metadata_is_refused(cloud):
    """A publisher's signature that has expired when it arrives releases nothing."""
    past = datetime.now(UTC) - timedelta(days=100)
    _refused(cloud.publish(*small_package(), now=past), 422, "metadata_expired")


def test_a_family_without_a_publisher_is_refused(cloud):
    """Nobody may publish a model that targets do not delegate."""
    manifest, data, blobs = small_package(name="faces")
    for content in (*blobs.values(), data):
        cloud.upload(content)
    publisher = cloud.folder.current(publisher_role("digits"))
    publisher.signed.version = 0
    metadata = cloud.folder.release(manifest, data, publisher=publisher)
    _refused(_post(cloud, manifest, data, metadata), 422, "not_delegated")


def test_absent_things_are_404(cloud):
    """Models and versions that are not there are 404 with a hint where to look."""
    for path in (
        "/v1/models/digits/versions",
        "/v1/models/digits/versions/1.0.0",
        "/v1/models/digits/versions/1.0.0/manifest",
    ):
        _refused(cloud.client.get(path), 404, "not_found")


def test_a_model_may_be_created_before_its_versions(cloud):
    """A model keeps description and labels; a second of its name is a conflict."""
    body = {"name": "digits", "description": "d", "labels": {"team": "vision"}}
    made = cloud.client.post("/v1/models", json=body)
    assert made.status_code == 201
    assert cloud.client.get("/v1/models").json()["items"] == [made.json()]
    _refused(cloud.client.post("/v1/models", json=body), 409, "already_exists")
    cloud.publish(*small_package())
    assert cloud.client.get("/v1/models/digits").json() == made.json()


def test_what_the_catalog_has_comes_back_into_the_database(cloud):
    """A process that died between catalog and database finds the release at its next start."""
    manifest, data, blobs = small_package()
    published = cloud.publish(manifest, data, blobs).json()
    cloud.stop()
    for name in ("fleet.db", "fleet.db-wal", "fleet.db-shm"):
        (cloud.folder.online / "data" / name).unlink(missing_ok=True)
    cloud.start()
    again = cloud.client.get("/v1/models/digits/versions/1.0.0").json()
    assert {**again, "id": "", "created": ""} == {**published, "id": "", "created": ""}
