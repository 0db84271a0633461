"""A device as the fleet manager's open HTTP routes see it: tickets, requests, renewals by hand."""

from __future__ import annotations

import base64
import secrets
from typing import Any

import httpx
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from securesystemslib.signer import CryptoSigner

from edgefleet_shared import dsse, strict_json
from edgefleet_shared.renewal import REQUEST_TYPE, Renewal, Renewed


def new_key() -> ec.EllipticCurvePrivateKey:
    """Return a fresh P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def csr(key: Any, name: str = "cam-1", extensions: tuple[x509.ExtensionType, ...] = ()) -> str:
    """Return a certificate request in PEM."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


class HttpDevice:
    """One device with its key in memory.

    Args:
        cloud: A `RunningCloud`.
        name: Its id; it is registered already or will be.
    """

    def __init__(self, cloud: Any, name: str = "cam-1") -> None:
        self.cloud, self.name = cloud, name
        self.key = new_key()

    def register(self) -> None:
        """Make it known."""
        made = self.cloud.client.post("/v1/devices", json={"id": self.name})
        assert made.status_code == 201, made.text

    def ticket(self, hours: int = 24) -> str:
        """Return a fresh ticket."""
        made = self.cloud.client.post(
            f"/v1/devices/{self.name}/tickets", json={"valid_hours": hours}
        )
        assert made.status_code == 201, made.text
        return made.json()["ticket"]

    def enroll(self, ticket: str | None = None, request: str | None = None) -> httpx.Response:
        """Hand a ticket in, by default a fresh one with an honest request."""
        body = {"ticket": ticket or self.ticket(), "csr": request or csr(self.key, self.name)}
        return self.cloud.anyone.post("/v1/enrollments", json=body)

    def row(self) -> dict[str, Any]:
        """Return what the API says of it."""
        return self.cloud.client.get(f"/v1/devices/{self.name}").json()

    def renewal(self, new: Any, signed_by: Any = None, **fields: Any) -> str:
        """Return a sealed renewal in base64 for the key `new`, signed by our key or another."""
        asked = {
            "v": 1, "fleet": "demo", "device": self.name, "csr": csr(new, self.name),
            "nonce": secrets.token_urlsafe(12), "ts": "2026-01-01T00:00:00.000Z",
        } | fields  # fmt: skip
        body = strict_json.encode(Renewal(**asked))
        return base64.b64encode(
            dsse.seal(body, REQUEST_TYPE, CryptoSigner(signed_by or self.key))
        ).decode()

    def renew(self, sealed: str, device: str | None = None) -> httpx.Response:
        """Hand a renewal in."""
        return self.cloud.anyone.post(
            "/v1/renewals", json={"device": device or self.name, "request": sealed}
        )

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Return the events of one type about this device."""
        found = self.cloud.client.get("/v1/events", params={"page_size": "200"}).json()["items"]
        return [e for e in found if e["type"] == kind and e["subject"] == f"devices/{self.name}"]


def renewed(answer: httpx.Response) -> Renewed:
    """Return what a renewal's answer says, its signature not looked at."""
    assert answer.status_code == 200, answer.text
    envelope = strict_json.decode(
        base64.b64decode(answer.json()["renewed"]), dict, max_bytes=65536, what="answer"
    )
    return strict_json.decode(
        base64.b64decode(str(envelope["payload"])), Renewed, max_bytes=65536, what="answer"
    )
