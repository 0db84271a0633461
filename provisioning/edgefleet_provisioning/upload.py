"""Blobs to the server, resumably: the server says how much it has, the rest is sent."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import httpx

from edgefleet_provisioning import problems
from edgefleet_provisioning.api import Api, segment
from edgefleet_provisioning.errors import RefusedError, UnreachableError
from edgefleet_shared.errors import InvalidInputError

PART_BYTES = 4 * 2**20
ATTEMPTS = 6  # without any progress, before giving up
FIRST_PAUSE_S = 0.2
OUT_OF_STEP = frozenset({"wrong_offset", "upload_complete", "upload_busy"})
"""A part of ours whose connection broke has arrived after all, or is still arriving: ask again."""

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

    An upload that was interrupted, here or in an earlier run, goes on where the server stands: the
    server finds it again by digest and size.

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
    failures, best = 0, 0
    state: dict[str, Any] = {}
    with _open(source) as file:
        while True:
            try:
                state = state or _begin(api, digest, size)
                progress(int(state["offset"]))
                if state["state"] == "complete":
                    return
                if int(state["offset"]) > best:
                    failures, best = 0, int(state["offset"])
                state = _send_part(api, state, file)
            except UnreachableError:
                failures += 1
                if failures >= ATTEMPTS:
                    raise
                pause(FIRST_PAUSE_S * 2 ** (failures - 1))
                state = {}


def _begin(api: Api, digest: str, size: int) -> dict[str, Any]:
    """Return a new upload, or the open one of the same digest with what it has."""
    return _checked(api.post("/v1/uploads", {"digest": digest, "size": size}))


def _send_part(api: Api, state: dict[str, Any], file: BinaryIO) -> dict[str, Any]:
    """Send the next part; return the new state."""
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
    if not response.is_success:
        error = problems.to_error(response.status_code, response.content, f"PATCH {path}")
        if error.code in OUT_OF_STEP:
            raise UnreachableError(error.message, code=error.code, hint=error.hint)
        raise error
    after = _checked(_json(response))
    if int(after["offset"]) <= offset:
        raise _nonsense()
    return after


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
        raise _nonsense() from error


def _json(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError as error:
        raise _nonsense() from error


def _nonsense() -> RefusedError:
    return RefusedError(
        "The server's answer about an upload makes no sense.", code="not_a_fleet_manager"
    )


@contextmanager
def _open(source: bytes | Path) -> Iterator[BinaryIO]:
    if isinstance(source, bytes):
        yield BytesIO(source)
        return
    with source.open("rb") as file:
        yield file
