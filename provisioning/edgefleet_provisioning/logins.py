"""Access tokens of logged-in people, by fleet manager: one private file in the home folder."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from edgefleet_provisioning.durable import PRIVATE, write_file

HOME = "XDG_CONFIG_HOME"


def path() -> Path:
    """Return where logins are kept."""
    return Path(os.environ.get(HOME) or Path.home() / ".config") / "edgefleet" / "logins.json"


def find(server: str) -> str:
    """Return the access token for a fleet manager; '' without one that still holds."""
    entry = _read().get(server, {})
    token, expires = entry.get("token"), entry.get("expires")
    holds = isinstance(expires, int) and expires > time.time()
    return token if holds and isinstance(token, str) else ""


def keep(server: str, token: str, life_s: int) -> None:
    """Keep an access token, which will hold for so many seconds.

    Raises:
        InvalidInputError: The file cannot be written.
    """
    entry: dict[str, Any] = {"token": token, "expires": int(time.time()) + life_s}
    _write({**_read(), server: entry})


def forget(server: str) -> bool:
    """Forget the access token for a fleet manager; return whether there was one.

    Raises:
        InvalidInputError: The file cannot be written.
    """
    known = _read()
    was = known.pop(server, None)
    if was is not None:
        _write(known)
    return was is not None


def _read() -> dict[str, dict[str, Any]]:
    try:
        found = json.loads(path().read_bytes())
    except (OSError, ValueError):  # none, or damaged: one more login mends it
        return {}
    entries = found.items() if isinstance(found, dict) else ()
    return {server: entry for server, entry in entries if isinstance(entry, dict)}


def _write(known: dict[str, dict[str, Any]]) -> None:
    path().parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_file(path(), json.dumps(known).encode(), PRIVATE)
