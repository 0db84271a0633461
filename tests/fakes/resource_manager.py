"""Azure Resource Manager, as far as the CA certificates of a hub or a DPS go, over real HTTP.

It holds a client to what Azure asks for: the version of the API, a bearer token, `If-Match` on what
changes something, and a proof of possession whose subject is the code and whose signature is the
CA's.
"""

from __future__ import annotations

import base64
import itertools
import json
import re
import secrets
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import parse_qs, unquote, urlsplit

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes

SUBSCRIPTION = "/subscriptions/91d12660-3dec-467a-be2a-213b5544ddc0/resourceGroups/plant"
HUB = f"{SUBSCRIPTION}/providers/Microsoft.Devices/IotHubs/plant-hub"
DPS = f"{SUBSCRIPTION}/providers/Microsoft.Devices/provisioningServices/plant-dps"
VERSIONS = {HUB: "2023-06-30", DPS: "2022-02-05"}
_ROUTE = re.compile(r"(/subscriptions/.*?/(?:IotHubs|provisioningServices)/[^/]+)/certificates(.*)")


class ResourceManager:
    """A context manager; `url` is where it listens.

    Attributes:
        token: The bearer token that it takes.
        certificates: resource id to name to what is kept of a certificate.
        asked: Every request: method and path without query.
        busy: How many requests are throttled from now on, with `Retry-After: 0`.
    """

    def __init__(self) -> None:
        self.token = secrets.token_urlsafe(20)
        self.certificates: dict[str, dict[str, dict]] = {HUB: {}, DPS: {}}
        self.asked: list[str] = []
        self.busy = 0
        self.etags = (f"AAAA{number:04}=" for number in itertools.count(1))
        handler = type("Handler", (_Handler,), {"manager": self})
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
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class _Handler(BaseHTTPRequestHandler):
    manager: ResourceManager
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        self.manager.asked.append(f"{self.command} {url.path}")
        try:
            self._admit()
            status, answer = 200, self._serve(url.path, url.query, json.loads(body or b"null"))
        except _RefusedError as error:
            status, answer = error.status, {"error": {"code": "X", "message": error.message}}
        data = b"" if answer is None else json.dumps(answer).encode()
        self.send_response(204 if answer is None else status)
        if status == 429:
            self.send_header("Retry-After", "0")
        if answer is not None:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815 - http.server's names

    def log_message(self, *_: object) -> None:
        """Stay silent."""

    def _admit(self) -> None:
        if self.manager.busy:
            self.manager.busy -= 1
            raise _RefusedError(429, "Too many requests.")
        if self.headers.get("authorization") != f"Bearer {self.manager.token}":
            raise _RefusedError(401, "The access token is invalid.")

    def _serve(self, path: str, query: str, body: dict | None) -> dict | None:
        match = _ROUTE.fullmatch(path)
        if match is None or match[1] not in VERSIONS:
            raise _RefusedError(404, f"The resource {path} was not found.")
        if parse_qs(query)["api-version"] != [VERSIONS[match[1]]]:
            raise _RefusedError(400, "This version of the API is not known.")
        kept, (name, _, verb) = self.manager.certificates[match[1]], match[2][1:].partition("/")
        name = unquote(name)
        if not name:
            return {"value": [_shown(one) for one in kept.values()]}
        if self.command == "PUT":
            return self._put(kept, name, body["properties"], is_dps=match[1] == DPS)
        if name not in kept:
            raise _RefusedError(404, f"The certificate {name} was not found.")
        if self.headers.get("if-match") != kept[name]["etag"]:
            raise _RefusedError(412, "The etag is another one.")
        if self.command == "DELETE":
            del kept[name]
            return None
        return self._change(kept[name], verb, body)

    def _put(self, kept: dict, name: str, said: dict, *, is_dps: bool) -> dict:
        text = said["certificate"]
        pem = base64.b64decode(text) if is_dps else text.encode()
        if name in kept and self.headers.get("if-match") != kept[name]["etag"]:
            raise _RefusedError(412, "The certificate exists, and the etag is another one.")
        kept[name] = {
            "name": name, "etag": next(self.manager.etags), "code": "",
            "certificate": x509.load_pem_x509_certificate(pem),
            "verified": bool(said.get("isVerified")),
        }  # fmt: skip
        return _shown(kept[name])

    def _change(self, one: dict, verb: str, body: dict | None) -> dict:
        if verb == "generateVerificationCode":
            one["code"] = secrets.token_hex(24).upper()
        elif verb == "verify":
            proof = x509.load_pem_x509_certificate(body["certificate"].encode())
            subject = proof.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value
            try:
                proof.verify_directly_issued_by(one["certificate"])
            except (InvalidSignature, ValueError) as error:
                raise _RefusedError(400, "The proof is not signed by the CA.") from error
            if not one["code"] or subject != one["code"]:
                raise _RefusedError(400, "The proof is of another code.")
            one["verified"] = True
        else:
            raise _RefusedError(404, f"There is no {verb}.")
        one["etag"] = next(self.manager.etags)
        return _shown(one)


def _shown(one: dict) -> dict:
    certificate = one["certificate"]
    said = {
        "subject": certificate.subject.rfc4514_string(),
        "expiry": certificate.not_valid_after_utc.strftime("%a, %d %b %Y %H:%M:%S GMT"),
        "thumbprint": certificate.fingerprint(hashes.SHA1()).hex().upper(),
        "isVerified": one["verified"],
    }
    if one["code"]:
        said["verificationCode"] = one["code"]
    return {"name": one["name"], "etag": one["etag"], "properties": said}
