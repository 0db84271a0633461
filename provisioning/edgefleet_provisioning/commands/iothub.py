"""`edgefleet iothub`: the fleet's Azure IoT hubs."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from edgefleet_provisioning.api import segment
from edgefleet_provisioning.commands import completion
from edgefleet_provisioning.commands.session import Session, connected, reading

app = typer.Typer(help="Look after the fleet's Azure IoT hubs.", no_args_is_help=True)

Hub = Annotated[
    str,
    typer.Argument(
        metavar="HUB", help="The hub's name in cloud.toml.", autocompletion=completion.hubs
    ),
]
Device = Annotated[
    str, typer.Argument(metavar="ID", help="The device.", autocompletion=completion.devices)
]
POLL_S = 1.0
COLUMNS = (
    "hub", "tier", "connected", "devices", "updates/min", "used", "to tell", "behind", "unknown",
    "missing", "registry read",
)  # fmt: skip


@app.command("list")
@reading
def list_(session: Session) -> None:
    """List the hubs, each as the fleet manager sees it now."""
    found = session.api.items("/v1/iothubs")
    session.output.table(found, COLUMNS, [_row(hub) for hub in found])


@app.command("show")
@reading
def show(
    session: Session,
    hub: Hub,
    watch: Annotated[
        bool,
        typer.Option("--watch", help="Say each change, until nothing waits to be told or heard."),
    ] = False,
) -> None:
    """Show one hub: its limits, what waits, how far events are behind, what its registry holds."""
    path = f"/v1/iothubs/{segment(hub)}"
    found: dict[str, Any] = session.api.get(path)
    said = ""
    while watch and _waits(found):
        if (line := _progress(found)) != said:
            session.output.note(said := line)
        time.sleep(POLL_S)
        found = session.api.get(path)
    session.output.details(found, _details(found))


@app.command("admit")
@connected
def admit(
    session: Session,
    hub: Hub,
    device: Device,
) -> None:
    """Have a hub know a device that enrolled on MQTT or on another hub, so that it can move."""
    path = f"/v1/iothubs/{segment(hub)}/devices/{segment(device)}"
    found = session.api.request("PUT", path).json()
    session.output.result(
        found,
        f"{hub} will know {device}. Next, in its agent.toml, and restart agentd:\n"
        f'  [transport]\n  kind = "iothub"\n  url = "{found["url"]}"',
    )


@app.command("ping")
@connected
def ping(
    session: Session,
    hub: Hub,
    device: Device,
) -> None:
    """Ask a device through a hub whether it hears us now; one of another hub does not."""
    path = f"/v1/iothubs/{segment(hub)}/devices/{segment(device)}/ping"
    found = session.api.request("POST", path).json()
    session.output.result(
        found, f"{device} answers after {found['ms']} ms (agent {found['agent']})."
    )


def _waits(hub: dict[str, Any]) -> bool:
    return bool(hub["documents"]["pending"] or _behind(hub))


def _behind(hub: dict[str, Any]) -> int:
    return sum(partition["events"] for partition in hub["partitions"])


def _progress(hub: dict[str, Any]) -> str:
    documents, updates = hub["documents"], hub["twin_updates"]
    return (
        f"{documents['sent']} sent, {documents['pending']} pending; {updates['used_pct']} % of the "
        f"limit used, {updates['throttled']} throttled; {_behind(hub)} events behind"
    )


def _row(hub: dict[str, Any]) -> tuple[object, ...]:
    updates, registry = hub["twin_updates"], hub["registry"]
    return (
        hub["name"], f"{hub['tier']} x {hub['units']}", hub["connected"], hub["devices"],
        updates["last_minute"], f"{updates['used_pct']} %", hub["documents"]["pending"],
        _behind(hub), registry["unknown"]["count"], registry["missing"]["count"],
        registry["synced"],
    )  # fmt: skip


def _details(hub: dict[str, Any]) -> list[tuple[str, object]]:
    updates, documents, registry = hub["twin_updates"], hub["documents"], hub["registry"]
    due = ", due again" if registry["due"] else ""
    used = (
        f"{updates['last_minute']} in the last minute, {updates['used_pct']} % of "
        f"{updates['limit_per_s']:g} a second; {updates['throttled']} throttled"
    )
    read = (
        f"{registry['devices']} devices, read {registry['synced'] or 'never'}{due}; "
        f"{registry['repaired']} reports taken from twins"
    )
    pairs: list[tuple[str, object]] = [
        ("hub", f"{hub['name']} at {hub['host']}, {hub['tier']} x {hub['units']}"),
        ("connected", hub["connected"]),
        ("listening", hub["listening"]),
        ("devices", hub["devices"]),
        ("twin updates", used),
        ("documents", f"{documents['sent']} sent, {documents['pending']} pending"),
        ("registry", read),
    ]
    for what in ("unknown", "missing"):
        found = registry[what]
        more = ", ..." if found["count"] > len(found["first"]) else ""
        pairs.append((what, f"{found['count']} {', '.join(found['first'])}{more}".strip()))
    for lag in hub["partitions"]:
        here = "" if lag["here"] else ", read by another server"
        behind = f"{lag['events']} events, {lag['seconds']:g} s behind{here}"
        pairs.append((f"partition {lag['partition']}", behind))
    return pairs
