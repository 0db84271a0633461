"""What `edgefleet init` writes, read by parts that did not write it."""

from __future__ import annotations

import os
import pty
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import CryptoSigner, SSlibKey
from tuf.api.metadata import Metadata
from tuf.ngclient import Updater

from edgefleet_cloud import config as cloud_config
from edgefleet_provisioning import fleet_plan
from edgefleet_provisioning.durable import Content, write_tree
from edgefleet_shared.bundle import BundleFetcher
from edgefleet_shared.errors import InvalidInputError

SECRET = b"correct horse battery"


class Watched(BundleFetcher):
    """A folder of TUF files that remembers what was asked for."""

    def __init__(self, folder):
        super().__init__({path.name: path.read_bytes() for path in folder.iterdir()})
        self.asked = []

    def _fetch(self, url):
        self.asked.append(url.rsplit("/", 1)[-1])
        return super()._fetch(url)


def updater(fleet, tmp_path):
    """A TUF client that knows nothing but the offline copy of the first root."""
    fetcher = Watched(fleet / "online" / "metadata")
    root = (fleet / "offline" / "metadata" / "1.root.json").read_bytes()
    (tmp_path / "cache").mkdir()
    client = Updater(str(tmp_path / "cache"), "https://tuf/", fetcher=fetcher, bootstrap=root)
    return client, fetcher


def test_a_tuf_client_verifies_the_whole_repository(fleet, tmp_path):
    """python-tuf accepts every role, and a lookup walks to the publisher but never to director."""
    client, fetcher = updater(fleet, tmp_path)
    client.refresh()
    assert client.get_targetinfo("models/digits/1.0.0/manifest.json") is None
    assert client.get_targetinfo("models/other/1.0.0/manifest.json") is None
    assert "1.publisher%2Fdigits.json" in fetcher.asked
    assert not [name for name in fetcher.asked if "director" in name]


def test_thresholds_and_lives_are_as_promised(fleet):
    """Root and targets take two of three keys; each role lives as long as the table says."""
    folder = fleet / "online" / "metadata"
    root = Metadata.from_file(str(folder / "1.root.json")).signed
    lives = {"1.root": 365, "1.targets": 180, "1.publisher%2Fdigits": 90, "1.snapshot": 7}
    for name, days in {**lives, "timestamp": 1}.items():
        signed = Metadata.from_file(str(folder / f"{name}.json")).signed
        assert abs(signed.expires - datetime.now(UTC) - timedelta(days=days)) < timedelta(hours=1)
    for role in ("root", "targets"):
        assert (root.roles[role].threshold, len(root.roles[role].keyids)) == (2, 3)
    assert root.consistent_snapshot


def test_one_root_key_alone_proves_nothing(fleet):
    """With one signature of the three taken away twice, the root no longer verifies itself."""
    root = Metadata.from_file(str(fleet / "online" / "metadata" / "1.root.json"))
    assert root.signed.get_verification_result("root", root.signed_bytes, root.signatures)
    for keyid in list(root.signatures)[:2]:
        del root.signatures[keyid]
    assert not root.signed.get_verification_result("root", root.signed_bytes, root.signatures)


def test_the_directors_key_is_the_last_delegation(fleet):
    """The server's keys stand in targets for their paths alone, the director behind publishers."""
    targets = Metadata.from_file(str(fleet / "online" / "metadata" / "1.targets.json")).signed
    roles = list(targets.delegations.roles.values())
    assert [role.name for role in roles] == ["audit", "publisher/digits", "director"]
    assert roles[0].paths == ["audit/*"]
    assert roles[1].paths == ["models/digits/*/*"]
    assert all(role.terminating for role in roles)
    for role, name in ((roles[0], "audit"), (roles[2], "director")):
        pem = (fleet / "online" / "keys" / f"{name}.pem").read_bytes()
        public = SSlibKey.from_crypto(load_pem_private_key(pem, None).public_key())
        assert targets.get_key(role.keyids[0]) == public


def test_private_files_are_private(fleet):
    """Keys, tokens and client.toml have mode 0600, every folder 0700."""
    private = [*fleet.rglob("*.pem"), *fleet.rglob("admin.token"), *fleet.rglob("client.toml")]
    assert len(private) == 7 + 5 + 2
    assert {stat.S_IMODE(path.stat().st_mode) for path in private} == {0o600}
    folders = [fleet, *(path for path in fleet.rglob("*") if path.is_dir())]
    assert {stat.S_IMODE(path.stat().st_mode) for path in folders} == {0o700}


def test_no_offline_key_lies_on_the_online_side(fleet):
    """The folder that goes to the server holds none of the keys that allow a model."""
    offline = {path.read_bytes() for path in (fleet / "offline" / "keys").glob("*.pem")}
    online = {path.read_bytes() for path in (fleet / "online").rglob("*") if path.is_file()}
    assert len(offline) == 7
    assert not offline & online


def test_the_device_ca_can_issue_and_nothing_below_it_can(fleet):
    """The CA certificate is P-256, ten years, critical CA with no CA below, and has its ids."""
    pem = (fleet / "online" / "keys" / "device-ca.crt").read_bytes()
    found = x509.load_pem_x509_certificate(pem)
    basic = found.extensions.get_extension_for_class(x509.BasicConstraints)
    assert basic.critical
    assert (basic.value.ca, basic.value.path_length) == (True, 0)
    assert found.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    assert found.public_key().curve.name == "secp256r1"
    assert found.not_valid_after_utc > datetime.now(UTC) + timedelta(days=3600)
    found.verify_directly_issued_by(found)
    key = load_pem_private_key((fleet / "online" / "keys" / "device-ca.pem").read_bytes(), None)
    assert key.public_key() == found.public_key()


def test_the_fleet_manager_reads_its_configuration(fleet):
    """edgefleet-cloud accepts cloud.toml, and its paths lead to what init wrote."""
    config = cloud_config.load(fleet / "online" / "cloud.toml", {})
    assert config.fleet == "test"
    assert (config.metadata / "timestamp.json").exists()
    assert (config.keys / "director.pem").exists()


def test_a_passphrase_locks_every_offline_key(cli, tmp_path):
    """With a passphrase file the offline keys open with it alone; the online ones need none."""
    (tmp_path / "secret").write_bytes(SECRET + b"\n")
    folder = tmp_path / "fleet"
    made = cli.json("init", folder, "--fleet", "f", "--passphrase-file", tmp_path / "secret")
    assert made["encrypted"]
    for path in (folder / "offline" / "keys").glob("*.pem"):
        with pytest.raises(TypeError):
            load_pem_private_key(path.read_bytes(), None)
        assert CryptoSigner(load_pem_private_key(path.read_bytes(), SECRET)).public_key
    for path in (folder / "online" / "keys").glob("*.pem"):
        load_pem_private_key(path.read_bytes(), None)


@pytest.mark.parametrize(("second", "code"), [(SECRET, 0), (b"another phrase!", 2)])
def test_a_person_types_the_passphrase_twice(tmp_path, second, code):
    """On a terminal it is asked for twice without echo; a difference writes nothing."""
    folder = tmp_path / "fleet"
    argv = [sys.executable, "-m", "edgefleet_provisioning", "init", str(folder), "--fleet", "f"]
    main, side = pty.openpty()
    process = subprocess.Popen(argv, stdin=side, stdout=side, stderr=side, start_new_session=True)
    os.close(side)
    seen = b""
    for prompt, answer in ((b"offline keys: ", SECRET), (b"again: ", second)):
        while prompt not in seen:
            seen += os.read(main, 1000)
        os.write(main, answer + b"\n")
    while True:
        try:
            seen += os.read(main, 1000)
        except OSError:  # the other side has closed
            break
    os.close(main)
    assert process.wait(20) == code, seen
    assert SECRET not in seen
    assert folder.exists() == (code == 0)


def test_counts_of_keys_can_be_chosen(cli, tmp_path):
    """One of one is possible, and the files say so."""
    folder = tmp_path / "fleet"
    cli.run(
        "init", folder, "--fleet", "f", "--insecure-no-passphrase", "--root-keys", 1,
        "--root-threshold", 1, "--targets-keys", 5, "--targets-threshold", 3,
    )  # fmt: skip
    names = sorted(path.stem for path in (folder / "offline" / "keys").glob("*.pem"))
    assert names == ["publisher-1", "root-1", *(f"targets-{n}" for n in range(1, 6))]
    root = Metadata.from_file(str(folder / "online" / "metadata" / "1.root.json")).signed
    assert root.roles["targets"].threshold == 3


BAD = {
    "a name that is none": (["--fleet", "Not A Name"], "invalid_name"),
    "a family that is none": (["--fleet", "f", "--family", "a/b"], "invalid_name"),
    "a family twice": (["--fleet", "f", "--family", "a", "--family", "a"], "family_exists"),
    "threshold above count": (["--fleet", "f", "--root-threshold", "4"], "threshold"),
    "threshold zero": (["--fleet", "f", "--targets-threshold", "0"], "threshold"),
    "too many keys": (["--fleet", "f", "--root-keys", "17"], "threshold"),
    "no port": (["--fleet", "f", "--listen", "localhost"], "invalid_address"),
    "port too large": (["--fleet", "f", "--listen", "localhost:70000"], "invalid_address"),
    "a server that is no URL": (["--fleet", "f", "--server", "ftp://x"], "invalid_address"),
    "no way to a passphrase": (["--fleet", "f"], "passphrase_needed"),
    "a passphrase file that is missing": (
        ["--fleet", "f", "--passphrase-file", "/nowhere/secret"], "missing_file",
    ),
    "both ways to a passphrase": (
        ["--fleet", "f", "--passphrase-file", "/dev/null", "--insecure-no-passphrase"], "usage",
    ),
    "an empty passphrase": (["--fleet", "f", "--passphrase-file", "/dev/null"], "weak_passphrase"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_writes_nothing(cli, tmp_path, case):
    """Each is refused in one paragraph with exit code 2 and leaves no file behind."""
    arguments, code = BAD[case]
    assert cli.error("init", tmp_path / "fleet", *arguments)["code"] == code
    assert list(tmp_path.iterdir()) == []


def test_the_environment_names_the_passphrase_file(cli, tmp_path, monkeypatch):
    """Where nobody is to be asked, `init` takes it from there, as signing does."""
    (tmp_path / "secret").write_text("four random words here\n")
    monkeypatch.setenv("EDGEFLEET_PASSPHRASE_FILE", str(tmp_path / "secret"))
    assert cli.json("init", tmp_path / "fleet", "--fleet", "f")["encrypted"] is True


def test_an_existing_folder_is_left_alone(cli, tmp_path):
    """A folder that exists is refused, even an empty one, and nothing changes in it."""
    (tmp_path / "fleet").mkdir()
    arguments = ("init", tmp_path / "fleet", "--fleet", "f", "--insecure-no-passphrase")
    assert cli.error(*arguments)["code"] == "exists"
    assert list((tmp_path / "fleet").iterdir()) == []


def test_a_failed_write_leaves_no_half_fleet(tmp_path):
    """If one file cannot be written, none remains."""
    files = {"a/b.txt": Content(b"x"), "a/b.txt/c.txt": Content(b"y")}  # a file as a folder
    with pytest.raises(InvalidInputError):
        write_tree(tmp_path / "made", files)
    assert list(tmp_path.iterdir()) == []


def test_every_fleet_has_its_own_keys():
    """Two fleets of one plan share no key and no token."""
    plan = fleet_plan.FleetPlan("f", [], 1, 1, 1, 1, "http://x", "127.0.0.1:1", None)
    first, second = (fleet_plan.files(plan, datetime.now(UTC)) for _ in range(2))
    for name in first:
        if name.endswith((".pem", ".token")):
            assert first[name].data != second[name].data
