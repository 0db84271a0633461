"""What commands share: the options that find the server, and a voice."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from edgefleet_provisioning.api import Api
from edgefleet_provisioning.output import Output
from edgefleet_provisioning.settings import connection

JSON_MARK = "edgefleet.json"


def _remember(context: typer.Context, value: bool) -> bool:  # typer calls it by position
    context.meta[JSON_MARK] = value
    return value


JsonOption = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON document for machines.", callback=_remember),
]
FleetOption = Annotated[
    Path | None,
    typer.Option("--fleet", help="Fleet folder. Also EDGEFLEET_FLEET.", show_default=False),
]
ServerOption = Annotated[
    str | None,
    typer.Option("--server", help="Fleet manager. Also EDGEFLEET_SERVER.", show_default=False),
]
TokenOption = Annotated[
    str | None,
    typer.Option("--token", help="API token. Also EDGEFLEET_TOKEN.", show_default=False),
]
PassphraseOption = Annotated[
    Path | None,
    typer.Option("--passphrase-file", help="File holding the passphrase.", show_default=False),
]


class Session(NamedTuple):
    """One command's connection, voice, and the fleet folder it was given, if any."""

    api: Api
    output: Output
    fleet: Path | None


def connected(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command, whose first parameter is a `Session`, the options that make one."""
    signature = inspect.signature(command, eval_str=True)
    own = list(signature.parameters.values())[1:]
    keyword = inspect.Parameter.KEYWORD_ONLY
    shared = [
        inspect.Parameter("server", keyword, default=None, annotation=ServerOption),
        inspect.Parameter("token", keyword, default=None, annotation=TokenOption),
        inspect.Parameter("fleet", keyword, default=None, annotation=FleetOption),
        inspect.Parameter("as_json", keyword, default=False, annotation=JsonOption),
    ]

    @functools.wraps(command)
    def run(
        *,
        server: str | None,
        token: str | None,
        fleet: Path | None,
        as_json: bool,
        **options: Any,
    ) -> None:
        with Api(connection(server, token, fleet)) as api:
            command(Session(api, Output(as_json=as_json), fleet), **options)

    parameters = [p.replace(kind=keyword) for p in own]
    run.__signature__ = signature.replace(  # type: ignore[attr-defined] # typer reads it
        parameters=[*parameters, *shared]
    )
    return run
