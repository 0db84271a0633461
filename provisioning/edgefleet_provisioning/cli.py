"""The command table of `edgefleet`, and the one place where errors become exit codes."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from edgefleet_provisioning import __version__, output
from edgefleet_provisioning.commands import (
    audit,
    device_groups,
    events,
    group,
    init,
    iothub,
    iothub_ca,
    iothub_dps,
    keys,
    login,
    model,
    rollout,
    token,
    trust,
)
from edgefleet_provisioning.commands.session import JSON_MARK
from edgefleet_provisioning.demo import command as demo
from edgefleet_provisioning.errors import exit_code
from edgefleet_shared.errors import EdgeFleetError


class _Group(TyperGroup):
    """Turns an error that was raised on purpose into one paragraph and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except EdgeFleetError as error:
            raise self._leave(ctx, error) from error
        except OSError as error:
            if isinstance(error, BrokenPipeError):
                raise
            what = f"{error.filename or 'The system'}: {error.strerror or error}."
            raise self._leave(ctx, EdgeFleetError(what, code="system")) from error

    @staticmethod
    def _leave(ctx: Any, error: EdgeFleetError) -> typer.Exit:
        output.report(error, as_json=bool(ctx.meta.get(JSON_MARK)))
        return typer.Exit(exit_code(error))


def _print_version(value: bool) -> None:  # typer calls it by position
    if value:
        typer.echo(f"edgefleet {__version__}")
        raise typer.Exit


app = typer.Typer(
    cls=_Group,
    help="Publish models to a fleet of edge devices, and see them run.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def _program(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None: ...


app.command("init")(init.init)
app.add_typer(keys.app, name="keys")
app.add_typer(trust.app, name="trust")
app.add_typer(model.app, name="model")
app.add_typer(device_groups.app, name="device")  # the same, with its commands for many at once
app.add_typer(group.app, name="group")
app.add_typer(rollout.app, name="rollout")
iothub.app.add_typer(iothub_dps.app, name="dps-group")
iothub.app.add_typer(iothub_ca.app, name="ca")
app.add_typer(iothub.app, name="iothub")
app.add_typer(token.app, name="token")
app.command("whoami")(token.whoami)
app.command("login")(login.login)
app.command("logout")(login.logout)
app.add_typer(audit.app, name="audit")
app.command("events")(events.events)
app.command("telemetry")(events.telemetry)
app.command("status")(events.status)
app.command("demo")(demo.demo)


def main() -> None:
    """Run the command line."""
    app(prog_name="edgefleet")
