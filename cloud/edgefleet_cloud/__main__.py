"""`edgefleet-cloud`: read the configuration, compose, serve; and the few jobs at the server."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import edgefleet_cloud
from edgefleet_cloud import compose, config, server
from edgefleet_cloud.broker import command
from edgefleet_shared.errors import EdgeFleetError

BAD_USE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code: 0, or 2 with a paragraph that says why."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except EdgeFleetError as error:
        print(f"edgefleet-cloud: {error}", file=sys.stderr)  # noqa: T201 - the error message
        return BAD_USE
    return 0


def _serve(options: argparse.Namespace) -> None:
    settings = config.load(options.config)
    logging.basicConfig(
        level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
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


def _openapi(_options: argparse.Namespace) -> None:
    print(json.dumps(compose.api_description(), indent=2))  # noqa: T201 - the answer


def _broker_config(options: argparse.Namespace) -> None:
    print(command.text(options), end="")  # noqa: T201 - the answer


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="edgefleet-cloud", description=edgefleet_cloud.__doc__)
    parser.add_argument("--version", action="version", version=edgefleet_cloud.__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="run the fleet manager")
    _add_config(serve)
    serve.add_argument("--ready-file", type=Path, help="written once requests are answered")
    serve.set_defaults(run=_serve)
    openapi = commands.add_parser("openapi", help="print the API's description")
    openapi.set_defaults(run=_openapi)
    broker = commands.add_parser(
        "broker-config", help="print the configuration of a broker that stands alone"
    )
    command.add_arguments(broker)
    broker.set_defaults(run=_broker_config)
    return parser


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", type=Path, default=Path("cloud.toml"), help="default: ./cloud.toml"
    )


if __name__ == "__main__":
    sys.exit(main())
