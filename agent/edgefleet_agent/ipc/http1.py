"""HTTP/1.1 as gateway and workers speak it: what is read from a head, and how answers look."""

from __future__ import annotations

from http import HTTPStatus

from edgefleet_agent.ipc.frames import NO_JSON

_REASONS = {status.value: status.phrase.encode() for status in HTTPStatus}
_JSON = b"application/json"
HEAD_MAX_BYTES = 64 * 1024

DEADLINE_KEY = b'"deadline_ms"'
"""In the JSON of a request that may have a deadline of its own."""


class Request:
    """One HTTP request, as far as it has come. Timeouts are nanoseconds, 0 = none given.

    `client` is whatever tells its client from others, b"" if it says nothing of that.
    `begun_ns` (CLOCK_MONOTONIC) is set where a worker had begun it before it died.
    """

    __slots__ = (
        "bad",
        "begun_ns",
        "body",
        "chunked",
        "client",
        "encoding",
        "expects_continue",
        "head_bytes", "headers_done",
        "json_length",
        "keep_alive",
        "length",
        "method",
        "refused",
        "target",
        "timeout_ns",
    )  # fmt: skip

    def __init__(self) -> None:
        self.method = b""
        self.target = b""
        self.body = b""
        self.length = -1
        self.json_length = NO_JSON
        self.timeout_ns = 0
        self.begun_ns = 0
        self.encoding = b""
        self.client = b""
        self.chunked = False
        self.expects_continue = False
        self.keep_alive = True
        self.headers_done = False
        self.head_bytes = 0
        self.bad = ""
        self.refused: tuple[int, str, str] | None = None

    def header(self, name: bytes, value: bytes) -> None:
        """Take one header; those without meaning here are skipped."""
        self.head_bytes += len(name) + len(value)
        if len(name) < 6:
            return
        name = name.lower()
        if name == b"content-length":
            self.length = self._number(name, value)
        elif name == b"inference-header-content-length":
            self.json_length = self._number(name, value)
        elif name == b"inference-timeout-ms":
            self.timeout_ns = self._number(name, value) * 1_000_000
        elif name == b"inference-client":
            self.client = value
        elif name == b"content-encoding":
            self.encoding = value.lower().strip()
        elif name == b"transfer-encoding":
            self.chunked = True
        elif name == b"expect":
            self.expects_continue = value.lower() == b"100-continue"

    def _number(self, name: bytes, value: bytes) -> int:
        if value.isdigit() and len(value) < 10:
            return int(value)
        self.bad = f"The header {name.decode('latin-1')} is not a number below 10^9."
        return 0

    def refusal(self, max_body: int) -> tuple[int, str, str] | None:
        """Return (status, text, code) if the request need not be read further."""
        if self.head_bytes + len(self.target) > HEAD_MAX_BYTES:
            return 431, "The request's head is too long.", "head_too_large"
        if self.bad:
            return 400, self.bad, "bad_request"
        if self.chunked:
            return 411, "Send a Content-Length; chunked bodies are refused.", "length_required"
        if self.length > max_body:
            text = f"The body has {self.length} bytes; {max_body} is the limit."
            return 413, text, "body_too_large"
        if self.encoding not in {b"", b"identity"}:
            return 415, "Send the body without Content-Encoding.", "unsupported_encoding"
        if self.method == b"POST" and self.length < 0:
            return 411, "Send a Content-Length.", "length_required"
        return None


def status_line(status: int, length: int, extra: bytes = b"", kind: bytes = _JSON) -> bytes:
    """Return the head of an answer."""
    return b"HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %d\r\n%s\r\n" % (
        status, _REASONS[status], kind, length, extra,
    )  # fmt: skip


def inference(body: bytes, json_length: int) -> bytes:
    """Return the answer to an inference that went well."""
    if json_length == NO_JSON:
        return (
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
            % len(body)
        ) + body
    extra = b"Inference-Header-Content-Length: %d\r\n" % json_length
    return status_line(200, len(body), extra, b"application/octet-stream") + body
