"""Writes a migration from what the tables in the code say.

    python -m edgefleet_cloud.migrations "Devices have a colour"   adds a migration
    python -m edgefleet_cloud.migrations --initial                 writes the first one anew

The second is for the time before the first release, when no database needs to be kept.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from alembic import command

from edgefleet_cloud import migrations
from edgefleet_cloud.database import Database

VERSIONS = migrations.FOLDER / "versions"


def main() -> None:
    """Write a migration, formatted."""
    parser = argparse.ArgumentParser(prog="python -m edgefleet_cloud.migrations")
    parser.add_argument("message", nargs="?", default="The first schema")
    parser.add_argument("--initial", action="store_true", help="write the first one anew")
    options = parser.parse_args()
    if options.initial:
        for path in _written():
            path.unlink()
    number = len(_written()) + 1
    with TemporaryDirectory() as folder:
        database = Database(f"sqlite:///{folder}/schema.db")
        if number > 1:
            migrations.upgrade(database)
        with database.write() as session:
            config = migrations.settings(session.connection())
            config.attributes["changes"] = number > 1
            command.revision(config, options.message, autogenerate=True, rev_id=f"{number:04d}")
        database.close()
    newest = _written()[-1]
    lines = newest.read_text().splitlines(keepends=True)
    newest.write_text("".join(line for line in lines if not line.startswith("    # ###")))
    subprocess.run([sys.executable, "-m", "ruff", "format", "--quiet", str(VERSIONS)], check=True)


def _written() -> list[Path]:
    return sorted(VERSIONS.glob("[0-9]*.py"))


if __name__ == "__main__":
    main()
