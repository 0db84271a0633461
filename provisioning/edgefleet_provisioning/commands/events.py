"""`edgefleet events`, `telemetry` and `status`: what happens in the fleet."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from typing import Annotated, Any
from urllib.parse import urlencode

import typer

from edgefleet_provisioning.commands import arguments, completion
from edgefleet_provisioning.commands.session import Session, reading
from edgefleet_provisioning.errors import UnreachableError
from edgefleet_shared.states import RolloutState

PATIENCE_S = 60.0
ACTIVE = {RolloutState.RUNNING, RolloutState.PAUSED, RolloutState.ROLLING_BACK}


@reading
def events(
    session: Session,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as they happen.")] = False,
    query: Annotated[str, typer.Option("--filter", help="For example: step == 'prove'")] = "",
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many of the past.")] = 50,
) -> None:
    """Show the newest events, one JSON document a line with --json."""
    past = session.api.items("/v1/events", limit, filter=query, order_by="id desc")
    last = "0"
    for event in reversed(past):
        last = str(event["id"])
        _show(session, event)
    if follow:
        for event in _follow(session, query, last):
            _show(session, event)


@reading
def telemetry(
    session: Session,
    slot: Annotated[
        str, typer.Option(help="Only this model.", autocompletion=completion.models)
    ] = "",
    version: Annotated[str, typer.Option(help="Only this version.")] = "",
    device: Annotated[
        str, typer.Option(help="Only this device.", autocompletion=completion.devices)
    ] = "",
    since: Annotated[str | None, typer.Option("--from", help="From when (RFC 3339).")] = None,
    until: Annotated[str | None, typer.Option("--to", help="To when (RFC 3339).")] = None,
) -> None:
    """Show what each version answered, as the devices measured it."""
    query = {
        "slot": slot, "version": version, "device": device,
        "from": arguments.moment(since), "to": arguments.moment(until),
    }  # fmt: skip
    found = session.api.get("/v1/telemetry", **{k: v for k, v in query.items() if v})
    columns = (
        "slot", "version", "devices", "requests", "server_errors", "nonfinite", "crashes",
        "p50_us", "p99_us",
    )  # fmt: skip
    rows = [tuple(_count(item.get(column)) for column in columns) for item in found["items"]]
    session.output.table(found, [column.replace("_", " ") for column in columns], rows)
    for gap in found.get("gaps") or ():
        session.output.note(f"{gap['device']} lost {gap['missing']} items of {gap['stream']}.")


@reading
def status(session: Session) -> None:
    """Show the fleet at a glance."""
    devices = session.api.items("/v1/devices")
    models = [str(model["name"]) for model in session.api.items("/v1/models")]
    rollouts = [r for r in session.api.items("/v1/rollouts") if r["state"] in ACTIVE]
    runs = Counter(
        f"{name} {slot['active_version']}"
        for device in devices
        for name, slot in (device.get("slots") or {}).items()
        if slot.get("active_version")
    )
    locked = sorted(str(device["id"]) for device in devices if device.get("locked"))
    document = {
        "server": session.api.server,
        "devices": len(devices),
        "online": sum(bool(device["online"]) for device in devices),
        "states": dict(Counter(device["state"] for device in devices)),
        "locked": locked,
        "models": models,
        "running": dict(runs),
        "rollouts": rollouts,
    }
    pairs: list[tuple[str, object]] = [
        ("server", session.api.server),
        ("devices", f"{document['online']} of {len(devices)} online"),
        *([("locked", ", ".join(locked))] if locked else []),
        ("models", ", ".join(models)),
        *(
            (f"runs {what}", f"{count} of {len(devices)} devices")
            for what, count in sorted(runs.items())
        ),
        *((f"rollout {r['id']}", f"{r['model']} {r['version']} {r['state']}") for r in rollouts),
    ]
    session.output.details(document, pairs)


def _follow(session: Session, query: str, last: str) -> Iterator[dict[str, Any]]:
    """Yield events as they happen, across restarts of the server."""
    path = "/v1/events"
    if query:
        path += "?" + urlencode({"filter": query})
    heard = time.monotonic()
    while True:
        try:
            for event in session.api.events(path, last):
                last, heard = event.id or last, time.monotonic()
                yield event.data
        except UnreachableError:
            if time.monotonic() - heard > PATIENCE_S:
                raise
        time.sleep(0.5)


def _show(session: Session, event: dict[str, Any]) -> None:
    if session.output.as_json:
        session.output.line(event)
        return
    text = f"{event['ts']}  {event.get('step') or '-':<9} {event['subject']:<16} {event['message']}"
    session.output.result(event, text)


def _count(value: Any) -> Any:
    return len(value) if isinstance(value, list) else value
