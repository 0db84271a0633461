"""Keys in files, on tokens, in key services, with other people, and on a stick in a safe."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path

import pytest

from tests.provisioning.conftest import Cli


def test_an_ml_dsa_key_joins_the_root(owned, tmp_path):
    """A root of P-256 and ML-DSA-65 keys is signed by both kinds and believed by a TUF client."""
    made = owned.cli.json("keys", "add", "root", "--algorithm", "ml-dsa-65")
    assert made["algorithm"] == "ml-dsa-65/1"
    owned.cli.run("trust", "rotate-root", "--add", made["name"], "--root-threshold", 3)
    owned.cli.run("keys", "revoke", "root-1")
    told = owned.cli.json("trust", "renew", "root")
    assert "root-4" in told["signed_by"]
    owned.device(tmp_path)
    error = owned.cli.error("keys", "add", "targets", "--algorithm", "ml-dsa-65")
    assert error["code"] == "algorithm"


def test_somebody_elses_key_joins_by_its_public_half(owned, tmp_path):
    """A holder sends a .pub.json; the key signs on their machine, and is listed as elsewhere."""
    other = tmp_path / "other"
    Cli().run("init", other, "--fleet", "demo", "--insecure-no-passphrase")
    public = other / "offline/keys/root-1.pub.json"
    owned.cli.run("keys", "add", "root", "--name", "alice", "--public", public)
    owned.cli.run("trust", "rotate-root", "--add", "alice")
    assert owned.keys()["alice"]["where"] == "elsewhere"
    assert "alice" in owned.signs("root")
    again = ("keys", "add", "root", "--name", "alice")
    assert owned.cli.error(*again)["code"] == "key_exists"


def test_a_backup_is_read_back_and_restored(owned, tmp_path):
    """The stick holds every offline file, encrypted; another passphrase or a flipped bit fails."""
    secret = tmp_path / "secret"
    secret.write_text("a long passphrase\n")
    stick = tmp_path / "stick.backup"
    told = owned.cli.json("keys", "backup", stick, "--passphrase-file", secret)
    assert "offline/keys/root-1.pem" in told["files"]
    assert stat.S_IMODE(stick.stat().st_mode) == 0o600
    assert b"PRIVATE" not in stick.read_bytes()
    restored = tmp_path / "restored"
    Cli().run("keys", "restore", stick, restored, "--passphrase-file", secret)
    for name in told["files"]:
        assert (restored / name).read_bytes() == (owned.folder.path / name).read_bytes()
    assert stat.S_IMODE((restored / "offline/keys/root-1.pem").stat().st_mode) == 0o600
    Cli().run("keys", "list", "--offline", "--fleet", restored, "--server", owned.cloud.url)
    assert owned.cli.error("keys", "backup", stick, "--passphrase-file", secret)["code"] == "exists"
    wrong = tmp_path / "wrong"
    wrong.write_text("another passphrase\n")
    elsewhere = tmp_path / "elsewhere"
    for file, opener in ((stick, wrong), (_damaged(stick), secret)):
        error = Cli().error("keys", "restore", file, elsewhere, "--passphrase-file", opener)
        assert error["code"] == "backup_damaged"
        assert not elsewhere.exists()


def _damaged(stick: Path) -> Path:
    document = json.loads(stick.read_bytes())
    text = document["ciphertext"]
    document["ciphertext"] = ("A" if text[0] != "A" else "B") + text[1:]
    damaged = stick.with_name("damaged")
    damaged.write_text(json.dumps(document))
    return damaged


TOKEN_PIN = "123456"


@pytest.fixture
def token(tmp_path, monkeypatch):
    """A SoftHSM token with a P-256 key of id 2."""
    (tmp_path / "tokens").mkdir()
    conf = tmp_path / "softhsm2.conf"
    conf.write_text(f"directories.tokendir = {tmp_path / 'tokens'}\nobjectstore.backend = file\n")
    monkeypatch.setenv("SOFTHSM2_CONF", str(conf))
    library = "/usr/lib/softhsm/libsofthsm2.so"
    monkeypatch.setenv("PYKCS11LIB", library)
    pin = tmp_path / "pin"
    pin.write_text(f"{TOKEN_PIN}\n")
    monkeypatch.setenv("EDGEFLEET_PIN_FILE", str(pin))
    init = ["--init-token", "--free", "--label", "ops", "--pin", TOKEN_PIN, "--so-pin", "0000"]
    subprocess.run(["softhsm2-util", *init], check=True, capture_output=True)
    make = ["--keypairgen", "--key-type", "EC:prime256v1", "--id", "02", "--label", "root"]
    login = ["--module", library, "--token-label", "ops", "--login", "--pin", TOKEN_PIN]
    subprocess.run(["pkcs11-tool", *login, *make], check=True, capture_output=True)
    return "hsm:2?label=ops"


@pytest.mark.softhsm2
def test_a_root_key_on_a_token(owned, tmp_path, token):
    """A PKCS#11 key is imported by its URI, joins the root, and signs by its name and its URI."""
    made = owned.cli.json("keys", "add", "root", "--name", "token", "--uri", token)
    assert (made["where"], made["uri"]) == ("hsm", token)
    assert not (owned.folder.path / "offline/keys/token.pem").exists()
    owned.cli.run("trust", "rotate-root", "--add", "token", "--remove", "root-1", "--remove",
                  "root-3")  # fmt: skip
    assert owned.signs("root") == {"root-2", "token"}
    told = owned.cli.json("trust", "rotate-root")  # both must sign, the token by its library
    assert told["signed_by"] == ["root-2", "token"]
    file = tmp_path / "root.ceremony"
    owned.cli.run("trust", "rotate-root", "--prepare", file)
    owned.cli.run("trust", "sign", file, "--key", token, "--key", "root-2", "--yes")
    owned.cli.run("trust", "publish", file)
    owned.device(tmp_path)
    backup = owned.cli.json(
        "keys", "backup", tmp_path / "b", "--passphrase-file", _secret(tmp_path)
    )
    assert backup["not_in_it"] == ["token"]
    (tmp_path / "pin").write_text("654321\n")
    owned.cli.run("trust", "rotate-root", "--prepare", tmp_path / "again")
    failed = owned.cli.error("trust", "sign", tmp_path / "again", "--key", "token", "--yes")
    assert failed["code"] == "signer"
    os.environ.pop("PYKCS11LIB")
    assert owned.cli.error("trust", "rotate-root")["code"] == "key_uri"


def _secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text("a long passphrase\n")
    return path


@pytest.mark.parametrize(
    ("uri", "extra"),
    [("awskms:1234", "kms-aws"), ("azurekms://v.vault.azure.net/keys/k/1", "kms-azure"),
     ("gcpkms:projects/p", "kms-gcp")],
)  # fmt: skip
def test_a_key_service_without_its_extra_names_it(owned, uri, extra):
    """Where the cloud's library is not installed, the extra that brings it is named."""
    error = owned.cli.error("keys", "add", "root", "--uri", uri)
    assert error["code"] == "missing_extra"
    assert extra in error["hint"]


def test_a_key_file_by_its_uri(owned, tmp_path):
    """`file2:` names a key file anywhere, under a passphrase or not, as the others do."""
    other = tmp_path / "other"
    secret = _secret(tmp_path)
    Cli().run("init", other, "--fleet", "x", "--passphrase-file", secret)
    uri = f"file2:{other / 'offline/keys/root-1.pem'}"
    made = owned.cli.json("keys", "add", "root", "--uri", uri, "--passphrase-file", secret)
    assert made["where"] == "file"
    owned.cli.run("trust", "rotate-root", "--add", made["name"], "--remove", "root-1", "--remove",
                  "root-2", "--remove", "root-3", "--root-threshold", 1,
                  "--passphrase-file", secret)  # fmt: skip
    told = owned.cli.json("trust", "rotate-root", "--passphrase-file", secret)
    assert told["signed_by"] == [made["name"]]
    for uri in ("nothing", "gnupg:1", "file2:/nowhere"):
        assert owned.cli.error("keys", "add", "root", "--uri", uri)["code"] in {
            "key_uri", "missing_file",
        }  # fmt: skip
