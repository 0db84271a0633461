"""An HTTP server of blobs that misbehaves on request."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class BlobServer:
    """`GET /v1/blobs/<digest>` with Range, and with faults on request.

    Attributes:
        flip: Digests of which one bit is flipped.
        cut: Digest to how many bytes are sent before the connection ends.
        hold_at: Stop sending after so many bytes until `go` is set; None: never.
        extra: Bytes sent after the end of every blob.
        drip: Send one byte at a time, this many seconds apart; 0: all at once.
        desired: What `GET /v1/devices/<id>/desired` answers; None: nothing is assigned.
        ranges: The Range header of every request, '' where there was none.
    """

    def __init__(self, blobs: dict[str, bytes]) -> None:
        self.blobs = blobs
        self.flip: set[str] = set()
        self.cut: dict[str, int] = {}
        self.hold_at: int | None = None
        self.go = threading.Event()
        self.extra = b""
        self.drip = 0.0
        self.ignore_range = False
        self.ranges: list[str] = []
        self.authorizations: list[str] = []
        self.desired: bytes | None = None
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                server.answer(self)

            def log_message(self, *_: object) -> None:
                """Keep quiet."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1/blobs"
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer one request."""
        if handler.path.endswith("/desired"):
            self._answer_desired(handler)
            return
        digest = handler.path.rsplit("/", 1)[-1]
        asked = handler.headers.get("Range", "")
        self.ranges.append(asked)
        self.authorizations.append(handler.headers.get("Authorization", ""))
        data = self.blobs.get(digest)
        if data is None:
            handler.send_error(404)
            return
        if digest in self.flip:
            data = bytes([data[0] ^ 1]) + data[1:]
        start = 0
        if asked and not self.ignore_range:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            handler.send_response(200)
        body = data[start:] + self.extra
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        self._body(handler, digest, body)

    def _answer_desired(self, handler: BaseHTTPRequestHandler) -> None:
        self.authorizations.append(handler.headers.get("Authorization", ""))
        body = b'{"code":"not_assigned"}' if self.desired is None else self.desired
        handler.send_response(404 if self.desired is None else 200)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    def _body(self, handler: BaseHTTPRequestHandler, digest: str, body: bytes) -> None:
        cut = self.cut.get(digest)
        try:
            if self.drip:
                for index in range(len(body)):
                    handler.wfile.write(body[index : index + 1])
                    handler.wfile.flush()
                    if self.go.wait(self.drip):
                        return
            if self.hold_at is not None and len(body) > self.hold_at:
                handler.wfile.write(body[: self.hold_at])
                handler.wfile.flush()
                self.go.wait(60)
                body = body[self.hold_at :]
            handler.wfile.write(body if cut is None else body[:cut])
        except OSError:
            pass  # the agent has hung up
        if cut is not None:
            handler.close_connection = True

    def close(self) -> None:
        """End."""
        self.go.set()
        self._http.shutdown()
        self._http.server_close()
