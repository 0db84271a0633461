"""`edgefleet-agent iotedge manifest`: print the deployment manifest of the agent as a module."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

from edgefleet_agent import __version__, iotedge
from edgefleet_agent.config import Config
from edgefleet_agent.inspection.output import say
from edgefleet_shared.errors import InvalidInputError

_PLACE = re.compile(r"/[^:]+|[A-Za-z0-9][A-Za-z0-9_.-]+")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")  # a twin's key, so no dots


def register(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("what", choices=["manifest"], help="the deployment manifest")
    parser.add_argument("--layered", action="store_true", help="as a layered deployment")
    parser.add_argument("--module", default="edgefleet", help="id of the module")
    parser.add_argument(
        "--image", default=f"edgefleet-agent:{__version__}", help="where to pull the agent from"
    )
    parser.add_argument("--gpu", action="store_true", help="give it the NVIDIA GPUs")
    parser.add_argument(
        "--device", action="append", default=[], metavar="/dev/NODE",
        help="give it a device node; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--group", action="append", default=[], metavar="GID",
        help="id of a group that may open them; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--socket-dir", default="edgefleet-run",
        help="volume or folder that other modules share for the inference socket",
    )  # fmt: skip
    parser.add_argument("--state", default="edgefleet-state", help="volume or folder for its state")
    parser.add_argument("--memory-mb", type=int, default=0, help="limit of memory; 0 = none")
    parser.add_argument("--ticket-file", type=Path, help="ticket with which new devices enrol")
    parser.add_argument("--telemetry-interval-s", type=float, help="written into its twin")
    parser.add_argument("--log-level", help="written into its twin")


def run(config: Config, options: argparse.Namespace) -> int:
    """Print it.

    Raises:
        InvalidInputError: An argument cannot be (code `usage`).
    """
    del config
    try:
        found = iotedge.manifest(_module(options), layered=options.layered)
    except ValueError as error:
        raise _bad(
            f"The manifest is too large for a twin: {error}", "Give fewer devices."
        ) from error
    say(found, [json.dumps(found, indent=2)], as_json=options.json)
    return 0


def _module(options: argparse.Namespace) -> iotedge.Module:
    if not _NAME.fullmatch(options.module):
        raise _bad(f"{options.module!r} cannot be a module's id", "Use letters, digits, - and _.")
    for path in options.device:
        if not path.startswith("/"):
            raise _bad(f"{path!r} is no device node", "Give its path, as /dev/dri/renderD128.")
    for place in (options.socket_dir, options.state):
        if not _PLACE.fullmatch(place):
            raise _bad(f"{place!r} is no place", "Give a volume's name or an absolute path.")
    for group in options.group:
        if not group.isdigit():
            raise _bad(f"{group!r} is no group's id", "Give it as a number: `stat -c %g NODE`.")
    if options.memory_mb < 0:
        raise _bad("A limit of memory is not negative", "0 means none.")
    named = {"telemetry_interval_s": options.telemetry_interval_s, "log_level": options.log_level}
    return iotedge.Module(
        options.module,
        options.image,
        options.gpu,
        tuple(options.device),
        tuple(options.group),
        options.socket_dir,
        options.state,
        options.memory_mb,
        ticket=_ticket(options.ticket_file),
        config={name: value for name, value in named.items() if value is not None},
    )


def _ticket(file: Path | None) -> str:
    try:
        return file.read_text().strip() if file else ""
    except (OSError, UnicodeDecodeError) as error:
        raise _bad(f"The ticket file {file} cannot be read", "Give one that is there.") from error


def _bad(message: str, hint: str) -> InvalidInputError:
    return InvalidInputError(f"{message}.", code="usage", hint=hint)
