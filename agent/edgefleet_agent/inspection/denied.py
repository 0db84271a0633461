"""What to do next where the system says no: who may, and how to become them."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

from edgefleet_agent.config import Config
from edgefleet_shared.errors import InvalidInputError, UnavailableError


def explain(error: OSError) -> UnavailableError:
    """Return the system's refusal with what to do next."""
    name = str(error.filename or "")
    why = error.strerror or str(error)
    if not isinstance(error, PermissionError) or not name:
        return UnavailableError(
            f"{name or 'The system'}: {why}.",
            code="system",
            hint="Check state_dir and run_dir, and who may write there.",
        )
    path = Path(name)
    if path.name.startswith("."):
        path = path.parent  # a temporary name says nothing to anybody
    return UnavailableError(f"{path}: {why}.", code="system", hint=f"{as_owner(path)}.")


def as_owner(path: Path) -> str:
    """Return how to do it as the user whose folder or file it is."""
    for one in (path, *path.absolute().parents):
        try:
            uid = one.stat().st_uid
        except OSError:
            continue
        owner = _user(uid)
        return f"It belongs to {owner}: run the command by `sudo -u {owner}`"
    return "Run the command as the agent's user"


def no_gateway(run: Path) -> str:
    """Return why the gateway cannot be asked, and what to do, as the end of a sentence."""
    path = run / "control.sock"
    if not path.exists():
        return "none runs; start the agent (`edgefleet-agent run`, or its systemd unit)"
    if not os.access(path, os.W_OK):
        return f"this user may not ask it. {as_owner(path)}"
    return "it does not answer; agentd starts it again, if it runs"


def check_device(config: Config) -> None:
    """Check that a device lives at the configured place.

    Raises:
        InvalidInputError: None does (code `not_enrolled`): mostly `--config` was left out.
    """
    if (config.state / "identity" / "enrollment.json").exists():
        return
    raise InvalidInputError(
        f"No device is enrolled with state_dir {config.state}.",
        code="not_enrolled",
        hint="Give the right --config FILE, or enrol by `edgefleet-agent enroll`.",
    )


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"#{uid}"
