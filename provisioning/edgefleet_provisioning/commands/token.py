"""`edgefleet token`: who may ask the fleet manager, as what and until when."""

from __future__ import annotations

from typing import Annotated

import typer

from edgefleet_provisioning.api import segment
from edgefleet_provisioning.commands.session import Session, connected, reading
from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.identifiers import check_name

app = typer.Typer(help="Give, list and take back API tokens.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(metavar="NAME", help="Who uses it, for example ci.")]


@app.command("create")
@connected
def create(
    session: Session,
    name: Name,
    role: Annotated[
        str, typer.Option(help="viewer, operator, publisher, provisioner or admin.")
    ] = "viewer",
    scope: Annotated[
        str | None, typer.Option(help="A filter, for example: labels.site == 'berlin'")
    ] = None,
    days: Annotated[int, typer.Option(min=1, max=366, help="Until it expires.")] = 90,
) -> None:
    """Make a token and print it: this once, for the server keeps only its hash."""
    if scope is not None and not scope.strip():  # a variable that was not set, perhaps
        raise InvalidInputError(
            "The scope is empty.",
            code="invalid_filter",
            hint="Leave --scope out if the whole fleet is meant.",
        )
    body = {"name": check_name(name, "token"), "role": role, "scope": scope or "", "days": days}
    made = session.api.post("/v1/tokens", body)
    within = f" within {made.get('scope')}" if made.get("scope") else ""
    session.output.note(f"{name}: {made.get('role')}{within} until {made.get('expires')}")
    session.output.result(made, str(made.get("token")))


@app.command("list")
@reading
def list_(session: Session) -> None:
    """List the tokens, revoked and expired ones too; never their text."""
    tokens = session.api.items("/v1/tokens")
    columns = ("name", "role", "scope", "expires", "used", "revoked")
    rows = [[token.get(column) for column in columns] for token in tokens]
    session.output.table(tokens, columns, rows)


@app.command("revoke")
@connected
def revoke(session: Session, name: Name) -> None:
    """Make a token invalid from now on."""
    found = session.api.request("DELETE", f"/v1/tokens/{segment(name)}").json()
    session.output.result(found, f"The token {name} is not valid any more.")


@reading
def whoami(session: Session) -> None:
    """Show whom the fleet manager takes you for, and what you hold."""
    found = session.api.get("/v1/whoami")
    held = [f"{each['role']} of {each['scope'] or 'the whole fleet'}" for each in found["roles"]]
    rows = [("actor", found.get("actor")), ("roles", "; ".join(held))]
    session.output.details(found, rows)
