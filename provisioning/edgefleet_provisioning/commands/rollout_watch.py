"""A rollout as it happens: drawn again and again on a terminal, a line a change elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from rich.live import Live
from rich.markup import escape
from rich.table import Table

from edgefleet_provisioning.api import segment
from edgefleet_provisioning.commands.session import Session
from edgefleet_provisioning.errors import UnreachableError
from edgefleet_provisioning.output import clean
from edgefleet_shared.states import RolloutState

POLL_S = 0.4
PATIENCE_S = 60.0  # a fleet manager that restarts does not end the watching
GOOD = RolloutState.COMPLETED
ENDED = frozenset({
    GOOD, RolloutState.PAUSED, RolloutState.STOPPED, RolloutState.ROLLED_BACK,
    RolloutState.SUPERSEDED,
})  # fmt: skip
"""Nothing moves on from here without a person."""

COLUMNS = ("wave", "state", "devices", "where they stand", "reason")


def rows(rollout: dict[str, Any]) -> list[tuple[object, ...]]:
    """Return one row a wave."""
    return [
        (
            wave.get("name"),
            wave.get("state"),
            len(wave.get("devices") or ()),
            " ".join(f"{count} {state}" for state, count in (wave.get("counts") or {}).items()),
            wave.get("reason"),
        )
        for wave in rollout.get("waves") or ()
    ]


def follow(session: Session, rollout: str) -> int:
    """Show a rollout until it ends; return the exit code.

    Raises:
        UnreachableError: The server was away for a minute.
    """
    last: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        live = None
        if session.output.notes.is_terminal and not session.output.as_json:
            live = stack.enter_context(Live(console=session.output.notes, refresh_per_second=8))
        for last in _states(session, f"/v1/rollouts/{segment(rollout)}"):
            if live:
                live.update(_draw(last))
            elif not session.output.as_json:
                session.output.note(_line(last))
    good = last["state"] == GOOD
    reason = f": {last['reason'].removesuffix('.')}" if last.get("reason") else ""
    what = f"Rollout of {last['model']} {last['version']} is {last['state']}{reason}"
    session.output.result(last, f"{what}.")
    return 0 if good else 1


def _states(session: Session, path: str) -> Iterator[dict[str, Any]]:
    """Yield a rollout whenever it changed, to the end."""
    before: dict[str, Any] | None = None
    heard = time.monotonic()
    while True:
        try:
            now = session.api.get(path)
            heard = time.monotonic()
        except UnreachableError:
            if before is None or time.monotonic() - heard > PATIENCE_S:
                raise
        else:
            if now != before:
                before = now
                yield now
            if now["state"] in ENDED:
                return
        time.sleep(POLL_S)


def _draw(rollout: dict[str, Any]) -> Table:
    title = f"{rollout['model']} {rollout['version']}: {rollout['state']}"
    table = Table(*COLUMNS, title=escape(clean(title)), box=None, header_style="bold")
    for row in rows(rollout):
        table.add_row(*(escape(clean(cell)) for cell in row))
    return table


def _line(rollout: dict[str, Any]) -> str:
    waves = "; ".join(
        f"{name} {state}" + (f" ({stand})" if stand else "") + (f", {why}" if why else "")
        for name, state, _, stand, why in rows(rollout)
    )
    return f"{rollout['model']} {rollout['version']} {rollout['state']}: {waves}"
