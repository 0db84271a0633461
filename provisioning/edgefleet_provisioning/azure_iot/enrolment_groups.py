"""Enrolment groups of a Device Provisioning Service, by its service API."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import quote

from edgefleet_provisioning.azure_iot.client import AzureClient
from edgefleet_provisioning.azure_iot.credentials import (
    DPS_SCOPE,
    ConnectionString,
    Credential,
    Entra,
    SharedAccess,
    decode_key,
)
from edgefleet_provisioning.errors import RefusedError
from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.identifiers import check_device

API_VERSION = "2021-10-01"
PAGE = 100
ID = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._:-]{0,126}[A-Za-z0-9-])?")
Allocation = Literal["hashed", "geoLatency", "static"]
Reprovision = Literal["migrate", "reset", "never"]
REPROVISION: Mapping[str, Mapping[str, bool]] = {
    "migrate": {"updateHubAssignment": True, "migrateDeviceData": True},
    "reset": {"updateHubAssignment": True, "migrateDeviceData": False},
    "never": {"updateHubAssignment": False, "migrateDeviceData": False},
}


class Plan(NamedTuple):
    """What is said of a group; None leaves it as it is, or as Azure has it by default.

    Attributes:
        certificates: PEM of the CAs whose devices may register, newest first, at most two.
        ca_names: The same, by the names under which they lie in the DPS.
        symmetric: Devices prove themselves by keys derived from one that Azure makes.
        hubs: Host names of linked hubs; empty: all of them.
        allocation: How one of them is chosen.
        edge: Its devices are IoT Edge devices.
        enabled: Whether devices may register.
        reprovision: What becomes of a twin when a device is assigned anew.
        fleet: Becomes the tag `edgefleet.fleet` of its devices' twins.
    """

    certificates: Sequence[str] = ()
    ca_names: Sequence[str] = ()
    symmetric: bool = False
    hubs: Sequence[str] | None = None
    allocation: Allocation | None = None
    edge: bool | None = None
    enabled: bool | None = None
    reprovision: Reprovision | None = None
    fleet: str = ""


def check_id(group: str) -> str:
    """Return the id of a group.

    Raises:
        InvalidInputError: DPS takes no such id (`invalid_name`).
    """
    if not ID.fullmatch(group):
        raise InvalidInputError(
            f"{group[:80]!r} is not the id of an enrolment group.",
            code="invalid_name",
            hint="Up to 128 letters, digits and -._: that begin and end with a letter or digit.",
        )
    return group


def document(group: str, plan: Plan, found: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return what DPS is told of a group.

    Args:
        group: Its id.
        plan: What is wanted.
        found: What DPS has of it; None: it is new.
    """
    body = {k: v for k, v in (found or {}).items() if k not in _READ_ONLY}
    body["enrollmentGroupId"] = check_id(group)
    attestation = _attestation(plan)
    said: dict[str, Any] = {
        "attestation": attestation,
        "iotHubs": list(plan.hubs) if plan.hubs is not None else None,
        "allocationPolicy": plan.allocation,
        "capabilities": None if plan.edge is None else {"iotEdge": plan.edge},
        "reprovisionPolicy": dict(REPROVISION[plan.reprovision]) if plan.reprovision else None,
    }
    if plan.enabled is not None:
        said["provisioningStatus"] = "enabled" if plan.enabled else "disabled"
    if plan.fleet:
        said["initialTwin"] = {"tags": {"edgefleet": {"fleet": plan.fleet}}}
    body |= {key: value for key, value in said.items() if value is not None}
    return body


def derive(group_key: str, device: str) -> str:
    """Return a device's symmetric key, derived from its group's; base64.

    Raises:
        InvalidInputError: The group's key is not base64, or the device's id is none.
    """
    key = decode_key(group_key, "the group")
    signed = hmac.new(key, check_device(device).encode(), hashlib.sha256).digest()
    return base64.b64encode(signed).decode()


class EnrolmentGroups:
    """Reads and writes them; every method raises as `AzureClient.ask`.

    Args:
        client: A connection to the DPS.
    """

    def __init__(self, client: AzureClient) -> None:
        self._client = client

    def get(self, group: str) -> dict[str, Any]:
        """Return a group as DPS has it."""
        found: dict[str, Any] = self._client.ask("GET", _path(group)).json()
        return found

    def create(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Make a group that is not there."""
        path = _path(body["enrollmentGroupId"])
        # Without If-Match DPS takes a group that exists for a conflict (409).
        made: dict[str, Any] = self._client.ask("PUT", path, body).json()
        return made

    def update(self, body: Mapping[str, Any], etag: str) -> dict[str, Any]:
        """Change a group, if it still is as it was read."""
        path = _path(body["enrollmentGroupId"])
        headers = {"If-Match": f'"{etag.strip(chr(34))}"'}
        made: dict[str, Any] = self._client.ask("PUT", path, body, headers).json()
        return made

    def delete(self, group: str) -> None:
        """Remove a group; devices that it brought stay in their hubs."""
        self._client.ask("DELETE", _path(group))

    def all(self) -> Iterator[dict[str, Any]]:
        """Yield every group, page by page."""
        headers = {"x-ms-max-item-count": str(PAGE)}
        while True:
            query = {"query": "SELECT * FROM enrollmentGroups"}
            answer = self._client.ask("POST", "/enrollmentGroups/query", query, headers)
            yield from answer.json()
            more = answer.headers.get("x-ms-continuation", "")
            if not more:
                return
            headers["x-ms-continuation"] = more

    def keys(self, group: str) -> dict[str, str]:
        """Return the symmetric keys of a group: `primaryKey` and `secondaryKey`.

        Raises:
            RefusedError: It has none (`no_group_key`).
        """
        found = self._client.ask("POST", f"{_path(group)}/attestationmechanism").json()
        keys = found.get("symmetricKey") or {}
        if not keys.get("primaryKey"):
            raise RefusedError(
                f"The group {group} has no symmetric key: its devices show certificates.",
                code="no_group_key",
                hint="Make a group with --symmetric, or let the device show its certificate.",
            )
        return {name: str(keys[name]) for name in ("primaryKey", "secondaryKey") if keys.get(name)}


@contextmanager
def connect(file: Path | None, host: str, tls_ca: Path | None) -> Iterator[EnrolmentGroups]:
    """Connect to a DPS as long as the context holds.

    Args:
        file: Holds a service connection string; None: Entra ID.
        host: The DPS; '' = the one that the connection string names.
        tls_ca: PEM file of the CA behind its certificate; None: the system's.

    Raises:
        InvalidInputError: It is not known which DPS (`no_dps`), or a file cannot be used.
    """
    credential: Credential
    if file:
        found = ConnectionString.read(file)
        host, credential = host or found.host, SharedAccess(found)
    elif host:
        credential = Entra(DPS_SCOPE)
    else:
        raise InvalidInputError(
            "It is not known which Device Provisioning Service is meant.",
            code="no_dps",
            hint="Give --connection-file FILE (or EDGEFLEET_DPS_CONNECTION_FILE), or --dps "
            "NAME.azure-devices-provisioning.net with `az login`.",
        )
    url, version = f"https://{host}", API_VERSION
    with AzureClient(url, version, credential, tls_ca) as client:
        yield EnrolmentGroups(client)


_READ_ONLY = ("createdDateTimeUtc", "lastUpdatedDateTimeUtc", "etag")


def _attestation(plan: Plan) -> dict[str, Any] | None:
    names = ("primary", "secondary")
    if plan.symmetric:
        return {"type": "symmetricKey", "symmetricKey": {}}
    if plan.ca_names:
        return {"type": "x509", "x509": {"caReferences": dict(zip(names, plan.ca_names))}}  # noqa: B905 - one or two
    if not plan.certificates:
        return None
    given = {n: {"certificate": pem} for n, pem in zip(names, plan.certificates)}  # noqa: B905
    return {"type": "x509", "x509": {"signingCertificates": given}}


def _path(group: str) -> str:
    return f"/enrollmentGroups/{quote(group, safe='')}"
