"""The fleet manager's refusals (RFC 9457) as errors that say what to do next. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from edgefleet_provisioning.errors import NotFoundError, RefusedError, UnreachableError
from edgefleet_shared.errors import EdgeFleetError, InvalidInputError

HINTS = {
    401: "Give an API token: --token, EDGEFLEET_TOKEN, or --fleet DIR with its client.toml.",
    403: "The token may not do this; use another one.",
    404: "Check the name; the `list` command of the same kind shows what there is.",
    412: "Somebody changed it meanwhile; look at it again and repeat.",
    413: "Send less.",
    429: "Wait a moment and repeat.",
    500: "The server's log has the details under the request id.",
}
COMMANDS: Mapping[str, str] = {
    r"GET /v1/models/([^/ ]+)/versions": r"`edgefleet model show \1`",
    r"GET /v1/models/([^/ ]+)": r"`edgefleet model show \1`",
    r"GET /v1/devices\?filter=\.\.\.": "`edgefleet device list --selector ...`",
    r"GET /v1/(device|group|model|rollout)s\b": r"`edgefleet \1 list`",
    r"POST /v1/devices/(\S+)/tickets": r"`edgefleet device ticket \1`",
    r"PUT /v1/groups/\{name\}": "`edgefleet group set`",
    r"PATCH it to change labels": "`edgefleet device label` changes its labels",
    r"/v1/openapi\.json describes every request": "`--help` says what each option takes",
}
"""What the server calls by its routes, as a person at this command line calls it."""

KINDS: Mapping[int, type[EdgeFleetError]] = {
    400: InvalidInputError,
    404: NotFoundError,
    413: InvalidInputError,
    415: InvalidInputError,
    422: InvalidInputError,
    429: UnreachableError,
    502: UnreachableError,
    503: UnreachableError,
    504: UnreachableError,
}


def to_error(status: int, body: bytes, what: str) -> EdgeFleetError:
    """Return the error for an answer that is not 2xx.

    Args:
        status: HTTP status.
        body: The answer's body, problem+json or anything else.
        what: What was asked, for example `GET /v1/models`.
    """
    problem = _problem(body)
    message = str(problem.get("detail") or problem.get("title") or "").strip()
    if not message:
        message = f"The server answered {what} with status {status}."
    fields = problem.get("errors")
    if isinstance(fields, list):
        texts = [
            f"{entry.get('field', '?')}: {entry.get('message', '')}"
            for entry in fields
            if isinstance(entry, dict)
        ]
        new = [text.rstrip(".") for text in texts if text.rstrip(".") not in message]
        message = " ".join([message, *(f"{text}." for text in new)])
    hint = _in_commands(str(problem.get("hint") or HINTS.get(status, "")))
    request = str(problem.get("request_id") or "")
    if status >= 500 and request and request not in f"{message} {hint}":
        hint = f"{hint} Request id: {request}.".strip()
    code = str(problem.get("code") or f"http_{status}")
    return KINDS.get(status, RefusedError)(message, code=code, hint=hint)


def _in_commands(hint: str) -> str:
    for route, command in COMMANDS.items():
        hint = re.sub(route, command, hint)
    return hint


def _problem(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
