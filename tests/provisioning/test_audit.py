"""`edgefleet audit` against a real server whose SQLite file somebody else writes to."""

from __future__ import annotations

import base64
import json
import sqlite3
from contextlib import closing

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import CryptoSigner

from edgefleet_cloud.audit.service import Heads
from edgefleet_cloud.database import give_reason
from edgefleet_cloud.events.service import EventLog
from edgefleet_shared import dsse, strict_json
from edgefleet_shared.audit import BEGINNING, HEAD_TYPE, Entry, Head, head_digest, row_hash
from tests.cloud.running import RunningCloud
from tests.fleet_folder import FleetFolder
from tests.provisioning.conftest import Cli

ROWS = 40
SIGNED = (20, 30)  # the second statement leaves ten rows unsigned
JSON_COLUMNS = {"data", "before", "after"}


class Fleet:
    """A running fleet with a log of 40 rows, two statements about it, and its database's file."""

    def __init__(self, folder: FleetFolder) -> None:
        self.folder = folder
        self.cloud = RunningCloud(folder)
        self.cli = Cli()
        self.cli.arguments = ["--fleet", str(folder.path), "--server", self.cloud.url]
        parts = self.cloud.program.app.state.parts
        self.log, self.heads = parts.get(EventLog), parts.get(Heads)
        number = len(self.rows())
        while number < ROWS:
            number += 1
            self.record(number)
            if number in SIGNED:
                self.sign()
        self.sql("CREATE TABLE saved AS SELECT * FROM events")
        self.sql("CREATE TABLE saved_heads AS SELECT * FROM audit_heads")

    def record(self, number: int) -> None:
        """Record a change."""
        with self.cloud.program.database.write() as session:
            give_reason(session, "a test")
            self.log.record(
                session, type="device.changed", step="target", subject=f"devices/cam-{number}",
                message=f"Row {number}.", actor="token/anna" if number % 2 else "token/bob",
                data={"share": number / 7}, before={"n": number - 1}, after={"n": number},
            )  # fmt: skip

    def sign(self) -> None:
        """Sign the head."""
        with self.cloud.program.database.write() as session:
            assert self.heads.sign(session)

    def sql(self, *statements: str) -> list:
        """Run SQL on the file, as somebody who has it."""
        path = self.folder.online / "data" / "fleet.db"
        with closing(sqlite3.connect(path, timeout=20)) as connection, connection:
            return [connection.execute(statement).fetchall() for statement in statements][-1]

    def restore(self) -> None:
        """Undo all tampering."""
        self.sql(
            "DELETE FROM events", "INSERT INTO events SELECT * FROM saved",
            "DELETE FROM audit_heads", "INSERT INTO audit_heads SELECT * FROM saved_heads",
        )  # fmt: skip

    def rows(self) -> list[Entry]:
        """Return the rows as they are in the file."""
        names = ", ".join(f'"{name}"' for name in Entry._fields)
        return [
            Entry(*(
                json.loads(value) if name in JSON_COLUMNS and value else value
                for name, value in zip(Entry._fields, row, strict=True)
            ))
            for row in self.sql(f"SELECT {names} FROM events ORDER BY id")
        ]  # fmt: skip

    def chain_anew(self) -> list[str]:
        """Compute every hash anew, as somebody who knows how; return the hashes."""
        previous, hashes = BEGINNING, []
        for entry in self.rows():
            previous = row_hash(previous, entry)
            hashes.append(previous)
            self.sql(f"UPDATE events SET hash = '{previous}' WHERE id = {entry.id}")
        return hashes

    def finding(self, *options: object) -> dict:
        """Verify, which must fail; return what was found."""
        answer = self.cli.json("audit", "verify", *options, code=1)
        assert answer["ok"] is False
        return answer["finding"]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The fleet, made once."""
    made = Fleet(FleetFolder(tmp_path_factory.mktemp("audit") / "fleet"))
    yield made
    made.cloud.stop()


@pytest.fixture
def fleet(built):
    """The fleet, as it was made."""
    yield built
    built.restore()


def test_an_honest_log_holds(fleet):
    """Every row and statement is checked, and what is not yet signed is said."""
    answer = fleet.cli.json("audit", "verify")
    assert answer["ok"]
    assert (answer["rows"], answer["last"], answer["statements"]) == (ROWS, ROWS, 2)
    assert answer["signed_up_to"] == 30
    assert "40 rows hold, up to row 40; signed up to row 30." in (
        fleet.cli.run("audit", "verify").stdout
    )


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("ts", "'2020-01-01T00:00:00.000Z'"), ("type", "'device.added'"), ("step", "'report'"),
        ("subject", "'devices/cam-1'"), ("actor", "'token/eve'"), ("message", "'Nothing.'"),
        ("data", "'{}'"), ("reason", "''"), ("before", "NULL"), ("after", "'{\"n\": 8}'"),
        ("hash", f"'{'0' * 64}'"),
    ],
)  # fmt: skip
def test_an_altered_column_is_found(fleet, column, value):
    """Whatever is altered in a row, the row is named."""
    fleet.sql(f'UPDATE events SET "{column}" = {value} WHERE id = 10')
    found = fleet.finding()
    assert (found["kind"], found["row"]) == ("altered", 10)


def test_an_altered_id_is_found(fleet):
    """A row that was given another number is missing in its place."""
    fleet.sql("UPDATE events SET id = 1000 WHERE id = 10")
    found = fleet.finding()
    assert (found["kind"], found["row"]) == ("removed", 10)


@pytest.mark.parametrize("row", [1, 10])
def test_a_removed_row_is_found(fleet, row):
    """A gap is named by its number, the very first row's too."""
    fleet.sql(f"DELETE FROM events WHERE id = {row}")
    found = fleet.finding()
    assert (found["kind"], found["row"]) == ("removed", row)


def test_removed_rows_are_found_where_the_rest_moved_up(fleet):
    """Numbering the rest anew does not hide the gap."""
    fleet.sql(
        "DELETE FROM events WHERE id IN (10, 11)",
        *(f"UPDATE events SET id = {n - 2} WHERE id = {n}" for n in range(12, ROWS + 1)),
    )
    found = fleet.finding()
    assert (found["kind"], found["row"]) == ("removed", 10)
    assert "2 rows" in found["message"]


@pytest.mark.parametrize(("one", "other"), [(10, 11), (10, 25)])
def test_swapped_rows_are_found(fleet, one, other):
    """Two rows that changed places are both named."""
    fleet.sql(
        f"UPDATE events SET id = 1000 WHERE id = {one}",
        f"UPDATE events SET id = {one} WHERE id = {other}",
        f"UPDATE events SET id = {other} WHERE id = 1000",
    )
    found = fleet.finding()
    assert (found["kind"], found["row"]) == ("reordered", one)
    assert str(other) in found["message"]


def test_an_inserted_row_is_found(fleet):
    """A row that was put in between, the rest moved on by one, is named."""
    names = ", ".join(f'"{name}"' for name in (*Entry._fields[1:], "hash"))
    fleet.sql(
        *(f"UPDATE events SET id = {n + 1} WHERE id = {n}" for n in range(ROWS, 9, -1)),
        f"INSERT INTO events (id, {names}) SELECT 10, {names} FROM events WHERE id = 5",
    )
    found = fleet.finding()
    assert (found["kind"], found["row"]) == ("inserted", 10)


def test_a_row_that_is_appended_without_the_chain_is_found(fleet):
    """Whoever only writes SQL cannot add to the log."""
    names = ", ".join(f'"{name}"' for name in (*Entry._fields[1:], "hash"))
    fleet.sql(f"INSERT INTO events (id, {names}) SELECT 41, {names} FROM events WHERE id = 40")
    assert fleet.finding()["row"] == 41


@pytest.mark.parametrize("kept", [29, 12, 0])
def test_a_cut_tail_is_found_up_to_the_signed_head(fleet, kept):
    """What was signed cannot be cut off, even all of it."""
    fleet.sql(f"DELETE FROM events WHERE id > {kept}")
    found = fleet.finding()
    assert (found["kind"], found["row"]) == ("truncated", kept + 1)


def test_a_tail_that_nobody_signed_yet_can_be_cut(fleet):
    """The limit, as the documentation states it: the answer says up to where it is signed."""
    fleet.sql("DELETE FROM events WHERE id > 30")
    answer = fleet.cli.json("audit", "verify")
    assert (answer["ok"], answer["rows"], answer["signed_up_to"]) == (True, 30, 30)


def test_a_chain_computed_anew_is_found_by_the_signed_head(fleet):
    """Whoever knows how to chain still lacks the key: the first statement after it tells."""
    fleet.sql("UPDATE events SET actor = 'token/eve' WHERE id = 10")
    fleet.chain_anew()
    found = fleet.finding()
    assert (found["kind"], found["row"]) == ("rewritten", 20)


@pytest.mark.parametrize(
    ("tampering", "said"),
    [
        ("DELETE FROM audit_heads WHERE number = 1", "does not follow"),
        ("UPDATE audit_heads SET envelope = (SELECT envelope FROM saved_heads WHERE number = 1)",
         "does not follow"),
    ],
)  # fmt: skip
def test_statements_that_do_not_follow_are_found(fleet, tampering, said):
    """Statements are a chain too."""
    fleet.sql(tampering)
    found = fleet.finding()
    assert found["kind"] == "statement"
    assert said in found["message"]


def _sign_anew(fleet, signer) -> None:
    """Replace the statements by new ones over the log as it now is."""
    hashes, previous = fleet.chain_anew(), ""
    for number, last in enumerate(SIGNED, start=1):
        head = Head(
            1, "demo", number, last, last, hashes[last - 1], "2026-01-01T00:00:00Z", previous
        )
        payload = strict_json.encode(head)
        envelope = dsse.seal(payload, HEAD_TYPE, signer)
        fleet.sql(f"UPDATE audit_heads SET envelope = x'{envelope.hex()}' WHERE number = {number}")
        previous = head_digest(payload)


def test_statements_by_another_key_are_found(fleet):
    """Only the key that the offline owners delegate to counts."""
    fleet.sql("UPDATE events SET actor = 'token/eve' WHERE id = 10")
    _sign_anew(fleet, CryptoSigner.generate_ecdsa())
    found = fleet.finding()
    assert "not signed by the fleet's audit key" in found["message"]


def test_a_past_that_the_server_s_owner_signed_anew_is_found_by_a_kept_head(fleet, tmp_path):
    """With the audit key everything can be rewritten, but not what the operator has kept."""
    kept = tmp_path / "head.json"
    fleet.cli.run("audit", "heads", "--save", kept)
    assert fleet.cli.json("audit", "verify", "--since-head", kept)["rows"] == 11
    fleet.sql("UPDATE events SET actor = 'token/eve' WHERE id = 10")
    pem = (fleet.folder.online / "keys" / "audit.pem").read_bytes()
    _sign_anew(fleet, CryptoSigner(load_pem_private_key(pem, None)))
    assert fleet.cli.json("audit", "verify")["ok"]
    assert fleet.finding("--since-head", kept)["kind"] == "rewritten"
    before = kept.read_bytes()
    assert "written anew" in fleet.cli.run("audit", "heads", "--save", kept, code=1).stdout
    assert kept.read_bytes() == before


def test_since_a_kept_head_the_rest_is_read(fleet, tmp_path):
    """Verification can begin at a kept statement, and finds what is wrong behind it."""
    kept = tmp_path / "head.json"
    fleet.cli.run("audit", "heads", "--save", kept)
    fleet.sql("UPDATE events SET actor = 'token/eve' WHERE id = 35")
    assert fleet.finding("--since-head", kept)["row"] == 35
    fleet.restore()
    fleet.sql("DELETE FROM events WHERE id = 30")
    assert fleet.finding("--since-head", kept)["row"] == 30
    fleet.sql("DELETE FROM events WHERE id > 30")
    assert fleet.finding("--since-head", kept)["kind"] == "truncated"
    fleet.cli.error("audit", "verify", "--since-head", tmp_path / "none")
    (tmp_path / "no.json").write_text('{"payload": 1}')
    assert fleet.cli.error("audit", "verify", "--since-head", tmp_path / "no.json")["code"] == (
        "malformed"
    )


def test_the_log_is_filtered_and_shows_what_changed(fleet):
    """By actor, subject, kind and time, with the reason and the difference."""
    events = fleet.cli.run("audit", "log", "--actor", "token/bob", "--json").stdout.splitlines()
    assert {json.loads(line)["actor"] for line in events} == {"token/bob"}
    shown = fleet.cli.run("audit", "log", "--subject", "devices/cam-38").stdout
    assert "Row 38." in shown
    assert "because: a test" in shown
    assert "n: 37 -> 38" in shown
    assert fleet.cli.run("audit", "log", "--since", "2999-01-01T00:00:00Z").stdout == ""
    assert fleet.cli.run("audit", "log", "--type", "server.*").stdout.count("\n") > 1
    assert fleet.cli.error("audit", "log", "--since", "yesterday")["code"] == "invalid_time"


def _without_audit(signed) -> None:
    role = signed.delegations.roles.pop("audit")
    del signed.delegations.keys[role.keyids[0]]


def test_a_fleet_from_before_gets_its_audit_key_and_keys_can_rotate(tmp_path):
    """Without the role nobody signs; `keys rotate audit` names a key, and later another."""
    fleet = Fleet.__new__(Fleet)
    fleet.folder = FleetFolder(tmp_path / "old")
    fleet.cloud = RunningCloud(fleet.folder)
    parts = fleet.cloud.program.app.state.parts
    fleet.log, fleet.heads = parts.get(EventLog), parts.get(Heads)
    fleet.cli = Cli()
    fleet.cli.arguments = ["--fleet", str(fleet.folder.path), "--server", fleet.cloud.url]
    try:
        name, data = fleet.folder.resign("targets", _without_audit, ["targets-1", "targets-2"])
        body = {"files": {name: base64.b64encode(data).decode()}}
        assert fleet.cloud.client.post("/v1/trust/metadata", json=body).status_code == 200
        with fleet.cloud.program.database.write() as session:
            assert fleet.heads.sign(session) is None
        answer = fleet.cli.run("audit", "verify")
        assert "edgefleet keys rotate audit" in answer.stderr
        for rotations in (1, 2):
            fleet.cli.run("keys", "rotate", "audit", "--yes")
            fleet.record(rotations)
            fleet.sign()
            found = fleet.cli.json("audit", "verify")
            assert (found["statements"], found["signed_up_to"]) == (rotations, found["last"])
    finally:
        fleet.cloud.stop()


def test_statements_are_for_admins(fleet):
    """A viewer may not judge the log: it would see a part of it."""
    wish = {"name": "eyes", "role": "viewer", "days": 1}
    made = fleet.cloud.client.post("/v1/tokens", json=wish)
    assert made.status_code == 201, made.text
    error = fleet.cli.error("audit", "verify", "--token", made.json()["token"], code=1)
    assert error["code"] == "forbidden"
