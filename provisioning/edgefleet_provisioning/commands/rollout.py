"""`edgefleet rollout`: bring a version to devices, watch it, stop it, undo it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from edgefleet_provisioning.api import segment
from edgefleet_provisioning.commands import arguments, completion
from edgefleet_provisioning.commands.rollout_watch import COLUMNS, follow, rows
from edgefleet_provisioning.commands.session import Session, connected, reading
from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.identifiers import check_version
from edgefleet_shared.messages import SwapWay

app = typer.Typer(help="Bring versions to devices.", no_args_is_help=True)
Known = Annotated[
    str, typer.Argument(metavar="ROLLOUT", help="Its id.", autocompletion=completion.rollouts)
]


@app.command("create")
@connected
def create(
    session: Session,
    model: Annotated[str, typer.Argument(autocompletion=completion.models)],
    version: Annotated[str, typer.Argument(autocompletion=completion.versions)],
    group: Annotated[
        str | None, typer.Option(help="Only this group.", autocompletion=completion.groups)
    ] = None,
    selector: Annotated[str | None, typer.Option(help="Only devices it fits.")] = None,
    device: Annotated[
        list[str] | None,
        typer.Option(help="Only this device; repeat it.", autocompletion=completion.devices),
    ] = None,
    canary: Annotated[
        list[str] | None,
        typer.Option(help="This device goes first; repeat it.", autocompletion=completion.devices),
    ] = None,
    wave: Annotated[
        list[str] | None,
        typer.Option(help="[NAME=]5, 10%, rest or ID,ID; repeat it, in order."),
    ] = None,
    probation_s: Annotated[
        int | None, typer.Option(min=0, help="Seconds of service until it counts as good.")
    ] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=NUMBER",
            help="A limit of probation, as max_latency_pct=1000; repeat it.",
        ),
    ] = None,
    swap: Annotated[
        SwapWay | None,
        typer.Option(help="What happens where memory has no room for two versions."),
    ] = None,
    max_failures: Annotated[
        int | None, typer.Option(min=0, help="Failed devices that a wave may have.")
    ] = None,
    bake_s: Annotated[
        int | None, typer.Option(min=0, help="Seconds to wait after each wave.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Follow it to its end.")] = False,
) -> None:
    """Roll a version out: all devices at once, or wave by wave, each behind a health gate."""
    body: dict[str, Any] = {"model": model, "version": check_version(version)}
    targets = {"group": group, "selector": selector, "devices": device or None}
    chosen = {key: value for key, value in targets.items() if value}
    if len(chosen) > 1:
        raise InvalidInputError(
            "--group, --selector and --device exclude each other.", code="usage"
        )
    gate = {"max_failures": max_failures, "bake_s": bake_s}
    options = {
        "waves": arguments.waves(canary or [], wave or []),
        "gate": {key: value for key, value in gate.items() if value is not None},
        "policy": arguments.policy(probation_s, policy or [], swap),
        "dry_run": dry_run,
    }
    body |= chosen | {key: value for key, value in options.items() if value}
    made = session.api.post("/v1/rollouts", body)
    if dry_run:
        session.output.table(
            made,
            ("wave", "devices", "which"),
            [(w["name"], len(w["devices"]), " ".join(w["devices"])) for w in made["waves"]],
        )
    elif watch:
        raise typer.Exit(follow(session, str(made["id"])))
    else:
        session.output.result(
            made, f"Rollout {made['id']} of {model} {version} is {made['state']}.\n"
            f"Next: edgefleet rollout watch {made['id']}",
        )  # fmt: skip


@app.command("list")
@reading
def list_(session: Session) -> None:
    """List rollouts, the newest last."""
    rollouts = session.api.items("/v1/rollouts")
    session.output.table(
        rollouts,
        ("id", "model", "version", "state", "devices", "created"),
        [
            (r["id"], r["model"], r["version"], r["state"], _counts(r), r.get("created"))
            for r in rollouts
        ],
    )


@app.command("show")
@reading
def show(session: Session, rollout: Known) -> None:
    """Show a rollout, its waves, and where each device stands."""
    path = f"/v1/rollouts/{segment(rollout)}"
    found = session.api.get(path)
    devices = session.api.items(f"{path}/device-deployments")
    if session.output.as_json:
        session.output.line({**found, "device_deployments": devices})
        return
    session.output.details(
        found, [(key, found.get(key)) for key in ("id", "model", "version", "state", "reason")]
    )
    session.output.table(found, COLUMNS, rows(found))
    columns = ("device", "wave", "state", "verdict", "reason", "detail")
    session.output.table(devices, columns, [tuple(d.get(c) for c in columns) for d in devices])


@app.command("watch")
@reading
def watch_(session: Session, rollout: Known) -> None:
    """Follow a rollout to its end; exit code 0 if it completed, 1 if not."""
    raise typer.Exit(follow(session, rollout))


@app.command("pause")
@connected
def pause(session: Session, rollout: Known) -> None:
    """Offer the version to no further device until resumed."""
    _act(session, rollout, "pause")


@app.command("resume")
@connected
def resume(session: Session, rollout: Known) -> None:
    """Go on with a paused rollout."""
    _act(session, rollout, "resume")


@app.command("stop")
@connected
def stop(session: Session, rollout: Known) -> None:
    """End a rollout; devices that have the version keep it."""
    _act(session, rollout, "stop")


@app.command("rollback")
@connected
def rollback(session: Session, rollout: Known) -> None:
    """Send every device of a rollout back to the version it had."""
    _act(session, rollout, "rollback")


def _act(session: Session, rollout: str, verb: str) -> None:
    found = session.api.post(f"/v1/rollouts/{segment(rollout)}/{verb}", {})
    session.output.result(found, f"Rollout {rollout} is {found['state']}.")


def _counts(rollout: dict[str, Any]) -> str:
    counts = rollout.get("counts") or {}
    return " ".join(f"{count} {state}" for state, count in counts.items() if count)
