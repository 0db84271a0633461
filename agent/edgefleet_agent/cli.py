"""The commands of a device; those that look at it are in `inspection`. Errors are one paragraph.

Exit codes: 0 done, 1 it failed, 2 bad input or usage, 3 the fleet manager cannot be reached.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

from edgefleet_agent import __version__, inspection, selftest
from edgefleet_agent.config import Config, load
from edgefleet_agent.inspection import denied
from edgefleet_shared.errors import EdgeFleetError, InvalidInputError, UnavailableError

DEFAULT_CONFIG = Path("/etc/edgefleet/agent.toml")
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    try:
        options = _parser().parse_args(arguments)
    except InvalidInputError as error:
        return _fail(error, 2, as_json="--json" in (arguments or sys.argv))
    as_json = getattr(options, "json", False)
    path = options.config or (DEFAULT_CONFIG if DEFAULT_CONFIG.exists() else None)
    try:
        config = load(path)
        if options.command == "run":
            return _run(config)
        if options.command == "enroll":
            return _enroll(config, options)
        if options.command == "renew":
            return _renew(config, as_json=options.json)
        if options.command == "selftest":
            return _selftest(config, options)
        if options.command == "import-bundle":
            return _import(config, options.source, as_json=options.json)
        return int(options.run(config, options))
    except EdgeFleetError as error:
        return _fail(error, _status_of(error), as_json=as_json)
    except OSError as error:
        return _fail(denied.explain(error), 1, as_json=as_json)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with the arguments as every other error is said."""

    def error(self, message: str) -> NoReturn:
        raise InvalidInputError(
            f"{message[:1].upper()}{message[1:]}.",
            code="usage",
            hint=f"`{self.prog} --help` tells what it takes.",
        )


def _parser() -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = _Parser(
        prog="edgefleet-agent", description="The edgefleet agent."
    )
    parser.add_argument("--version", action="version", version=f"edgefleet-agent {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    shared: argparse.ArgumentParser = _Parser(add_help=False)
    shared.add_argument("--config", type=Path, help=f"TOML file (default {DEFAULT_CONFIG})")
    commands.add_parser("run", parents=[shared], help="serve models and obey the fleet manager")
    enroll = commands.add_parser("enroll", parents=[shared], help="become a device of a fleet")
    ticket = enroll.add_mutually_exclusive_group(required=True)
    ticket.add_argument("--ticket", help="the ticket string")
    ticket.add_argument("--ticket-file", type=Path, help="a file that holds it; - for stdin")
    enroll.add_argument(
        "--device", default="", help="the id to ask for, with a ticket for a group of devices"
    )
    enroll.add_argument("--json", action="store_true", help="one JSON object")
    renew = commands.add_parser(
        "renew", parents=[shared], help="get a new key and certificate now, agentd running or not"
    )
    renew.add_argument("--json", action="store_true", help="one JSON object")
    bring = commands.add_parser(
        "import-bundle", parents=[shared], help="take an assignment and its blobs from a folder"
    )
    bring.add_argument("source", type=Path, help="a folder with desired.json and blobs, or a file")
    bring.add_argument("--json", action="store_true", help="one JSON object")
    selftest.add_parser(commands, shared)
    inspection.register(commands, shared)
    return parser


def _run(config: Config) -> int:
    # Imported here: `status` and `--help` need none of it.
    from edgefleet_agent import compose, durable

    if config.log_level.upper() not in LEVELS:
        raise InvalidInputError(
            f"{config.log_level!r} is no log level.",
            code="configuration",
            hint=f"Use one of {', '.join(LEVELS)}.",
        )
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(levelname)-7s %(message)s", stream=sys.stderr
    )
    logging.getLogger("edgefleet").setLevel(config.log_level.upper())
    with compose.lock(durable.make_folder(config.state)):
        if config.iothub.auth == "edge":
            from edgefleet_agent.awaiting import await_ticket  # only there an enrolment waits

            await_ticket(config, os.environ)
        daemon = compose.build(config)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: daemon.end())
        signal.signal(signal.SIGUSR1, lambda *_: daemon.renew())
        signal.signal(signal.SIGUSR2, lambda *_: daemon.look_into_inbox())
        # A restart or an update of agentd alone: models go on answering meanwhile.
        signal.signal(signal.SIGHUP, lambda *_: daemon.end(end_gateway=False))
        daemon.run()
    return 0


def _enroll(config: Config, options: argparse.Namespace) -> int:
    from edgefleet_agent.enrollment import enroll

    ticket, file, path = options.ticket, options.ticket_file, options.config
    if ticket is None:
        ticket = sys.stdin.read() if str(file) == "-" else _read(file)
    with contextlib.ExitStack() as stack:
        identity = enroll(
            config.state, ticket, config.identity.key, options.device, lambda: _take(stack, config)
        )
    if config.identity.key:
        _certify_tls(config)
    next_ = f"edgefleet-agent run{f' --config {path}' if path else ''}"
    _say(
        {"device": identity.device, "fleet": identity.fleet, "key": identity.who.key},
        f"Enrolled as {identity.device} in fleet {identity.fleet}.\nNext: {next_}",
        as_json=options.json,
    )
    return 0


def _take(stack: contextlib.ExitStack, config: Config) -> None:
    """Keep agentd away while its identity is replaced; it would go on with the old one."""
    from edgefleet_agent import compose

    stack.enter_context(compose.lock(config.state))


def _certify_tls(config: Config) -> None:
    """Get the certificate of the key for TLS at once; agentd does it if the network goes now."""
    from edgefleet_agent import renewing

    with contextlib.suppress(UnavailableError):
        renewing.renew_now(config)


def _renew(config: Config, *, as_json: bool) -> int:
    from edgefleet_agent import renewing

    certificate = renewing.renew_now(config)
    until = f"{certificate.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}"
    _say(
        {"renewed": True, "serial": f"{certificate.serial_number:X}", "not_after": until},
        f"Renewed; the certificate is valid until {until}.",
        as_json=as_json,
    )
    return 0


def _selftest(config: Config, options: argparse.Namespace) -> int:
    from edgefleet_agent.selftest import command

    return command.main(config, options)


def _import(config: Config, source: Path, *, as_json: bool) -> int:
    from edgefleet_agent import importing

    found = importing.import_bundle(config, source)
    then = "agentd goes on with it" if found.running else "agentd does it at its next start"
    _say(
        importing.shown(found),
        f"Accepted assignment {found.counter}, with {found.blobs} blobs of {found.bytes} bytes; "
        f"{then}.\nNext: `edgefleet-agent status` shows how far it is; the stick may be taken out.",
        as_json=as_json,
    )
    return 0


def _say(found: dict[str, Any], text: str, *, as_json: bool) -> None:
    sys.stdout.write((json.dumps(found) if as_json else text) + "\n")


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = "it is not text" if isinstance(error, UnicodeDecodeError) else error.strerror or error
        raise InvalidInputError(
            f"The ticket file {file} cannot be read: {why}.",
            code="ticket",
            hint="`edgefleet device ticket DEVICE -o FILE` makes one.",
        ) from error


def _status_of(error: EdgeFleetError) -> int:
    if error.code == "fleet_manager_unreachable":
        return 3
    return 2 if isinstance(error, InvalidInputError) else 1


def _fail(error: EdgeFleetError, status: int, *, as_json: bool) -> int:
    """Say it to people and, if asked, to machines in the shape that `edgefleet --json` has."""
    if as_json:
        body = {"code": error.code, "message": error.message, "hint": error.hint}
        sys.stdout.write(json.dumps({"error": body}) + "\n")
    sys.stderr.write(f"edgefleet-agent: {error}\n")
    return status
