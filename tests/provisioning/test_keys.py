"""`edgefleet keys` and renewals against a real fleet manager, believed by a TUF client."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta

import pytest
from tuf.api.metadata import Metadata

from edgefleet_provisioning.expiry import soon
from tests.cloud.running import RunningCloud
from tests.fleet_folder import FleetFolder, small_package


def test_keys_are_listed_with_what_they_sign(owned):
    """Every key has role, id, algorithm, place, what it signs and until when."""
    owned.cli.run("keys", "add", "root")
    keys = owned.keys()
    assert keys["root-1"]["signs"] == ["root"]
    assert keys["root-1"]["until"] == owned.roles()["root"]["expires"]
    assert (keys["root-4"]["signs"], keys["root-4"]["until"]) == ([], None)
    assert keys["publisher-1"]["signs"] == ["publisher/digits", "publisher/faces"]
    assert {k["where"] for k in keys.values()} == {"file", "server"}
    assert keys["director.pem"]["signs"] == ["director"]
    assert {k["algorithm"] for k in keys.values()} == {"ecdsa-sha2-nistp256"}
    assert {k["signs"] for k in owned.cli.json("keys", "list", "--offline")} == {None}
    assert "root-4" in owned.cli.run("keys", "list").stdout
    (owned.folder.path / "offline/keys/root-1.pem").unlink()
    assert owned.keys()["root-1"]["where"] == "elsewhere"


def test_targets_keys_are_rotated_and_revoked(owned, tmp_path):
    """A new root and new targets come together; fewer keys than must sign cannot be asked for."""
    told = owned.cli.json("keys", "rotate", "targets-1")
    assert told["files"] == ["2.root.json", "2.targets.json"]
    assert owned.signs("targets") == {"targets-2", "targets-3", "targets-4"}
    owned.cli.run("keys", "revoke", "targets-2")
    assert owned.signs("targets") == {"targets-3", "targets-4"}
    assert owned.cli.error("keys", "revoke", "targets-3")["code"] == "threshold"
    assert owned.cli.error("keys", "revoke", "targets-1")["code"] == "no_key"
    owned.device(tmp_path)


def test_a_revoked_publisher_keeps_its_releases(owned, tmp_path):
    """The role is signed by the new key with the same releases; the old key publishes no more."""
    manifest, data, blobs = small_package()
    assert owned.cloud.publish(manifest, data, blobs).status_code == 201
    told = owned.cli.json("keys", "rotate", "publisher-1", "--reason", "lost laptop")
    assert told["files"] == [
        "2.publisher%2Ffaces.json", "2.targets.json", "3.publisher%2Fdigits.json"
    ]  # fmt: skip
    assert owned.event()["reason"] == "lost laptop"
    assert owned.signs("publisher/digits") == {"publisher-digits-1"}
    assert owned.signs("publisher/faces") == {"publisher-faces-1"}
    assert owned.device(tmp_path, "models/digits/1.0.0/manifest.json").length == len(data)
    more = small_package("2.0.0", 2)
    assert owned.cloud.publish(*more).json()["code"] == "metadata_signature"
    signer = owned.folder.signer("publisher-digits-1")
    assert owned.cloud.publish(*more, signer=signer).status_code == 201


def test_a_family_has_two_publishers_and_then_one(owned):
    """`delegate` lets a second key publish a family, `revoke` takes the first one's right away."""
    made = owned.cli.json("keys", "add", "publisher", "--family", "digits")["name"]
    owned.cli.run("trust", "delegate", "digits", "--key", made)
    assert owned.signs("publisher/digits") == {"publisher-1", made}
    assert owned.cli.error("keys", "revoke", "publisher-1")["code"] == "threshold"
    wrong = owned.cli.error("trust", "delegate", "audio", "--key", made)
    assert wrong["code"] == "invalid_role"


@pytest.mark.parametrize("role", ["director", "timestamp", "snapshot", "audit"])
def test_online_keys_are_rotated(owned, tmp_path, role):
    """The server makes the key, the owners name it, and it signs from then on."""
    owned.cli.run("keys", "rotate", role)
    (new,) = owned.signs(role)
    assert new.startswith(f"{role}.")
    assert new != f"{role}.pem"
    made = owned.cli.json("keys", "add", role)
    owned.cli.run("keys", "rotate", role, "--to", made["keyid"][:12])
    assert owned.signs(role) == {made["file"]}
    owned.device(tmp_path)
    assert owned.cli.error("keys", "revoke", role)["code"] == "threshold"
    assert owned.cli.error("keys", "rotate", role, "--to", "nothing")["code"] == "no_key"


def test_what_has_expired_can_be_renewed(owned, tmp_path):
    """Root, targets and publishers past their end are found by cron and signed anew."""
    late = datetime.now(UTC) + timedelta(days=400)
    for name in ("1.root.json", "1.targets.json", "1.publisher%2Fdigits.json"):
        assert Metadata.from_file(str(owned.folder.metadata / name)).signed.is_expired(late)
    assert owned.cli.json("trust", "expire-soon") == []
    listed = owned.cli.json("trust", "expire-soon", "--days", 100, code=1)
    assert [row["role"] for row in listed] == ["publisher/digits", "publisher/faces"]
    owned.cloud.stop()
    shutil.rmtree(owned.folder.path)
    past = datetime.now(UTC) - timedelta(days=500)
    owned.folder = FleetFolder(owned.folder.path, ("digits",), now=past)
    owned.cloud = RunningCloud(owned.folder)
    text = f'server = "{owned.cloud.url}"\ntoken = "{owned.cloud.token}"\n'
    (owned.folder.path / "offline" / "client.toml").write_text(text)
    rows = {r["role"]: r for r in owned.cli.json("trust", "expire-soon", code=1)}
    assert set(rows) >= {"root", "targets", "publisher/digits"}
    assert rows["root"]["days"] < -100
    assert "edgefleet trust renew root" in owned.cli.run("trust", "expire-soon", code=1).stdout
    owned.cli.run("trust", "renew", "root", "targets", "publisher/digits")
    assert owned.cli.json("trust", "expire-soon", code=None)[:1] != [rows["root"]]
    owned.device(tmp_path)
    assert owned.cli.error("trust", "renew", "timestamp")["code"] == "invalid_role"


def test_the_server_names_what_it_renews_itself():
    """Snapshot and timestamp count only once they have ended: then the server is away."""
    now = datetime.now(UTC)
    ends = {"timestamp": now + timedelta(minutes=1), "snapshot": now - timedelta(minutes=1)}
    found = soon(ends, now, 30)
    assert [(f.role, f.renew) for f in found] == [("snapshot", "start the server")]


def test_a_key_for_each_family_from_the_beginning(cli, tmp_path):
    """`init --key-per-family` makes a publisher key for each model, and no shared one."""
    folder = tmp_path / "fleet"
    cli.run("init", folder, "--fleet", "f", "--family", "a", "--family", "b", "--key-per-family",
            "--insecure-no-passphrase")  # fmt: skip
    names = {path.stem for path in (folder / "offline/keys").glob("publisher*.pem")}
    assert names == {"publisher-a-1", "publisher-b-1"}
    targets = Metadata.from_file(str(folder / "online/metadata/1.targets.json")).signed
    keys = [targets.delegations.roles[f"publisher/{family}"].keyids for family in "ab"]
    assert keys[0] != keys[1]
