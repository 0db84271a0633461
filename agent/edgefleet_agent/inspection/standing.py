"""`edgefleet-agent status`: what runs here, how far it is, and what is not known."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from edgefleet_agent.config import Config
from edgefleet_agent.inspection.denied import no_gateway
from edgefleet_agent.inspection.output import say
from edgefleet_agent.status import read_lock, read_status


def run(config: Config, options: argparse.Namespace) -> int:
    """Print it; return 1 if agentd does not run.

    Raises:
        UnavailableError: No agent runs here (code `not_running`).
        InvalidInputError: Its file is damaged.
    """
    status = read_status(config.run) | read_lock(config.state)
    say(status, _lines(config, status), as_json=options.json)
    return 0 if status["running"] else 1


def _lines(config: Config, status: dict[str, Any]) -> Iterator[str]:
    runs = status["running"]
    link = "connected" if status["connected"] else "not connected"
    doors = status["inference"]
    yield (
        f"{status['device']} of fleet {status['fleet']}: agentd "
        f"{'runs' if runs else 'does NOT run'} (pid {status['pid']})"
    )
    if not runs:
        yield "  it ended without a word: start it again (`edgefleet-agent run`, or its unit);"
        yield "  what follows is what it said last, but for the gateway and its workers"
    way = f"; {status['transport']}: {status['transport_url']}" if status["transport"] else ""
    yield f"  {link}, assignment {status['counter']}, gateway {status['gateway']}{way}"
    yield (
        f"  infer at {doors['socket']}"
        + (f" and http://{doors['tcp']}" if doors["tcp"] else "")
        + (f" and grpc://{doors['grpc']}" if doors["grpc"] else "")
    )
    if status["locked"]:
        yield f"  {status['locked']}"
    if status["refused"]:
        yield f"  refused last: {status['refused']}"
    if status["floor_lost"]:
        yield "  the trust floors are lost: no change is accepted; enrol anew"
    for name, slot in status["slots"].items():
        active = slot["active_version"] or "nothing"
        line = f"  {name}: serves {active}; deployment of {slot['target_version']}: {slot['state']}"
        yield line + (f" ({slot['reason']})" if slot["reason"] else "")
    if status["workers"] is None:
        yield f"  workers are not known: the gateway cannot be asked, {no_gateway(config.run)}"
    for worker in status["workers"] or ():
        yield f"    worker {worker['pid']}: {worker['model']} {worker['version']} {worker['role']}"
