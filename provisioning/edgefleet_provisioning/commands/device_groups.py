"""`edgefleet device`: many at once, by a list or by one ticket for a group."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgefleet_provisioning import device_csv
from edgefleet_provisioning.api import segment
from edgefleet_provisioning.commands import arguments, completion, device, ways
from edgefleet_provisioning.commands.device import (
    DEFAULT_HARDWARE,
    Hardware,
    Hours,
    Labels,
    TicketFile,
    check_output,
)
from edgefleet_provisioning.commands.session import Session, connected, reading
from edgefleet_provisioning.durable import PRIVATE, write_file
from edgefleet_provisioning.problems import to_error
from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.identifiers import check_name

app = device.app
KnownTicket = Annotated[
    str,
    typer.Argument(metavar="ID", help="The ticket.", autocompletion=completion.group_tickets),
]


@app.command("import")
@connected
def import_(
    session: Session,
    file: Annotated[Path, typer.Argument(help="CSV with the columns id, hardware, labels.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check only.")] = False,
    hardware: Hardware = DEFAULT_HARDWARE,
) -> None:
    """Register every device of a CSV file, all of them or none."""
    lines = device_csv.read(_text(file), hardware, arguments.labels)
    session.output.note(f"{file} names {len(lines)} devices; the fleet manager looks at them ...")
    body = {"devices": [line.body for line in lines], "dry_run": dry_run}
    answer = session.api.send("POST", "/v1/devices/import", json=body)
    if not answer.is_success:
        found = answer.json() if "json" in answer.headers.get("content-type", "") else {}
        if problems := found.get("problems"):
            raise device_csv.place(lines, problems)
        raise to_error(answer.status_code, answer.content, "POST /v1/devices/import")
    done = "could be registered; nothing was" if dry_run else "are registered"
    session.output.result(answer.json(), f"{len(lines)} devices {done}.")


@app.command("group-ticket")
@connected
def group_ticket(
    session: Session,
    prefix: Annotated[str, typer.Argument(help="What the ids of its devices begin with.")],
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="How many devices.")],
    label: Labels = None,
    hardware: Hardware = DEFAULT_HARDWARE,
    valid_hours: Hours = 24,
    output: TicketFile = None,
    iothub: ways.ByHub = None,
    hub: ways.HubName = "",
) -> None:
    """Make one ticket for up to LIMIT devices; each is bound to its own key on first use."""
    check_name(prefix, "group of devices")
    check_output(output)
    body = {
        "prefix": prefix, "limit": limit, "labels": arguments.labels(label or []),
        "hardware": hardware, "valid_hours": valid_hours, **ways.choose(session, iothub, hub),
    }  # fmt: skip
    made = session.api.post("/v1/group-tickets", body)
    if body.get("way", ways.MQTT) != ways.MQTT:
        session.output.note(ways.NEXT)
    if output is None:
        session.output.result(made, str(made["ticket"]))
        return
    write_file(output, f"{made['ticket']}\n".encode(), PRIVATE)
    told = {**{k: v for k, v in made.items() if k != "ticket"}, "file": str(output.resolve())}
    session.output.result(
        told,
        f"The ticket for up to {limit} devices {prefix}-... is in {output}, valid until "
        f"{made['not_after']}.\nNext, on each: edgefleet-agent enroll --config agent.toml "
        f"--ticket-file {output.name} [--device {prefix}-NAME]",
    )


@app.command("group-tickets")
@reading
def group_tickets(session: Session) -> None:
    """List the tickets for groups, and how often each was used."""
    items = session.api.get("/v1/group-tickets")["items"]
    rows = [
        (t["id"], t["prefix"], f"{t['used']}/{t['limit']}", t["not_after"], t["ended"] or "")
        for t in items
    ]
    session.output.table(items, ("id", "prefix", "used", "until", "ended"), rows)


@app.command("end-group-ticket")
@connected
def end_group_ticket(session: Session, ticket: KnownTicket) -> None:
    """End a ticket for a group: nobody enrols with it any more; those who have stay."""
    session.api.delete(f"/v1/group-tickets/{segment(ticket)}")
    session.output.result({"ticket": ticket}, f"Ticket {ticket} has ended.")


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")  # spreadsheets begin theirs with a mark
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InvalidInputError(
            f"{file} cannot be read: {why}.",
            code="not_readable",
            hint="Give a CSV file in UTF-8.",
        ) from error
