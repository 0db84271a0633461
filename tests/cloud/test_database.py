"""The database: transactions, what follows them, and the schema's history."""

from __future__ import annotations

import logging
import sqlite3
import threading

import pytest
from sqlmodel import Session, SQLModel, select

from edgefleet_cloud import migrations
from edgefleet_cloud.auth.tables import TokenRow
from edgefleet_cloud.database import Database, after_commit
from edgefleet_shared.errors import InvalidInputError


def _token(name: str) -> TokenRow:
    return TokenRow(name=name, hash=name, created="2026-11-21T00:00:00.000Z")


def _names(database: Database) -> list[str]:
    with database.read() as session:
        return sorted(session.exec(select(TokenRow.name)).all())


def test_what_was_written_is_on_disk(database):
    """A committed row is there for a second connection to the same file."""
    with database.write() as session:
        session.add(_token("a"))
    again = Database(str(database.engine.url))
    assert _names(again) == ["a"]
    again.close()


def test_an_error_rolls_back(database):
    """An exception that leaves the block undoes all of it, and the next writer gets its turn."""
    with pytest.raises(ZeroDivisionError), database.write() as session:
        session.add(_token("a"))
        session.flush()
        raise ZeroDivisionError
    assert _names(database) == []
    with database.write() as session:
        session.add(_token("b"))
    assert _names(database) == ["b"]


def test_callbacks_follow_the_commit(database):
    """A callback sees the committed rows, in order of registration, and may write itself."""
    seen = []

    def second():
        with database.write() as session:
            session.add(_token("from-callback"))

    with database.write() as session:
        session.add(_token("a"))
        after_commit(session, lambda: seen.append(_names(database)))
        after_commit(session, second)
        assert seen == []
    assert seen == [["a"]]
    assert _names(database) == ["a", "from-callback"]


def test_no_callback_without_a_commit(database):
    """What was rolled back is followed by nothing, neither then nor after the next commit."""
    seen = []
    with pytest.raises(ZeroDivisionError), database.write() as session:
        after_commit(session, lambda: seen.append(1))
        raise ZeroDivisionError
    with database.write() as session:
        session.add(_token("a"))
    assert seen == []


def test_a_failing_callback_does_not_undo_the_commit(database, caplog):
    """A callback that fails is logged; the commit stands and the next callback runs."""
    seen = []
    with caplog.at_level(logging.ERROR), database.write() as session:
        session.add(_token("a"))
        after_commit(session, lambda: 1 / 0)
        after_commit(session, lambda: seen.append(1))
    assert _names(database) == ["a"]
    assert seen == [1]
    assert "ZeroDivisionError" in caplog.text


def test_a_reading_session_refuses_to_write(database):
    """Something added to a reading session is an error and not a silent loss."""
    with database.read() as session:
        session.add(_token("a"))
        with pytest.raises(RuntimeError, match="reading session"):
            session.exec(select(TokenRow)).all()
        session.expunge_all()


def test_a_reader_sees_one_state(database):
    """What another commits during a read is not seen before the next one, and blocks nobody."""
    with database.read() as session:
        assert session.exec(select(TokenRow)).all() == []
        with database.write() as other:
            other.add(_token("a"))
        assert session.exec(select(TokenRow)).all() == []
    assert _names(database) == ["a"]


def test_writers_take_turns(database):
    """Eight threads that each read, then change, lose no update."""
    with database.write() as session:
        session.add(_token("n"))

    def count():
        for _ in range(5):
            with database.write() as session:
                row = session.get(TokenRow, "n")
                row.role = str(int(row.role) + 1) if row.role.isdigit() else "1"
                session.add(row)

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.read() as session:
        assert session.get(TokenRow, "n").role == "40"


def test_sqlite_is_set_for_durability(database):
    """Write-ahead log, full synchronisation, foreign keys, and patience with other processes."""
    with database.read() as session:

        def pragma(name):
            return session.connection().exec_driver_sql(f"PRAGMA {name}").scalar()

        assert pragma("journal_mode") == "wal"
        assert pragma("synchronous") == 2
        assert pragma("foreign_keys") == 1
        assert pragma("busy_timeout") == 15_000


@pytest.mark.parametrize("url", ["not a url", "nosuchdatabase://x", "oracle://x"])
def test_a_url_that_cannot_be_used(url):
    """A bad database_url is a configuration error with a sentence."""
    with pytest.raises(InvalidInputError) as caught:
        Database(url)
    assert caught.value.code == "configuration"


def test_the_migrations_make_the_tables_of_the_code(database):
    """The schema by migrations is the schema by the tables: nothing is missing on either side.

    If this fails after a table was changed, write a migration: see cloud/README.md.
    """
    with database.read() as session:
        assert migrations.differences(session.connection()) == []


def test_the_comparison_would_notice(database):
    """The comparison above sees a column that is gone."""
    with database.write() as session:
        session.connection().exec_driver_sql("ALTER TABLE tokens DROP COLUMN revoked")
    with database.read() as session:
        assert len(migrations.differences(session.connection())) == 1


def test_migrating_again_changes_nothing(database):
    """A second start finds the schema up to date and keeps what is in it."""
    with database.write() as session:
        session.add(_token("a"))
    migrations.upgrade(database)
    assert _names(database) == ["a"]


def test_a_database_of_the_future_is_refused(database):
    """A database whose revision is unknown is left alone, with a sentence that says why."""
    with database.write() as session:
        session.connection().exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(InvalidInputError, match="newer"):
        migrations.upgrade(database)


def test_a_failed_migration_leaves_nothing(tmp_path):
    """If a migration cannot end, the database is as it was before."""
    path = tmp_path / "foreign.db"
    with sqlite3.connect(path) as foreign:
        foreign.execute("CREATE TABLE uploads (x INTEGER)")
    foreign.close()
    database = Database(f"sqlite:///{path}")
    with pytest.raises(InvalidInputError):
        migrations.upgrade(database)
    with database.read() as session:
        names = session.connection().exec_driver_sql("SELECT name FROM sqlite_master").scalars()
        assert names.all() == ["uploads"]
    database.close()


def test_every_table_has_a_primary_key_of_its_own():
    """A table without a key could hold one row twice."""
    for table in SQLModel.metadata.tables.values():
        assert table.primary_key.columns, table.name


def test_sessions_are_sqlmodels(database):
    """Repositories may use `exec`, which only SQLModel's session has."""
    with database.read() as reading:
        assert isinstance(reading, Session)
