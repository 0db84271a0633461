"""`edgefleet-cloud`: read the configuration, compose, serve; and the few jobs at the server."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import edgefleet_cloud
from edgefleet_cloud import compose, config, server
from edgefleet_cloud.auth.roles import Role
from edgefleet_cloud.auth.service import LIFE, TokenService, Wish
from edgefleet_cloud.auth.tables import TokenRow
from edgefleet_cloud.authority.issuing import DeviceCa
from edgefleet_cloud.broker import command
from edgefleet_cloud.broker.revocations import LIST
from edgefleet_cloud.enrollments import command as authority
from edgefleet_cloud.events.feed import EventFeed
from edgefleet_cloud.events.service import EventLog
from edgefleet_cloud.ports import system_clock
from edgefleet_shared.errors import EdgeFleetError

BAD_USE = 2
SHELL = "shell"
"""The actor of what is done at the server's own command line."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code: 0, or 2 with a paragraph that says why."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except EdgeFleetError as error:
        return _complain(str(error))
    except OSError as error:
        where = error.filename or "The system"
        return _complain(
            f"{where}: {error.strerror or error}. Check the folders that cloud.toml names."
        )
    return 0


def _complain(why: str) -> int:
    print(f"edgefleet-cloud: {why}", file=sys.stderr)  # noqa: T201 - the error message
    return BAD_USE


def _serve(options: argparse.Namespace) -> None:
    settings = config.load(options.config)
    logging.basicConfig(
        level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    for loud in ("alembic", "tuf"):
        logging.getLogger(loud).setLevel("WARNING")
    if options.ready_file:
        options.ready_file.unlink(missing_ok=True)  # a dead server's would mislead
    listener, settings = server.bind(settings)
    with listener:
        program = compose.compose(settings)
        try:
            running = server.Server(
                program.app, program.background, listener, settings, program.closing
            )
            asyncio.run(server.serve(running, options.ready_file))
        finally:
            program.database.close()


def _token(options: argparse.Namespace) -> None:
    settings = config.load(options.config)
    database = compose.open_database(settings)
    tokens = TokenService(system_clock, EventLog(EventFeed()))
    found: dict[str, object] | list[dict[str, object]]
    try:
        if options.action == "list":
            with database.read() as session:
                rows = [_shown(row) for row in tokens.every(session)]
            found, lines = rows, [_line(row) for row in rows]
        elif options.action == "create":
            life = None if options.never else timedelta(days=options.days)
            wish = Wish(options.name, Role(options.role), options.scope, life)
            with database.write() as session:
                row, text = tokens.create(session, wish, SHELL)
                found, lines = {**_shown(row), "token": text}, [text]
        else:
            with database.write() as session:
                found, lines = _shown(tokens.revoke(session, options.name, SHELL)), []
    finally:
        database.close()
    for line in [json.dumps(found, indent=2)] if options.as_json else lines:
        print(line)  # noqa: T201 - the answer; a new token is shown this once


def _shown(row: TokenRow) -> dict[str, object]:
    return row.model_dump(exclude={"hash"})


def _line(row: dict[str, object]) -> str:
    end = f"expires {row['expires']}" if row["expires"] else "for ever"
    state = f"revoked {row['revoked']}" if row["revoked"] else end
    return "\t".join(map(str, (row["name"], row["role"], f"created {row['created']}", state,
                               row["scope"])))  # fmt: skip


def _authority(options: argparse.Namespace) -> None:
    settings = config.load(options.config)
    database = compose.open_database(settings)
    try:
        print(authority.run(options, settings, database, EventLog(EventFeed())))  # noqa: T201
    finally:
        database.close()


def _openapi(_options: argparse.Namespace) -> None:
    print(json.dumps(compose.api_description(), indent=2))  # noqa: T201 - the answer


def _broker_config(options: argparse.Namespace) -> None:
    print(command.text(options), end="")  # noqa: T201 - the answer


def _broker_certificate(options: argparse.Namespace) -> None:
    settings = config.load(options.config)
    lists = settings.data / "broker" / LIST
    written = command.write_certificate(options, DeviceCa.load(settings.keys), lists)
    if options.json:
        print(json.dumps({"written": [str(path) for path in written]}))  # noqa: T201 - the answer
        return
    for path in written:
        print(path)  # noqa: T201 - the answer


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="edgefleet-cloud", description=edgefleet_cloud.__doc__)
    parser.add_argument("--version", action="version", version=edgefleet_cloud.__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="run the fleet manager")
    _add_config(serve)
    serve.add_argument("--ready-file", type=Path, help="written once requests are answered")
    serve.set_defaults(run=_serve)
    _add_token(commands.add_parser("token", help="make, list and revoke API tokens"))
    ca = commands.add_parser("ca", help="replace the authority that signs devices' certificates")
    authority.add_arguments(ca, _add_config)
    ca.set_defaults(run=_authority)
    openapi = commands.add_parser("openapi", help="print the API's description")
    openapi.set_defaults(run=_openapi)
    broker = commands.add_parser(
        "broker-config", help="print the configuration of a broker that stands alone"
    )
    command.add_arguments(broker)
    broker.set_defaults(run=_broker_config)
    certificate = commands.add_parser(
        "broker-certificate", help="write certificate and configuration of a broker elsewhere"
    )
    command.add_certificate_arguments(certificate)
    _add_config(certificate)
    certificate.set_defaults(run=_broker_certificate)
    return parser


def _add_token(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(required=True, metavar="ACTION", dest="action")
    for action, what in (("create", "print a new token"), ("revoke", "make a token invalid")):
        one = actions.add_parser(action, help=what)
        one.add_argument("name", help="who will use it, for example ci")
        _add_config(one)
        _add_json(one)
        if action == "create":
            roles = [role.value for role in Role]
            one.add_argument("--role", choices=roles, default="viewer", help="default: viewer")
            one.add_argument("--scope", default="", help="a filter, as labels.site == 'berlin'")
            one.add_argument("--days", type=int, default=LIFE.days, help="default: 90")
            one.add_argument("--never", action="store_true", help="it never expires")
    every = actions.add_parser("list", help="name all tokens")
    _add_config(every)
    _add_json(every)
    parser.set_defaults(run=_token)


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", dest="as_json", action="store_true", help="print JSON")


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", type=Path, default=Path("cloud.toml"), help="default: ./cloud.toml"
    )


if __name__ == "__main__":
    sys.exit(main())
