"""`edgefleet-agent lock` and `unlock`: whoever stands beside the device says when models change."""

from __future__ import annotations

import argparse
import contextlib
import getpass
import os
import re
import signal
from datetime import timedelta

import msgspec

from edgefleet_agent import durable
from edgefleet_agent.config import Config
from edgefleet_agent.inspection.output import say
from edgefleet_agent.status import read_status
from edgefleet_agent.swap_lock import SwapLock
from edgefleet_shared.errors import EdgeFleetError, InvalidInputError

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_LONGEST_S = 366 * 86400


def register(parser: argparse.ArgumentParser) -> None:
    """Add what `lock` takes."""
    parser.add_argument("--reason", default="", help="why; the fleet manager shows it")
    parser.add_argument(
        "--for", dest="life", default="", metavar="TIME", help="ends by itself: 30s, 15m, 8h, 2d"
    )


def run_lock(config: Config, options: argparse.Namespace) -> int:
    """Lock.

    Raises:
        InvalidInputError: The time cannot be read, or is over a year.
    """
    life = parse_duration(options.life) if options.life else None
    lock = SwapLock(durable.make_folder(config.state)).place(options.reason, life, _who())
    told = _tell(config)
    then = "" if told else " agentd does not run; it heeds it when it does."
    lines = [f"{lock}{then}", "`edgefleet-agent unlock` lifts it."]
    say({**msgspec.to_builtins(lock), "agentd": told}, lines, as_json=options.json)
    return 0


def _who() -> str:
    """Return who types, for people to ask: the user before `sudo`, else the user."""
    with contextlib.suppress(OSError, KeyError):  # a user id without a name
        return os.environ.get("SUDO_USER") or getpass.getuser()
    return f"uid {os.getuid()}"


def run_unlock(config: Config, options: argparse.Namespace) -> int:
    """Unlock; that nothing was locked is no error."""
    was = SwapLock(durable.make_folder(config.state)).lift()
    told = _tell(config)
    when = "now" if told else "when agentd runs again"
    text = f"Unlocked: what waits swaps {when}." if was else "Nothing was locked."
    say({"was_locked": was, "agentd": told}, [text], as_json=options.json)
    return 0


def parse_duration(text: str) -> timedelta:
    """Return a time like `30s`, `15m`, `8h` or `2d`.

    Raises:
        InvalidInputError: Not such a time, or not between a second and a year.
    """
    match = re.fullmatch(r"([0-9]{1,9})([smhd])", text.strip())
    seconds = int(match[1]) * _UNITS[match[2]] if match else 0
    if not 1 <= seconds <= _LONGEST_S:
        raise InvalidInputError(
            f"{text!r} is no time to lock for.",
            code="duration",
            hint="Give a number and a unit: 30s, 15m, 8h or 2d, at most a year.",
        )
    return timedelta(seconds=seconds)


def _tell(config: Config) -> bool:
    """Have a running agentd look at once; return whether one runs."""
    with contextlib.suppress(EdgeFleetError, OSError):
        status = read_status(config.run)
        if status["running"]:
            os.kill(status["pid"], signal.SIGUSR2)
            return True
    return False
