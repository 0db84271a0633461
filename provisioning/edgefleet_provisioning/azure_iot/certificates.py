"""CA certificates of an IoT hub or a DPS, by Azure Resource Manager."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, Self
from urllib.parse import quote

from edgefleet_provisioning.azure_iot.client import AzureClient
from edgefleet_shared.errors import InvalidInputError

RESOURCE_MANAGER = "https://management.azure.com"
_RESOURCE = re.compile(
    r"/subscriptions/[^/]+/resourceGroups/([^/]+)/providers/Microsoft\.Devices/"
    r"(IotHubs|provisioningServices)/([^/]+)",
    re.IGNORECASE,
)


class Resource(NamedTuple):
    """An IoT hub or a DPS.

    Attributes:
        id: Its resource id.
        group: Its resource group.
        name: Its name.
        is_dps: Whether it is a DPS.
    """

    id: str
    group: str
    name: str
    is_dps: bool

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a resource id.

        Raises:
            InvalidInputError: It is none of a hub or a DPS (`usage`).
        """
        match = _RESOURCE.fullmatch(text.strip().rstrip("/"))
        if match is None:
            raise InvalidInputError(
                f"{text[:200]!r} is not the resource id of an IoT hub or a DPS.",
                code="usage",
                hint="`az iot hub show --name HUB --query id -o tsv` prints a hub's, "
                "`az iot dps show --name DPS --query id -o tsv` a DPS's.",
            )
        return cls(match[0], match[1], match[3], match[2].lower() != "iothubs")

    @property
    def api_version(self) -> str:
        """The version of Resource Manager's API for it."""
        return "2022-02-05" if self.is_dps else "2023-06-30"


class Certificate(NamedTuple):
    """A CA certificate as Azure has it; `thumbprint` is SHA-1 in upper-case hex."""

    name: str
    thumbprint: str
    verified: bool
    subject: str
    expiry: str
    etag: str

    @classmethod
    def read(cls, found: Mapping[str, Any]) -> Self:
        """Read it from an answer."""
        said = found.get("properties") or {}
        return cls(
            str(found.get("name", "")),
            str(said.get("thumbprint", "")).upper(),
            bool(said.get("isVerified")),
            str(said.get("subject", "")),
            str(said.get("expiry", "")),
            str(found.get("etag", "")),
        )


class Certificates:
    """Reads and writes them; every method raises as `AzureClient.ask`.

    Args:
        client: A connection to Resource Manager.
        resource: The hub or the DPS.
    """

    def __init__(self, client: AzureClient, resource: Resource) -> None:
        self._client, self._resource = client, resource

    def all(self) -> list[Certificate]:
        """Return every CA certificate."""
        answer = self._client.ask("GET", self._path()).json()
        return [Certificate.read(one) for one in answer.get("value", [])]

    def put(self, name: str, pem: str) -> Certificate:
        """Upload a certificate that is not there; it counts once it is verified."""
        # A hub takes the text of a PEM file; a DPS takes bytes, which JSON has as base64.
        content = base64.b64encode(pem.encode()).decode() if self._resource.is_dps else pem
        body = {"properties": {"certificate": content, "isVerified": False}}
        return Certificate.read(self._client.ask("PUT", self._path(name), body).json())

    def code(self, one: Certificate) -> tuple[str, str]:
        """Return a verification code for a certificate, and its etag from then on."""
        path = f"{self._path(one.name)}/generateVerificationCode"
        found = self._client.ask("POST", path, headers={"If-Match": one.etag}).json()
        return str(found["properties"]["verificationCode"]), str(found.get("etag", one.etag))

    def verify(self, name: str, etag: str, proof: str) -> Certificate:
        """Show the certificate that proves possession."""
        path = f"{self._path(name)}/verify"
        answer = self._client.ask("POST", path, {"certificate": proof}, {"If-Match": etag})
        return Certificate.read(answer.json())

    def delete(self, one: Certificate) -> None:
        """Remove a certificate: devices that show one of its own are let in no more."""
        self._client.ask("DELETE", self._path(one.name), headers={"If-Match": one.etag})

    def _path(self, name: str = "") -> str:
        return f"{self._resource.id}/certificates" + (f"/{quote(name, safe='')}" if name else "")


def az_commands(resource: Resource, name: str, pem_file: str) -> list[str]:
    """Return the commands of Azure's own command line that upload and prove one certificate."""
    kind = "dps" if resource.is_dps else "hub"
    flags = ("--dps-name", "--certificate-name") if resource.is_dps else ("--hub-name", "--name")
    start = f"az iot {kind} certificate"
    which = f"{flags[0]} {resource.name} --resource-group {resource.group} {flags[1]} {name}"
    etag = f'--etag "$({start} show {which} --query etag -o tsv)"'
    query = "--query properties.verificationCode"
    return [
        f"{start} create {which} --path {pem_file}",
        f"CODE=$({start} generate-verification-code {which} {etag} {query} -o tsv)",
        f'edgefleet iothub ca prove "$CODE" --ca {name} --output proof.pem',
        f"{start} verify {which} {etag} --path proof.pem",
    ]
