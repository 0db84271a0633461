"""Blobs to the server, resumably: the server says how much it has, the rest is sent."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from edgefleet_provisioning import problems
from edgefleet_provisioning.api import Api, segment
from edgefleet_provisioning.errors import NotFoundError, RefusedError, UnreachableError
from edgefleet_shared.errors import InvalidInputError

PART_BYTES = 4 * 2**20
ATTEMPTS = 6  # without any progress, before giving up
FIRST_PAUSE_S = 0.2

Progress = Callable[[int], None]
"""Called with the number of bytes that the server has."""


def upload(
    api: Api,
    digest: str,
    size: int,
    source: bytes | Path,
    progress: Progress,
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Bring one blob to the server.

    An upload that was interrupted, here or in an earlier run, goes on where the server stands: it
    is found again by its idempotency key, which is made of the digest.

    Args:
        api: The server.
        digest: The blob's digest.
        size: Its size in bytes.
        source: Its bytes, or the file that holds them.
        progress: Told after every part.
        pause: Waits some seconds between two attempts.

    Raises:
        UnreachableError: The server is away for longer than the retries last (about six seconds).
        RefusedError: The server refuses the blob.
        InvalidInputError: The file has changed since it was hashed.
    """
    state: dict[str, Any] = {}
    failures = 0
    with _open(source) as file:
        while True:
            try:
                state = _current(api, digest, size, state)
                progress(int(state["offset"]))
                if state["state"] == "complete":
                    return
                state, before = _send_part(api, state, file), int(state["offset"])
                if int(state["offset"]) > before:
                    failures = 0
            except UnreachableError:
                failures += 1
                if failures >= ATTEMPTS:
                    raise
                pause(FIRST_PAUSE_S * 2 ** (failures - 1))
                state = {**state, "stale": True}


def _current(api: Api, digest: str, size: int, state: dict[str, Any]) -> dict[str, Any]:
    """Return the upload as the server sees it; what a lost answer left open is asked again."""
    if state and not state.get("stale"):
        return state
    if state.get("id"):
        try:
            return _checked(api.get(f"/v1/uploads/{segment(state['id'])}"))
        except NotFoundError:
            pass  # it expired, or the server threw it away: begin again
    body = {"digest": digest, "size": size}
    key = hashlib.sha256(f"{digest} {size}".encode()).hexdigest()
    made = _checked(api.post("/v1/uploads", body, {"Idempotency-Key": key}))
    if made["state"] == "complete":
        return made
    try:
        # The answer may be a repetition of an earlier one, and its offset old.
        return _checked(api.get(f"/v1/uploads/{segment(made['id'])}"))
    except NotFoundError:
        return _checked(api.post("/v1/uploads", body))


def _send_part(api: Api, state: dict[str, Any], file: BinaryIO) -> dict[str, Any]:
    offset = int(state["offset"])
    file.seek(offset)
    part = file.read(PART_BYTES)
    if not part:
        raise InvalidInputError(
            "A file of the package became shorter while it was sent.",
            code="changed_file",
            hint="Leave the files alone and publish again.",
        )
    headers = {"Upload-Offset": str(offset), "Content-Type": "application/octet-stream"}
    path = f"/v1/uploads/{segment(state['id'])}"
    response = api.send("PATCH", path, content=part, headers=headers)
    if response.is_success:
        return _checked(response.json())
    if response.status_code == 409 and problems.offset_of(response.content) is not None:
        return {**state, "stale": True}
    raise problems.to_error(response.status_code, response.content, f"PATCH {path}")


def _checked(state: Any) -> dict[str, Any]:
    """Return a state that has what is needed of it."""
    try:
        complete = state["state"] == "complete"
        return {
            "id": str(state.get("id", "")),
            "state": str(state["state"]),
            "offset": int(state["size"] if complete else state["offset"]),
        }
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise RefusedError(
            "The server's answer about an upload makes no sense.", code="not_a_fleet_manager"
        ) from error


@contextmanager
def _open(source: bytes | Path) -> Iterator[BinaryIO]:
    if isinstance(source, bytes):
        yield BytesIO(source)
        return
    with source.open("rb") as file:
        yield file
