"""A fleet made by the real `edgefleet init`, and the command line as a function."""

from __future__ import annotations

import json
import shutil

import pytest
from typer.testing import CliRunner

from edgefleet_provisioning.cli import app
from tests.fakes.fleet_api import FleetApi


class Cli:
    """Runs `edgefleet` in this process."""

    def __init__(self) -> None:
        self.arguments: list[str] = []

    def run(self, *arguments, code=0):
        """Run, check the exit code (None: any) and that nothing looks like a traceback."""
        result = CliRunner().invoke(app, [*map(str, arguments), *self.arguments])
        shown = f"{result.stdout}\n{result.stderr}"
        assert "Traceback" not in shown, shown
        assert result.exception is None or isinstance(result.exception, SystemExit), shown
        assert code is None or result.exit_code == code, shown
        return result

    def json(self, *arguments, code=0):
        """Run with --json and return the document of the last line."""
        return json.loads(self.run(*arguments, "--json", code=code).stdout.splitlines()[-1])

    def error(self, *arguments, code=2):
        """Run a command that must fail with one paragraph; return its error document."""
        result = self.run(*arguments, "--json", code=code)
        *_, paragraph = result.stderr.strip().splitlines()
        assert paragraph.startswith("Error: ")
        return json.loads(result.stdout.splitlines()[-1])["error"]


@pytest.fixture
def cli():
    """The `edgefleet` command."""
    return Cli()


@pytest.fixture(scope="session")
def made_fleet(tmp_path_factory):
    """A fleet folder with one family, made once."""
    folder = tmp_path_factory.mktemp("made") / "fleet"
    Cli().run("init", folder, "--fleet", "test", "--family", "digits", "--insecure-no-passphrase")
    return folder


@pytest.fixture
def fleet(made_fleet, tmp_path):
    """A fleet folder of the test's own."""
    return shutil.copytree(made_fleet, tmp_path / "fleet")


@pytest.fixture
def api(fleet):
    """A fleet manager over that folder."""
    with FleetApi(fleet / "online") as running:
        yield running


@pytest.fixture
def operator(api, fleet):
    """The `edgefleet` command, connected."""
    connected = Cli()
    connected.arguments = ["--fleet", str(fleet), "--server", api.url]
    return connected


@pytest.fixture
def owned(tmp_path):
    """A fleet with a fleet manager in this process, in the hands of its owner."""
    from tests.provisioning.owner import Fleet  # which needs the class above

    made = Fleet(tmp_path / "fleet")
    yield made
    made.cloud.stop()
