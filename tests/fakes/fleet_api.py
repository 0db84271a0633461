"""A fleet manager's API over real HTTP, as far as a publisher needs it; it can cut the line.

Resumable uploads, blobs, trust metadata and model versions work; every other resource answers what
a test puts into `answers`.
"""

from __future__ import annotations

import base64
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self
from urllib.parse import unquote, urlsplit

from edgefleet_shared.identifiers import new_id, sha256_digest
from tests.fakes.fleet_repository import FleetRepository


class FleetApi:
    """A context manager; `url` is where it listens.

    Attributes:
        answers: (method, path) to (status, document), for resources that are not played.
        asked: Every request: (method, path with query, decoded body or bytes).
        reasons: The header `Edgefleet-Reason` of every request, '' where there was none.
        cuts: Offsets at which an upload's connection is cut once, the bytes before it kept.
    """

    def __init__(self, online: Path) -> None:
        self.online = online
        self.repository = FleetRepository(online)
        self.token = (online / "admin.token").read_text().strip()
        self.blobs: dict[str, bytes] = {}
        self.uploads: dict[str, dict] = {}
        self.versions: dict[tuple[str, str], dict] = {}
        self.answers: dict[tuple[str, str], tuple[int, object]] = {}
        self.asked: list[tuple[str, str, object]] = []
        self.reasons: list[str] = []
        self.cuts: list[int] = []
        self.lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"fleet": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _RefusedError(Exception):
    def __init__(self, status: int, code: str, detail: str, **more: object) -> None:
        super().__init__(detail)
        self.status = status
        self.body = {"title": code, "status": status, "code": code, "detail": detail, **more}


class _Handler(BaseHTTPRequestHandler):
    """Routes requests to the methods below by their patterns."""

    fleet: FleetApi
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._serve()

    do_POST = do_PATCH = do_PUT = do_DELETE = do_GET  # noqa: N815 - http.server's names

    def log_message(self, *_: object) -> None:
        """Stay silent."""

    def _serve(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.fleet.reasons.append(self.headers.get("Edgefleet-Reason", ""))
        length = int(self.headers.get("Content-Length", 0))
        try:
            self._check_token()
            body = self._body(path, length)
            with self.fleet.lock:
                self.fleet.asked.append((self.command, self.path, body))
                status, answer = self._route(path, body)
        except _RefusedError as refused:
            status, answer = refused.status, refused.body
        except ConnectionAbortedError:
            self.close_connection = True
            return
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        kind = "application/problem+json" if status >= 400 else "application/json"
        self.send_header("Content-Type", kind)
        self.send_header("ETag", f'"{sha256_digest(data)}"')
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _check_token(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {self.fleet.token}":
            raise _RefusedError(401, "unauthorized", "The token is not known.")

    def _body(self, path: str, length: int):
        if self.command == "PATCH" and path.startswith("/v1/uploads/"):
            return self._part(path.rsplit("/", 1)[-1], length)
        data = self.rfile.read(length)
        return json.loads(data) if data else None

    def _part(self, upload_id: str, length: int) -> bytes:
        """Take a part of an upload, byte by byte as far as the line holds."""
        offset = int(self.headers["Upload-Offset"])
        cut = next((c for c in self.fleet.cuts if offset <= c < offset + length), None)
        data = self.rfile.read(length if cut is None else cut - offset)
        with self.fleet.lock:
            upload = self.fleet.uploads[upload_id]
            if offset != upload["offset"]:
                raise _RefusedError(409, "wrong_offset", "Wrong offset.", offset=upload["offset"])
            upload["data"] += data
            upload["offset"] += len(data)
        if cut is not None:
            self.fleet.cuts.remove(cut)
            raise ConnectionAbortedError
        return data

    def _route(self, path: str, body):
        for pattern, name in _ROUTES:
            match = re.fullmatch(pattern, f"{self.command} {path}")
            if match:
                return getattr(self, name)(*match.groups(), body=body)
        canned = self.fleet.answers.get((self.command, path))
        if canned is None:
            raise _RefusedError(404, "not_found", f"There is no {path}.")
        return canned

    def _start_upload(self, body):
        if body["digest"] in self.fleet.blobs:
            return 200, {**body, "id": "", "offset": body["size"], "state": "complete"}
        for upload_id, upload in self.fleet.uploads.items():
            if (upload["digest"], upload["size"]) == (body["digest"], body["size"]):
                return self._upload(upload_id, None)
        made = {"id": new_id(), **body, "offset": 0, "state": "open"}
        self.fleet.uploads[made["id"]] = {**made, "data": b""}
        return 201, made

    def _upload(self, upload_id: str, body):
        upload = self.fleet.uploads.get(upload_id)
        if upload is None:
            raise _RefusedError(404, "not_found", "There is no such upload.")
        if upload["offset"] == upload["size"]:
            if sha256_digest(upload["data"]) != upload["digest"]:
                del self.fleet.uploads[upload_id]
                raise _RefusedError(422, "digest_mismatch", "The bytes have another digest.")
            upload["state"] = "complete"
            self.fleet.blobs[upload["digest"]] = upload["data"]
        return 200, {key: value for key, value in upload.items() if key != "data"}

    def _metadata(self, name: str, body):
        if name not in self.fleet.repository.files:
            raise _RefusedError(404, "not_found", f"There is no {name}.")
        return 200, self.fleet.repository.files[name]

    def _take_metadata(self, body):
        files = {name: base64.b64decode(data) for name, data in body["files"].items()}
        self.fleet.repository.add(files)
        return 200, {"files": sorted(files)}

    def _publish(self, model: str, body):
        if (model, body["version"]) in self.fleet.versions:
            raise _RefusedError(409, "version_taken", "That version exists.")
        if body["manifest"] not in self.fleet.blobs:
            raise _RefusedError(422, "blob_missing", "The manifest was not uploaded.")
        number = sum(name == model for name, _ in self.fleet.versions) + 2
        data = base64.b64decode(body["metadata"])
        self.fleet.repository.add({f"{number}.publisher%2F{model}.json": data})
        made = {**body, "id": new_id(), "model": model, "state": "published"}
        self.fleet.versions[model, body["version"]] = made
        return 201, made

    def _manifest(self, model: str, version: str, body):
        found = self.fleet.versions.get((model, version))
        if found is None:
            raise _RefusedError(404, "not_found", "There is no such version.")
        return 200, self.fleet.blobs[found["manifest"]]


_ROUTES = (
    (r"POST /v1/uploads", "_start_upload"),
    (r"(?:GET|PATCH) /v1/uploads/([^/]+)", "_upload"),
    (r"GET /v1/trust/metadata/([^/]+)", "_metadata"),
    (r"POST /v1/trust/metadata", "_take_metadata"),
    (r"POST /v1/models/([^/]+)/versions", "_publish"),
    (r"GET /v1/models/([^/]+)/versions/([^/]+)/manifest", "_manifest"),
)
