"""`edgefleet group`: names for selectors over devices."""

from __future__ import annotations

from typing import Annotated

import typer

from edgefleet_provisioning.api import segment
from edgefleet_provisioning.commands import completion
from edgefleet_provisioning.commands.session import Session, connected, reading
from edgefleet_shared.identifiers import check_name

app = typer.Typer(help="Name selections of devices.", no_args_is_help=True)
Known = Annotated[
    str, typer.Argument(metavar="GROUP", help="The group.", autocompletion=completion.groups)
]


@app.command("create")
@connected
def create(
    session: Session,
    group: Annotated[str, typer.Argument(metavar="GROUP", help="The new group's name.")],
    selector: Annotated[str, typer.Argument(help="For example: labels.site == 'berlin'")],
) -> None:
    """Name a selector; devices belong to the group as long as it fits them."""
    body = {"name": check_name(group, "group"), "selector": selector}
    found = session.api.post("/v1/groups", body)
    session.output.result(found, f"{group} selects {found.get('selector')}")


@app.command("set")
@connected
def set_(
    session: Session,
    group: Known,
    selector: Annotated[str, typer.Argument(help="For example: labels.site == 'berlin'")],
) -> None:
    """Give a group another selector; rollouts that began keep their devices."""
    path = f"/v1/groups/{segment(group)}"
    found = session.api.change("PUT", path, {"selector": selector})
    session.output.result(found, f"{group} selects {found.get('selector')}")


@app.command("list")
@reading
def list_(session: Session) -> None:
    """List the groups."""
    groups = session.api.items("/v1/groups")
    rows = [(group.get("name"), group.get("selector")) for group in groups]
    session.output.table(groups, ("name", "selector"), rows)


@app.command("show")
@reading
def show(session: Session, group: Known) -> None:
    """Show a group and the devices in it now."""
    path = f"/v1/groups/{segment(group)}"
    found = session.api.get(path)
    devices = [str(device["id"]) for device in session.api.items(f"{path}/devices")]
    session.output.details(
        {**found, "devices": devices},
        [("name", found.get("name")), ("selector", found.get("selector")),
         ("devices", f"{len(devices)}: {', '.join(devices)}" if devices else "none")],
    )  # fmt: skip


@app.command("rm")
@connected
def remove(session: Session, group: Known) -> None:
    """Forget a group; its devices are untouched."""
    session.api.delete(f"/v1/groups/{segment(group)}")
    session.output.result({"group": group}, f"The group {group} is gone.")
