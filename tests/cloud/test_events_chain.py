"""Rows of the log are numbered without gaps and chained, whoever writes at the same time."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from alembic import command
from sqlmodel import select

from edgefleet_cloud import migrations
from edgefleet_cloud.database import Database
from edgefleet_cloud.events.feed import EventFeed
from edgefleet_cloud.events.service import EventLog
from edgefleet_cloud.events.tables import EventRow
from edgefleet_shared.audit import BEGINNING, row_hash

FACT = {"type": "test.fact", "step": "report", "subject": "devices/cam-1", "message": "So it is."}


def rows(database: Database) -> list[EventRow]:
    """Return every row, and check that each follows the one before."""
    with database.read() as session:
        found = session.exec(select(EventRow).order_by(EventRow.id)).all()
    previous = BEGINNING
    for row in found:
        assert row.hash == row_hash(previous, row.entry()), row.id
        previous = row.hash
    return found


def test_a_transaction_s_events_stand_together_in_its_order(database):
    """Numbers are given at the commit, so that nobody else's row stands between."""
    log = EventLog(EventFeed())
    with database.write() as session:
        for word in "abc":
            log.record(session, **FACT, data={"word": word}, before={"n": 1.5}, after={})
    with pytest.raises(RuntimeError), database.write() as session:
        log.record(session, **FACT, data={"word": "lost"})
        raise RuntimeError
    with database.write() as session:
        log.record(session, **FACT, data={"word": "d"})
    found = rows(database)
    assert [row.id for row in found] == [1, 2, 3, 4]
    assert "".join(row.data["word"] for row in found) == "abcd"


def test_what_is_recorded_is_what_it_was_then(database):
    """A dictionary that changes later in the transaction does not change what was told of it."""
    log = EventLog(EventFeed())
    labels = {"site": "hall-3"}
    with database.write() as session:
        log.record(session, **FACT, before=labels, data={"labels": labels})
        labels["site"] = "hall-4"
        log.record(session, **FACT, after=labels)
    first, second = rows(database)
    assert first.before == first.data["labels"] == {"site": "hall-3"}
    assert second.after == {"site": "hall-4"}


def test_numbers_that_json_cannot_say_become_text(database):
    """An event is never lost because of a number in it."""
    log = EventLog(EventFeed())
    with database.write() as session:
        log.record(session, **FACT, data={"big": 2**64, "nan": float("nan"), "fine": 2**49})
    assert rows(database)[0].data == {"big": str(2**64), "nan": "NaN", "fine": 2**49}


def test_several_processes_write_one_chain(tmp_path: Path):
    """Writers with engines of their own, as processes have, never fork the chain."""
    url = f"sqlite:///{tmp_path / 'many.db'}"
    databases = [Database(url) for _ in range(3)]
    migrations.upgrade(databases[0])
    log = EventLog(EventFeed())

    def write(database: Database, who: int) -> None:
        for number in range(15):
            with database.write() as session:
                log.record(session, **FACT, data={"who": who, "number": number})

    threads = [
        threading.Thread(target=write, args=(database, who))
        for who, database in enumerate(databases)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = rows(databases[0])
    assert [row.id for row in found] == list(range(1, 46))
    for who in range(3):
        assert [r.data["number"] for r in found if r.data["who"] == who] == list(range(15))
    for database in databases:
        database.close()


def test_a_migration_chains_the_rows_of_the_time_before(tmp_path: Path):
    """A log that began before there was a chain is chained as it is found, gaps and all."""
    database = Database(f"sqlite:///{tmp_path / 'old.db'}")
    with database.write() as session:
        command.upgrade(migrations.settings(session.connection()), "0001")
        for number in (1, 2, 5, *range(6, 1500)):
            session.connection().exec_driver_sql(
                "INSERT INTO events (id, ts, type, step, subject, actor, message, data)"
                " VALUES (?, '2026-01-01T00:00:00.000Z', 't', 's', 'x', 'a', 'm', ?)",
                (number, json.dumps({"n": number, "share": 0.1})),
            )
    migrations.upgrade(database)
    log = EventLog(EventFeed())
    with database.write() as session:
        log.record(session, **FACT)
    found = rows(database)
    assert [row.id for row in found][:4] == [1, 2, 5, 6]
    assert (len(found), found[-1].id) == (1498, 1500)
    database.close()
