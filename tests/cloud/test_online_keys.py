"""The keys on the server: chosen by signed metadata, made there, and warnings before expiry."""

from __future__ import annotations

import base64
import os
from datetime import timedelta

import pytest
from securesystemslib.signer import CryptoSigner

from edgefleet_cloud.events.feed import EventFeed
from edgefleet_cloud.events.service import EventLog
from edgefleet_cloud.paging import PageQuery
from edgefleet_cloud.trust import service
from edgefleet_cloud.trust.expiry import ExpiryWatch
from edgefleet_cloud.trust.key_folder import MAX_FILES
from edgefleet_shared.errors import TrustError
from edgefleet_shared.messages import Assignment
from edgefleet_shared.times import format_time
from edgefleet_shared.trust import DeviceIdentity, open_assignment
from tests.cloud.test_trust import NOW, Clock, device_reads, trust_of

NOISE = os.urandom(3000).hex()


def refused(answer, status, code):
    """Check that the API said no, by this code."""
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text


def test_a_director_whose_key_is_elsewhere_signs_nothing(folder):
    """Where only another director's key is at hand the server says so instead of signing."""
    trust = trust_of(folder)
    put(folder.online / "keys/director.pem", CryptoSigner.generate_ecdsa())
    trust.renew()
    with pytest.raises(TrustError) as caught:
        trust.sign(Assignment(1, "demo", "cam-1", "k", 1, "", "", {}))
    assert caught.value.code == "director_key"


def put(path, signer):
    """Put a key there, as an operator who copies it."""
    path.write_bytes(signer.private_bytes)


def _named(role, signer):
    """Return a change of root or targets that names only this key for an online role."""

    def change(signed):
        holder = signed.delegations if role == "director" else signed
        for old in list(holder.roles[role].keyids):
            signed.revoke_key(old, role)
        signed.add_key(signer.public_key, role)

    return change


@pytest.mark.parametrize("role", ["snapshot", "timestamp", "director"])
def test_the_next_online_key_is_taken_without_a_restart(folder, tmp_path, role):
    """A key beside the present one signs from the moment the owners name it; absent, it is no."""
    trust, new = trust_of(folder), CryptoSigner.generate_ecdsa()
    signed = "targets" if role == "director" else "root"
    file = dict([folder.resign(signed, _named(role, new), [f"{signed}-1", f"{signed}-2"])])
    with pytest.raises(TrustError) as caught:
        trust.accept(file)
    assert caught.value.code == "online_key"
    told = []
    trust.subscribe(lambda: told.append(trust.bundle()))
    put(folder.online / f"keys/{role}.next.pem", new)
    trust.accept(file)
    assert told == [trust.bundle()]
    device_reads(trust, folder, tmp_path)
    active = {key.file: active for key, active in trust.online_keys() if key.role == role}
    assert active == {f"{role}.pem": False, f"{role}.next.pem": True}
    if role == "director":
        targets = folder.current("targets").signed
        expires = format_time(NOW + timedelta(hours=1))
        envelope = trust.sign(Assignment(1, "demo", "cam-1", "k", 1, "", expires, {}))
        me = DeviceIdentity("demo", "cam-1", "k")
        assert open_assignment(envelope, targets, me, floor=0, now=NOW).counter == 1
    assert trust_of(folder).bundle() == trust.bundle()  # a restart chooses alike


def test_the_server_makes_its_next_keys(cloud):
    """A key made over the API is private, listed, unused, and named by an event; few are kept."""
    made = cloud.client.post("/v1/trust/keys", json={"role": "director"})
    assert made.status_code == 201
    path = cloud.folder.online / "keys" / made.json()["file"]
    assert path.stat().st_mode & 0o777 == 0o600
    listed = cloud.client.get("/v1/trust/keys").json()["keys"]
    assert [key["active"] for key in listed if key["role"] == "director"] == [False, True]
    assert made.json() in listed
    assert "PRIVATE" not in made.text
    event = cloud.client.get("/v1/events?order_by=id desc").json()["items"][0]
    assert (event["type"], event["after"]["keyid"]) == ("trust.key_made", made.json()["keyid"])
    refused(cloud.client.post("/v1/trust/keys", json={"role": "root"}), 422, "invalid_role")
    for _ in range(MAX_FILES - 2):
        cloud.client.post("/v1/trust/keys", json={"role": "director"})
    refused(cloud.client.post("/v1/trust/keys", json={"role": "director"}), 422, "too_many_keys")


def test_a_half_copied_key_does_not_stop_the_server(folder):
    """Beside a good key a damaged file is only named in the log."""
    (folder.online / "keys/timestamp.next.pem").write_bytes(b"-----BEGIN PRIV")
    trust = trust_of(folder)
    trust.renew()
    assert [k.file for k, _ in trust.online_keys() if k.role == "timestamp"] == ["timestamp.pem"]


def test_what_expires_is_said_in_time(folder, database):
    """In the last third of its life a role is an event once a day, and once more when it ends."""
    clock, events = Clock(), EventLog(EventFeed())
    trust = trust_of(folder, clock)
    watch = ExpiryWatch(trust, database, events, clock)

    def said():
        watch.look()
        with database.read() as session:
            rows = events.page(session, PageQuery(page_size=100))[0]
        return [f"{row.type.removeprefix('trust.')} {row.subject}" for row in rows]

    clock.now = NOW + timedelta(days=59)
    assert said() == []
    clock.now = NOW + timedelta(days=60, hours=1)
    assert said() == said() == ["expiring trust/publisher/digits"]
    clock.now += timedelta(days=1, minutes=1)
    assert len(said()) == 2
    clock.now = NOW + timedelta(days=366)
    assert {*said()[2:]} == {
        "expired trust/root", "expired trust/targets", "expired trust/publisher/digits"
    }  # fmt: skip


def test_a_fleet_without_an_audit_key_still_starts(folder, caplog):
    """The log says what is missing and how to make it; everything else works."""
    (folder.online / "keys" / "audit.pem").unlink()
    trust = trust_of(folder)
    assert trust.sign_head(b"{}") is None
    said = [record.message for record in caplog.records if "role audit" in record.message]
    assert len(said) == 1
    assert "edgefleet keys rotate audit" in said[0]
    trust.renew()
    assert len([r for r in caplog.records if "role audit" in r.message]) == 1


def test_what_no_device_could_take_is_not_taken(cloud, monkeypatch):
    """Metadata that would make the bundle too long for a message is refused whole."""
    before = cloud.client.get("/v1/trust/bundle").content
    monkeypatch.setattr(service, "BUNDLE_MAX_BYTES", len(before))
    names = ["targets-1", "targets-2"]
    name, data = cloud.folder.resign(
        "targets", lambda s: s.unrecognized_fields.update(x=NOISE), names
    )
    body = {"files": {name: base64.b64encode(data).decode()}}
    refused(cloud.client.post("/v1/trust/metadata", json=body), 422, "bundle_too_large")
    assert cloud.client.get("/v1/trust/bundle").content == before
