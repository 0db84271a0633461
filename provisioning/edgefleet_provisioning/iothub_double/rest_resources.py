"""Azure Resource Manager's interface for CA certificates of hubs and of the provisioning service.

A CA is uploaded, a code is asked for, and whoever has the CA's key proves it by a certificate that
names the code and that the CA has signed. From then on devices whose certificates the CA signed
are let in.
"""

from __future__ import annotations

import base64
import itertools
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from edgefleet_provisioning.iothub_double import rest_web as web
from edgefleet_provisioning.iothub_double.credentials import common_name, refused
from edgefleet_provisioning.iothub_double.enrolments import read_certificate
from edgefleet_provisioning.iothub_double.entra import RESOURCES, Issuer
from edgefleet_provisioning.iothub_double.provisioning import Provisioning
from edgefleet_provisioning.iothub_double.refusals import HubError, bad
from edgefleet_provisioning.iothub_double.registry import match
from edgefleet_provisioning.iothub_double.state import Azure

_RESOURCE = (
    "/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.Devices"
    "/{kind}/{resource}/certificates"
)
_DATE = "%a, %d %b %Y %H:%M:%S GMT"
Trust = Callable[[str, x509.Certificate, bool], None]
"""Lets devices of a CA in, or no longer: a name, the certificate, and which of the two."""


@dataclass
class Uploaded:
    """A CA certificate that was uploaded."""

    name: str
    certificate: x509.Certificate
    etag: str
    verified: bool = False
    code: str = ""

    def document(self) -> dict[str, Any]:
        """Return it as Resource Manager does."""
        told: dict[str, Any] = {
            "subject": self.certificate.subject.rfc4514_string(),
            "expiry": self.certificate.not_valid_after_utc.strftime(_DATE),
            "thumbprint": self.certificate.fingerprint(hashes.SHA1()).hex().upper(),  # noqa: S303
            "isVerified": self.verified,
        }
        if self.code:
            told["verificationCode"] = self.code
        return {"name": self.name, "etag": self.etag, "properties": told}


class Resources:
    """The certificates of every resource of a double.

    Args:
        azure: The hubs.
        dps: The provisioning service.
        issuer: Of Entra ID's tokens.
    """

    def __init__(self, azure: Azure, dps: Provisioning, issuer: Issuer) -> None:
        self._azure = azure
        self._dps = dps
        self._issuer = issuer
        self._etags = (f"AAAAAA{number:06}" for number in itertools.count(1))
        self._kept: dict[tuple[str, str], dict[str, Uploaded]] = {}

    def routes(self) -> list[Route]:
        """Return the routes."""
        one = _RESOURCE + "/{name}"
        handled = web.refusing(self._handle)
        return [
            Route(_RESOURCE, handled, methods=["GET"]),
            Route(one, handled, methods=["GET", "PUT", "DELETE"]),
            Route(one + "/{verb}", handled, methods=["POST"]),
        ]

    async def _handle(self, request: Request) -> Response:
        said = request.headers.get("authorization", "")
        if not said.startswith("Bearer "):
            raise refused("Resource Manager takes bearer tokens alone.")
        if "manage" not in self._issuer.rights(said.removeprefix("Bearer "), RESOURCES):
            raise refused("The right to manage the resource is missing.")
        web.need_version(request)
        trust = self._trust(request.path_params["kind"], request.path_params["resource"])
        where = request.path_params["kind"].lower(), request.path_params["resource"].lower()
        kept = self._kept.setdefault(where, {})
        name = request.path_params.get("name")
        if name is None:
            return JSONResponse({"value": [one.document() for one in kept.values()]})
        if request.method == "PUT":
            return JSONResponse((await self._put(kept, name, request, trust)).document())
        found = kept.get(name)
        if found is None:
            raise HubError(404, "CertificateNotFound", f"There is no certificate {name}.")
        if request.method != "GET":
            match(request.headers.get("if-match") or "missing", found.etag)
        if request.method == "DELETE":
            del kept[name]
            if found.verified:
                trust(name, found.certificate, False)
            return Response(status_code=204)
        if request.method == "POST":
            await self._change(found, request, trust)
        return JSONResponse(found.document())

    def _trust(self, kind: str, resource: str) -> Trust:
        if kind.lower() == "iothubs":
            for hub in self._azure.hubs.values():
                if hub.name == resource:
                    authorities = hub.registry.authorities
                    return lambda _, ca, on: (
                        authorities.append(ca) if on else authorities.remove(ca)
                    )
        elif kind.lower() == "provisioningservices":
            known = self._dps.enrolments.authorities

            def change(name: str, ca: x509.Certificate, on: bool) -> None:
                known.update({name: ca}) if on else known.pop(name, None)

            return change
        raise HubError(404, "ResourceNotFound", f"There is no {kind}/{resource}.")

    async def _put(
        self, kept: dict[str, Uploaded], name: str, request: Request, trust: Trust
    ) -> Uploaded:
        said = (await web.mapping(request)).get("properties")
        if not isinstance(said, dict) or not isinstance(said.get("certificate"), str):
            raise bad("properties.certificate is missing.")
        old = kept.get(name)
        if old is not None:
            match(request.headers.get("if-match") or "missing", old.etag)
            if old.verified:
                trust(name, old.certificate, False)
        verified = bool(said.get("isVerified"))
        made = Uploaded(name, _certificate(said["certificate"]), next(self._etags), verified)
        kept[name] = made
        if verified:
            trust(name, made.certificate, True)
        return made

    async def _change(self, found: Uploaded, request: Request, trust: Trust) -> None:
        verb = request.path_params["verb"]
        if verb == "generateVerificationCode":
            found.code = secrets.token_hex(24).upper()
        elif verb == "verify":
            text = (await web.mapping(request)).get("certificate")
            if not isinstance(text, str):
                raise bad("certificate is missing.")
            _prove(found, _certificate(text))
            if not found.verified:
                trust(found.name, found.certificate, True)
            found.verified, found.code = True, ""
        else:
            raise HubError(404, "GenericNotFound", f"There is no {verb}.")
        found.etag = next(self._etags)


def _prove(found: Uploaded, proof: x509.Certificate) -> None:
    try:
        proof.verify_directly_issued_by(found.certificate)
    except (InvalidSignature, ValueError, TypeError) as error:
        raise bad("The proof is not signed by the CA.", "CertificateValidationFailed") from error
    if not found.code or common_name(proof) != found.code:
        told = "The proof's subject is not the verification code."
        raise bad(told, "CertificateValidationFailed")


def _certificate(text: str) -> x509.Certificate:
    """Read PEM, or base64 of PEM or of DER."""
    if "BEGIN CERTIFICATE" not in text:
        try:
            data = base64.b64decode(text, validate=False)
        except ValueError as error:
            raise bad("The certificate is neither PEM nor base64.") from error
        if b"BEGIN CERTIFICATE" in data:
            text = data.decode("ascii", "replace")
    return read_certificate(text)
