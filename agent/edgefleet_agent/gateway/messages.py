"""The gateway's own answers: errors and documents."""

from __future__ import annotations

import msgspec

from edgefleet_agent.ipc.http1 import HEAD_MAX_BYTES, Request, inference, status_line

__all__ = ["HEAD_MAX_BYTES", "Request", "document", "error", "inference", "status_line"]


def error(status: int, text: str, code: str, extra: bytes = b"") -> bytes:
    """Return an error in the protocol's form."""
    body = msgspec.json.encode({"error": text, "code": code})
    return status_line(status, len(body), extra) + body


def document(value: object, status: int = 200) -> bytes:
    """Return a JSON answer."""
    body = msgspec.json.encode(value)
    return status_line(status, len(body)) + body
