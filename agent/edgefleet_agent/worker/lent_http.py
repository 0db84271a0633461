"""Inference requests on a lent connection: only what is plain is answered here.

Whatever is not exactly an inference of this worker's model, in the simplest form that HTTP has, is
the gateway's: it refuses, explains and waits better. A head is parsed by httptools once; clients
send the same one over and over, so the next time it is found by its bytes.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import httptools

from edgefleet_agent.ipc.control import ModelSpec
from edgefleet_agent.ipc.http1 import Request, inference, status_line
from edgefleet_agent.worker.answering import Answer

HEAD_MAX_BYTES: Final = 8 * 1024
_REMEMBERED: Final = 256
_REMEMBERED_BYTES: Final = 1024


class Plain(NamedTuple):
    """What matters of a head: lengths in bytes of itself and of the body, and the JSON length."""

    head: int
    body: int
    json_length: int


class Heads:
    """Reads heads of requests for one model."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        model = f"/v2/models/{spec.model}"
        paths = (f"{model}/infer", f"{model}/versions/{spec.version}/infer")
        self._targets = {path.encode() for path in paths}
        self._known: dict[bytes, Plain | None] = {}

    def read(self, head: bytes) -> Plain | None:
        """Return what matters of a head, blank line included; None = it is the gateway's."""
        try:
            return self._known[head]
        except KeyError:
            found = self._parse(head)
        if len(head) <= _REMEMBERED_BYTES:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[head] = found
        return found

    def _parse(self, head: bytes) -> Plain | None:
        reading = _Reading()
        parser = httptools.HttpRequestParser(reading)
        try:
            parser.feed_data(head)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            return None
        request = reading.request
        if (
            not reading.done
            or request.target not in self._targets
            or parser.get_method() != b"POST"
            or parser.get_http_version() != "1.1"
            or not parser.should_keep_alive()
            or request.refusal(2**31)
            or request.expects_continue
            or request.timeout_ns
            or not request.length
        ):
            return None
        return Plain(len(head), request.length, request.json_length)


class _Reading:
    """Takes a parser's calls."""

    def __init__(self) -> None:
        self.request = Request()
        self.done = False

    def on_url(self, url: bytes) -> None:
        """Take the target."""
        self.request.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header."""
        self.request.header(name, value)

    def on_headers_complete(self) -> None:
        """Note that the head is whole."""
        self.request.method = b"POST"
        self.done = True


def response(answer: Answer) -> bytes:
    """Return an answer as it goes over the wire; the gateway's look the same."""
    parts = answer.parts
    body = parts[0] if len(parts) == 1 else b"".join(parts)
    if answer.status == 200:
        return inference(body, answer.json_length)
    return status_line(answer.status, len(body)) + body
