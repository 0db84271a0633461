"""What the gateway tells of its models, by plain HTTP on the same socket."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

from edgefleet_agent.client.errors import GatewayGoneError, UnknownModelError

VARIABLE = "EDGEFLEET_INFER_SOCKET"
DEFAULT = "/run/edgefleet/infer.sock"
RETRIES = ("unsent", "always")


def socket_path(given: str | os.PathLike[str] | None) -> str:
    """Return where the gateway listens: as given, as the environment says, or the default."""
    return os.fspath(given or os.environ.get(VARIABLE) or DEFAULT)


def retry_of(given: str) -> str:
    """Return how a client repeats requests.

    Raises:
        ValueError: Neither `unsent` nor `always`.
    """
    if given not in RETRIES:
        raise ValueError(f"retry is {given!r}; it can be {' or '.join(map(repr, RETRIES))}")
    return given


def gone(path: str, error: OSError) -> GatewayGoneError:
    """Return the error for a socket at which nobody answers."""
    why = error.strerror or str(error)
    hint = "" if Path(path).exists() else f"Does the agent run? Else set {VARIABLE}."
    return GatewayGoneError(f"No gateway answers at {path}: {why}.", hint=hint)


def model_path(model: str, version: str = "") -> str:
    """Return the path of a model's document."""
    return f"/v2/models/{quote(model, safe='')}" + (
        f"/versions/{quote(version, safe='')}" if version else ""
    )


def ready_path(model: str, version: str) -> str:
    """Return the path that says whether the gateway, or a model, is ready."""
    return f"{model_path(model, version)}/ready" if model else "/v2/health/ready"


def get(path: str) -> bytes:
    """Return a request, after whose answer the connection ends."""
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()


def read(answer: bytes) -> tuple[int, Any]:
    """Return status and document of a whole answer.

    Raises:
        GatewayGoneError: It is cut off.
    """
    head, _, body = answer.partition(b"\r\n\r\n")
    try:
        return int(head[9:12]), json.loads(body)
    except ValueError as error:
        raise GatewayGoneError("The gateway went away before it answered.") from error


def document(answer: bytes) -> Any:
    """Return the document of a whole answer.

    Raises:
        UnknownModelError: There is no such model.
        GatewayGoneError: The answer is cut off.
    """
    status, found = read(answer)
    if status == 404:
        text, why = found["error"], found["code"]
        raise UnknownModelError(text, code=why)
    return found
