"""Signing as a ceremony: on several machines, against forgers, with a text that hides nothing."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from pathlib import Path

import pytest
from securesystemslib.formats import encode_canonical
from typer.testing import CliRunner

from edgefleet_provisioning.cli import app
from edgefleet_shared import bundle
from tests.cloud.running import RunningCloud
from tests.provisioning.conftest import Cli


def test_a_ceremony_on_three_machines(owned, tmp_path):
    """Prepared here, signed on two machines that hold one key each, put together and published."""
    made = owned.cli.json("keys", "add", "root")["name"]
    file = tmp_path / "root.ceremony"
    told = owned.cli.json("trust", "rotate-root", "--add", made, "--remove", "root-1",
                          "--prepare", file)  # fmt: skip
    assert [m["keys"] for m in told["missing"]] == [
        ["root-1", "root-2", "root-3"], ["root-2", "root-3", "root-4"],
    ]  # fmt: skip
    early = owned.cli.error("trust", "publish", file)
    assert early["code"] == "threshold"
    assert "root-2, root-3, root-4" in early["message"]
    copies = []
    for name in ("root-2", "root-3"):
        machine = tmp_path / name  # has fleet.json, the first root, and this one key
        for part in ("fleet.json", "offline/metadata/1.root.json", f"offline/keys/{name}.pem",
                     f"offline/keys/{name}.pub.json"):  # fmt: skip
            (machine / part).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(owned.folder.path / part, machine / part)
        copies.append(shutil.copy(file, machine / file.name))
        result = CliRunner().invoke(
            app,
            ["trust", "sign", str(copies[-1]), "--key", name, "--fleet", str(machine)],
            input="y\n",
        )
        assert result.exit_code == 0, result.stderr
        assert "root: - key" in result.stderr
        assert told["digests"]["2.root.json"] in result.stderr
    assert "needs 1 more" in result.stdout
    published = owned.cli.json("trust", "publish", *copies)
    assert published["signed_by"] == ["root-2", "root-3"]
    assert owned.signs("root") == {"root-2", "root-3", "root-4"}
    assert owned.event()["after"] == {"root": 2}
    owned.device(tmp_path)
    again = owned.cli.error("trust", "publish", *copies, code=1)
    assert again["code"] == "metadata_version"


def test_a_key_that_is_not_here_is_told_before_anybody_says_yes(owned, tmp_path):
    """A typing error costs no question: nothing is asked, nothing is signed."""
    file = tmp_path / "root.ceremony"
    owned.cli.json("trust", "rotate-root", "--prepare", file)
    before = file.read_bytes()
    arguments = ["trust", "sign", str(file), "--key", "root-9", "--fleet", str(owned.folder.path)]
    result = CliRunner().invoke(app, arguments, input="y\n")
    assert result.exit_code == 2
    assert "root-9" in result.stderr
    assert "Do you sign this?" not in result.stderr
    assert file.read_bytes() == before


def test_who_does_not_say_yes_signs_nothing(owned, tmp_path):
    """The difference is shown and asked about; anything but yes leaves the file as it was."""
    file = tmp_path / "root.ceremony"
    owned.cli.run("trust", "rotate-root", "--prepare", file)
    before = file.read_bytes()
    for answer in ("n\n", ""):
        result = CliRunner().invoke(
            app, ["trust", "sign", str(file), "--key", "root-1", *owned.cli.arguments], input=answer
        )
        assert result.exit_code == 1
        assert file.read_bytes() == before


def _edit(file: Path, change) -> None:
    staged = json.loads(file.read_bytes())
    content = json.loads(staged["files"][0]["content"])
    change(staged, content)
    staged["files"][0]["content"] = json.dumps(content)
    file.write_text(json.dumps(staged))


def _other_present(staged, _):
    files = bundle.decode(base64.b64decode(staged["present"]))
    root = json.loads(files["1.root.json"])
    root["signed"]["roles"]["root"]["threshold"] = 1
    files["2.root.json"] = json.dumps(root).encode()
    staged["present"] = base64.b64encode(bundle.encode(files)).decode()


def _passed_off(_, content):
    keys = content["signed"]["keys"]
    mine, yours = list(keys)[:2]
    keys[mine] = keys[yours]


FORGED = {
    "another fleet's": (lambda s, _: s.update(fleet="other"), "wrong_fleet", 1),
    "another version": (lambda _, c: c["signed"].update(version=3), "metadata_version", 1),
    "another kind": (
        lambda s, _: s["files"][0].update(name="2.timestamp.json"),
        "metadata_name",
        1,
    ),
    "a present that no root vouches for": (_other_present, "untrusted_catalog", 1),
    "a key under another's id": (_passed_off, "key_id", 1),
    "no TUF metadata": (lambda _, c: c.clear(), "malformed", 2),
    "no file of ours": (lambda s, _: s.pop("present"), "malformed", 2),
}


@pytest.mark.parametrize("case", FORGED)
def test_a_forged_ceremony_file_is_not_signed(owned, tmp_path, case):
    """Whoever carries the file cannot have anything signed but what follows the real metadata."""
    change, code, status = FORGED[case]
    file = tmp_path / "root.ceremony"
    owned.cli.run("trust", "rotate-root", "--prepare", file)
    _edit(file, change)
    sign = ("trust", "sign", file, "--key", "root-1", "--yes")
    assert owned.cli.error(*sign, code=status)["code"] == code


def test_one_key_written_twice_is_not_two_keys(owned, tmp_path):
    """Who hands in their one key in two spellings does not get two of the signatures that count."""
    path = owned.folder.path / "offline/keys/root-1.pub.json"
    fields = json.loads(path.read_text())
    fields["keyval"]["public"] += "\n"
    content = {name: fields[name] for name in ("keytype", "scheme", "keyval")}
    fields["keyid"] = hashlib.sha256(encode_canonical(content).encode()).hexdigest()
    second = tmp_path / "second.pub.json"
    second.write_text(json.dumps(fields))
    owned.cli.run("keys", "add", "root", "--name", "second", "--public", second)
    error = owned.cli.error("trust", "rotate-root", "--add", "second", code=1)
    assert error["code"] == "duplicate_key"


def test_every_difference_is_shown(owned, tmp_path):
    """What a forger adds to the prepared bytes stands in the text that the signer reads."""
    file = tmp_path / "root.ceremony"
    owned.cli.run("trust", "rotate-root", "--prepare", file)

    def sneak(_, content):
        signed = content["signed"]
        signed["roles"]["root"]["threshold"] = 1
        signed["roles"]["targets"]["keyids"] = signed["roles"]["targets"]["keyids"][:2]
        signed["consistent_snapshot"] = False
        signed["x-note"] = {"a": [1]}

    _edit(file, sneak)
    shown = owned.cli.run("trust", "sign", file, "--key", "root-1", "--yes").stderr
    for line in (
        "version 2, was 1", "root: 1 of 3 must sign, was 2 of 3", "targets: - key targets-3",
        "- consistent_snapshot: True", "+ consistent_snapshot: False", "+ x-note: {'a': [1]}",
    ):  # fmt: skip
        assert line in shown


def test_copies_of_two_ceremonies_are_not_mixed(owned, tmp_path):
    """Signatures of one are no signatures of the other."""
    first, second = tmp_path / "a", tmp_path / "b"
    owned.cli.run("trust", "rotate-root", "--prepare", first)
    owned.cli.run("trust", "rotate-root", "--root-threshold", 1, "--prepare", second)
    error = owned.cli.error("trust", "publish", first, second, code=1)
    assert error["code"] == "ceremony_differs"
    wrong = owned.cli.error("trust", "sign", first, "--key", "targets-1", "--yes")
    assert wrong["code"] == "wrong_key"


def test_a_server_that_shows_old_targets_is_found_out(owned, tmp_path):
    """Signing never starts from metadata older than what was signed here: nothing comes back."""
    old = {p.name: p.read_bytes() for p in owned.folder.metadata.iterdir()}
    owned.cli.run("keys", "rotate", "director")
    owned.cloud.stop()
    for path in owned.folder.metadata.iterdir():
        path.unlink()
    for name, data in old.items():
        (owned.folder.metadata / name).write_bytes(data)
    owned.cloud = RunningCloud(owned.folder)
    arguments = ("--server", owned.cloud.url)
    error = owned.cli.error("trust", "renew", "targets", *arguments, code=1)
    assert error["code"] == "untrusted_catalog"


def test_an_old_ceremony_is_not_signed_again(owned, tmp_path):
    """A machine that has signed what follows root 2 signs nothing any more that follows root 1."""
    old, new = tmp_path / "old", tmp_path / "new"
    owned.cli.run("trust", "rotate-root", "--remove", "root-3", "--prepare", old)
    owned.cli.run("trust", "rotate-root")
    owned.cli.run("trust", "rotate-root", "--prepare", new)
    machine = tmp_path / "machine"
    shutil.copytree(owned.folder.path, machine)
    shutil.rmtree(machine / "offline/trust")
    other = Cli()
    other.arguments = ["--fleet", str(machine)]
    other.run("trust", "sign", new, "--key", "root-1", "--yes")
    error = other.error("trust", "sign", old, "--key", "root-1", "--yes", code=1)
    assert error["code"] == "untrusted_catalog"
