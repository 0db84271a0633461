"""Signed statements about the log: when they are made, what they say, and who may read them."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime

import pytest
from securesystemslib.signer import CryptoSigner

from edgefleet_cloud.audit import repository
from edgefleet_cloud.audit.service import HeadKeeper, Heads
from edgefleet_cloud.events.feed import EventFeed
from edgefleet_cloud.events.service import EventLog
from edgefleet_shared import dsse
from edgefleet_shared.audit import HEAD_TYPE, head_digest, read_head

FACT = {"type": "test.fact", "step": "report", "subject": "devices/cam-1", "message": "So it is."}
NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


class Key:
    """A signer whose key can be taken away or replaced."""

    def __init__(self) -> None:
        self.signer: CryptoSigner | None = CryptoSigner.generate_ecdsa()

    def audit_key(self) -> str | None:
        return self.signer.public_key.keyid if self.signer else None

    def sign_head(self, payload: bytes) -> bytes | None:
        return dsse.seal(payload, HEAD_TYPE, self.signer) if self.signer else None


class World:
    """A log and its statements."""

    def __init__(self, database, folder) -> None:
        self.database, self.folder, self.key = database, folder, Key()
        self.log = EventLog(EventFeed())
        self.heads = Heads("demo", self.key, folder, lambda: NOW)
        self.keeper = HeadKeeper(database, self.heads)

    def record(self, count: int = 1) -> None:
        with self.database.write() as session:
            for _ in range(count):
                self.log.record(session, **FACT)

    def statements(self) -> list:
        """Return every statement, its signature checked by the present key."""
        found = []
        for path in sorted(self.folder.glob("*.json")):
            payload = dsse.read(path.read_bytes(), HEAD_TYPE).payload
            found.append((read_head(payload), head_digest(payload)))
        return found


@pytest.fixture
def world(database, tmp_path):
    """An empty log."""
    return World(database, tmp_path / "audit")


def test_statements_follow_one_another(world):
    """Each says where the log stands, how many rows it has, and which one came before it."""
    world.record(3)
    world.keeper.look()
    world.record(2)
    world.keeper.look()
    (first, digest), (second, _) = world.statements()
    assert (first.number, first.last, first.count, first.previous) == (1, 3, 3, "")
    assert (second.number, second.last, second.count, second.previous) == (2, 5, 5, digest)
    assert (first.fleet, first.time) == ("demo", "2026-11-24T12:00:00.000Z")
    with world.database.read() as session:
        envelope = repository.newest(session).envelope
    key = world.key.signer.public_key
    assert read_head(dsse.open_sealed(envelope, HEAD_TYPE, key)) == second


def test_nothing_is_signed_without_news(world):
    """An empty log, an unchanged one and a fleet without a key have nothing to sign."""
    world.keeper.look()
    assert world.statements() == []
    world.record()
    world.keeper.look()
    world.keeper.look()
    assert len(world.statements()) == 1
    world.key.signer = None
    world.record()
    world.keeper.look()
    assert len(world.statements()) == 1


def test_a_new_key_signs_at_once(world):
    """After a rotation the newest statement is by the key that is named now."""
    world.record()
    world.keeper.look()
    world.key.signer = CryptoSigner.generate_ecdsa()
    world.keeper.look()
    assert [head.last for head, _ in world.statements()] == [1, 1]


def test_a_lost_file_is_written_again(world):
    """A crash between commit and file, or a deleted newest file, is made good."""
    world.record()
    world.keeper.look()
    (path,) = world.folder.glob("*.json")
    data = path.read_bytes()
    path.unlink()
    world.keeper.look()
    assert path.read_bytes() == data


def test_the_end_is_signed(world):
    """Stopping signs what the last hour brought."""

    async def live() -> None:
        await world.keeper.start()
        world.record(2)
        await world.keeper.stop()

    world.record()
    asyncio.run(live())
    assert world.statements()[-1][0].last == 3


def test_the_api_lists_statements(cloud):
    """Pages of statements, for whoever may read the audit, newest first if asked."""
    heads = cloud.program.app.state.parts.get(Heads)
    for _ in range(2):
        with cloud.program.database.write() as session:
            EventLog(EventFeed()).record(session, **FACT)
        with cloud.program.database.write() as session:
            assert heads.sign(session)
    first, second = cloud.client.get("/v1/audit/heads").json()["items"]
    assert (first["number"], second["number"]) == (1, 2)
    envelope = dsse.read(json.dumps(second["envelope"]).encode(), HEAD_TYPE)
    assert read_head(envelope.payload).previous == second["previous"]
    newest = cloud.client.get("/v1/audit/heads?order_by=number desc&page_size=1").json()
    assert newest["items"] == [second]
    assert newest["next_page_token"]
    assert cloud.anyone.get("/v1/audit/heads").status_code == 401
