"""`edgefleet device`: register, enrol, label, look at, remove."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from edgefleet_provisioning import stick
from edgefleet_provisioning.api import segment
from edgefleet_provisioning.commands import arguments, completion, ways
from edgefleet_provisioning.commands.session import Session, connected, reading
from edgefleet_provisioning.durable import PRIVATE, write_file
from edgefleet_provisioning.errors import RefusedError
from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.identifiers import check_device

app = typer.Typer(help="Register, enrol and look at devices.", no_args_is_help=True)

DEFAULT_HARDWARE = "generic-x86_64"
NewId = Annotated[str, typer.Argument(metavar="ID", help="The new device's id.")]
KnownId = Annotated[
    str, typer.Argument(metavar="ID", help="The device.", autocompletion=completion.devices)
]
Labels = Annotated[
    list[str] | None, typer.Option("--label", help="key=value; repeat it.", show_default=False)
]
Hardware = Annotated[str, typer.Option(help="What it is, as packages name it.")]
Hours = Annotated[
    int, typer.Option("--valid-hours", min=1, max=720, help="How long the ticket is valid.")
]
TicketFile = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="Write the ticket here (0600).", show_default=False),
]


@app.command("add")
@connected
def add(
    session: Session, device: NewId, label: Labels = None, hardware: Hardware = DEFAULT_HARDWARE
) -> None:
    """Register a device; it gets its identity by a ticket."""
    found = session.api.post("/v1/devices", _body(device, label, hardware))
    session.output.result(
        found, f"{device} is registered. Next: edgefleet device ticket {device} -o ticket.txt"
    )


@app.command("enroll")
@connected
def enroll(
    session: Session,
    device: NewId,
    label: Labels = None,
    hardware: Hardware = DEFAULT_HARDWARE,
    valid_hours: Hours = 24,
    output: TicketFile = None,
    iothub: ways.ByHub = None,
    hub: ways.HubName = "",
) -> None:
    """Register a device, if it is not, and make the ticket that enrols it."""
    body = _body(device, label, hardware)
    check_output(output)
    way = ways.choose(session, iothub, hub)
    try:
        session.api.post("/v1/devices", body)
    except RefusedError as error:
        if error.code not in {"device_exists", "already_exists"}:
            raise
        session.output.note(f"{device} is registered already; its labels stay as they are.")
    _ticket(session, device, {"valid_hours": valid_hours, **way}, output)


@app.command("ticket")
@connected
def ticket(
    session: Session,
    device: KnownId,
    valid_hours: Hours = 24,
    output: TicketFile = None,
    iothub: ways.ByHub = None,
    hub: ways.HubName = "",
) -> None:
    """Make a ticket: whoever holds it first becomes this device. It works once."""
    check_output(output)
    way = ways.choose(session, iothub, hub)
    _ticket(session, device, {"valid_hours": valid_hours, **way}, output)


@app.command("list")
@reading
def list_(
    session: Session,
    selector: Annotated[
        str | None,
        typer.Option(help="For example: labels.site == 'berlin' and online == true"),
    ] = None,
) -> None:
    """List devices and what they run."""
    devices = session.api.items("/v1/devices", filter=selector or "")
    rows = [
        (
            d["id"], _state(d), d["online"], d.get("way"), d["hardware"], _labels(d), _runs(d),
            d.get("last_seen"),
        )
        for d in devices
    ]  # fmt: skip
    columns = ("id", "state", "online", "way", "hardware", "labels", "runs", "last seen")
    session.output.table(devices, columns, rows)


@app.command("show")
@reading
def show(session: Session, device: KnownId) -> None:
    """Show a device: what it should run beside what it runs."""
    path = f"/v1/devices/{segment(device)}"
    found = session.api.get(path)
    state = session.api.get(f"{path}/state")
    pairs: list[tuple[str, object]] = [
        (key, found.get(key))
        for key in ("id", "state", "online", "way", "hardware", "key", "last_seen")
    ]
    given = session.api.get(f"{path}/certificates")["items"]
    until = next((c["not_after"] for c in given if not c["revoked"]), None)
    pairs += [
        ("certificate until", until),
        ("labels", _labels(found)),
        ("in sync", state.get("in_sync")),
        ("locked", _lock(found)),
    ]
    for name, slot in (found.get("slots") or {}).items():
        reason = f" ({slot['reason']}: {slot['detail']})" if slot.get("reason") else ""
        pairs.append((f"runs {name}", f"{slot.get('active_version')} {slot.get('state')}{reason}"))
    session.output.details({**found, "desired_reported": state, "certificates": given}, pairs)


@app.command("label")
@connected
def label_(
    session: Session,
    device: KnownId,
    changes: Annotated[list[str], typer.Argument(help="key=value sets, key- removes.")],
) -> None:
    """Set or remove labels."""
    body = {"labels": arguments.label_changes(changes)}
    found = session.api.change("PATCH", f"/v1/devices/{segment(device)}", body)
    session.output.result(found, f"{device}: {_labels(found) or 'no labels'}")


@app.command("export-bundle")
@reading
def export_bundle(
    session: Session,
    device: KnownId,
    folder: Annotated[Path, typer.Argument(help="Where to, for example a mounted USB stick.")],
    create: Annotated[
        bool, typer.Option("--create", help="Make the folder if it is not there.")
    ] = False,
) -> None:
    """Write what a device should run, and all it needs for that, into a folder."""
    stick.check_target(folder, create=create)
    found = stick.export(session.api, device, folder)
    runs = ", ".join(f"{name} {version}" for name, version in found.versions.items()) or "nothing"
    where = folder.resolve()
    session.output.result(
        {"device": device, "folder": str(where), **found._asdict()},
        f"Assignment {found.counter} for {device} ({runs}) is in {where}: {found.blobs} blobs, "
        f"{found.bytes / 1e6:.1f} MB ({found.bytes:,} bytes), whole and on the medium.\n"
        f"Next: unmount it; the device takes it until {found.until}. There, with the folder as it "
        "is mounted there:\n  edgefleet-agent import-bundle FOLDER",
    )


@app.command("history")
@reading
def history(
    session: Session,
    device: KnownId,
    slot: Annotated[str, typer.Option(help="Only this model.")] = "",
    at: Annotated[str | None, typer.Option(help="Only what ran then (RFC 3339, UTC).")] = None,
) -> None:
    """Show which version a device ran when, by its own receipts."""
    path = f"/v1/devices/{segment(device)}/history"
    items = session.api.items(path, slot=slot, at=arguments.moment(at))
    columns = ("slot", "version", "kind", "from", "to", "digest")
    session.output.table(items, columns, [tuple(i.get(c) for c in columns) for i in items])


@app.command("renew")
@connected
def renew(session: Session, device: KnownId) -> None:
    """Ask a device to renew its key and certificate, now or when it connects next."""
    found = session.api.post(f"/v1/devices/{segment(device)}/renew", {})
    when = "now" if found["online"] else "when it connects next"
    session.output.result(found, f"{device} is asked to renew {when}.")


@app.command("revoke")
@connected
def revoke(
    session: Session,
    device: KnownId,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Take a device's key and certificates back and end its connection; a ticket readmits it."""
    if session.output.interactive and not yes:
        typer.confirm(f"Revoke {device}?", abort=True)
    found = session.api.post(f"/v1/devices/{segment(device)}/revoke", {})
    session.output.result(
        found,
        f"{device} is revoked: nothing that it says counts. "
        f"To readmit it: edgefleet device ticket {device}",
    )


@app.command("decommission")
@app.command("rm")
@connected
def remove(
    session: Session,
    device: KnownId,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Decommission a device; it stops being one of the fleet."""
    if session.output.interactive and not yes:
        typer.confirm(f"Decommission {device}?", abort=True)
    session.api.delete(f"/v1/devices/{segment(device)}")
    session.output.result({"device": device}, f"{device} is decommissioned.")


def _body(device: str, label: list[str] | None, hardware: str) -> dict[str, Any]:
    check_device(device)
    return {"id": device, "labels": arguments.labels(label or []), "hardware": hardware}


def check_output(output: Path | None) -> None:
    """Refuse a file that cannot be written before anything is made that it should hold.

    Raises:
        InvalidInputError: Its folder is not there, or not ours to write to (`not_writable`).
    """
    if output and not (output.parent.is_dir() and os.access(output.parent, os.W_OK)):
        raise InvalidInputError(
            f"The folder {output.parent} does not exist, or may not be written to.",
            code="not_writable",
            hint="Give another --output; nothing was made.",
        )


def _ticket(session: Session, device: str, body: dict[str, int | str], output: Path | None) -> None:
    made = session.api.post(f"/v1/devices/{segment(device)}/tickets", body)
    if body.get("way", ways.MQTT) != ways.MQTT:
        session.output.note(ways.NEXT)
    if output is None:
        session.output.result({"device": device, **made}, str(made["ticket"]))
        return
    write_file(output, f"{made['ticket']}\n".encode(), PRIVATE)
    session.output.result(
        {"device": device, "file": str(output.resolve()), "not_after": made["not_after"]},
        f"The ticket for {device} is in {output}, valid until {made['not_after']}, once.\n"
        f"Next, on the device: edgefleet-agent enroll --config agent.toml "
        f"--ticket-file {output.name}",
    )


def _state(device: dict[str, Any]) -> str:
    return f"{device['state']}, locked" if device.get("locked") else str(device["state"])


def _lock(device: dict[str, Any]) -> str:
    """Return who locked the device's models, since and until when and why; '' if nobody did."""
    lock = device.get("locked")
    if not lock:
        return ""
    parts = [("by", lock["by"]), ("since", lock["since"]), ("until", lock["until"] or "unlocked")]
    said = " ".join(f"{word} {value}" for word, value in parts if value)
    return f"{said}: {lock['reason'] or 'no reason was given'}"


def _labels(device: dict[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in sorted(device["labels"].items()))


def _runs(device: dict[str, Any]) -> str:
    slots = device.get("slots") or {}
    return " ".join(f"{name} {slot.get('active_version') or '-'}" for name, slot in slots.items())
