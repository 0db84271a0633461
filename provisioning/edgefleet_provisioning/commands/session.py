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
_KEYWORD = inspect.Parameter.KEYWORD_ONLY


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
ReasonOption = Annotated[str, typer.Option("--reason", help="Why, for the record.")]
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
    """Give a command, whose first parameter is a `Session`, the options that make one.

    One of them is `--reason`, which the events of everything that it changes take up; `reading`
    is for commands that change nothing.
    """
    return _connected(command, [_option("reason", "", ReasonOption)])


def reading(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command that changes nothing the options that make its `Session`."""
    return _connected(command, [])


def _option(name: str, default: object, annotation: object) -> inspect.Parameter:
    return inspect.Parameter(name, _KEYWORD, default=default, annotation=annotation)


def _connected(command: Callable[..., None], more: list[inspect.Parameter]) -> Callable[..., None]:
    signature = inspect.signature(command, eval_str=True)
    own = list(signature.parameters.values())[1:]
    shared = [
        *more,
        _option("server", None, ServerOption),
        _option("token", None, TokenOption),
        _option("fleet", None, FleetOption),
        _option("as_json", False, JsonOption),
    ]

    @functools.wraps(command)
    def run(
        *,
        server: str | None,
        token: str | None,
        fleet: Path | None,
        as_json: bool,
        reason: str = "",
        **options: Any,
    ) -> None:
        with Api(connection(server, token, fleet), reason) as api:
            command(Session(api, Output(as_json=as_json), fleet), **options)

    parameters = [p.replace(kind=_KEYWORD) for p in own]
    run.__signature__ = signature.replace(  # type: ignore[attr-defined] # typer reads it
        parameters=[*parameters, *shared]
    )
    return run
