"""The command table of `edgefleet`, and the one place where errors become exit codes."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from edgefleet_provisioning import output
from edgefleet_provisioning.commands import init, model
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
            output.report(error, as_json=bool(ctx.meta.get(JSON_MARK)))
            raise typer.Exit(exit_code(error)) from error


app = typer.Typer(
    cls=_Group,
    help="Publish models to a fleet of edge devices, and see them run.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("init")(init.init)
app.add_typer(model.app, name="model")
app.command("demo")(demo.demo)


def main() -> None:
    """Run the command line."""
    app(prog_name="edgefleet")
