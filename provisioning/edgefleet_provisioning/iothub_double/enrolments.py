"""Enrolments of the Device Provisioning Service: documents as its service API has them.

Pure. A document says who may come (`attestation`), to which hub, and with which twin.
"""

from __future__ import annotations

import base64
import copy
import threading
import uuid
from collections.abc import Mapping
from typing import Any, Literal

from cryptography import x509

from edgefleet_provisioning.iothub_double.clock import Clock, iso
from edgefleet_provisioning.iothub_double.refusals import HubError, bad
from edgefleet_provisioning.iothub_double.registry import make_key, match

Kind = Literal["enrollments", "enrollmentGroups"]
_NAMES: dict[Kind, str] = {
    "enrollments": "registrationId", "enrollmentGroups": "enrollmentGroupId"
}  # fmt: skip
_ALLOCATION = ("hashed", "geoLatency", "static")
POLICY = {"updateHubAssignment": True, "migrateDeviceData": True}


class Enrolments:
    """Individual enrolments and groups. Thread-safe.

    Args:
        clock: The double's time.
    """

    def __init__(self, clock: Clock) -> None:
        self.lock = threading.RLock()
        self.authorities: dict[str, x509.Certificate] = {}
        """CA certificates uploaded and verified, by name; `caReferences` name them."""
        self._clock = clock
        self._found: dict[tuple[Kind, str], dict[str, Any]] = {}

    def put(
        self, kind: Kind, name: str, document: Mapping[str, Any], if_match: str | None = None
    ) -> dict[str, Any]:
        """Make or change an enrolment.

        Args:
            kind: Of one device or of a group.
            name: Registration id or group id; the document says the same.
            document: As the service API takes it. Symmetric keys that are missing are made.
            if_match: The etag that it must have; None for one that is new.

        Returns:
            What is kept, without keys.

        Raises:
            HubError: 400, 409 if it exists and no etag is given, 412.
        """
        kept = copy.deepcopy(dict(document))
        if kept.setdefault(_NAMES[kind], name) != name:
            raise bad(f"The document is for {kept[_NAMES[kind]]}, not for {name}.")
        _check(kept)
        with self.lock:
            old = self._found.get((kind, name))
            if old is not None and if_match is None:
                raise HubError(409, "EnrollmentConflict", f"{name} exists.")
            if old is not None:
                match(if_match, old["etag"])
            elif if_match not in {None, "*"}:
                raise HubError(404, "EnrollmentNotFound", f"There is no enrolment {name}.")
            now = iso(self._clock.now())
            _complete(kept, old)
            kept["etag"] = base64.b64encode(uuid.uuid4().bytes).decode()
            kept["createdDateTimeUtc"] = old["createdDateTimeUtc"] if old else now
            kept["lastUpdatedDateTimeUtc"] = now
            self._found[kind, name] = kept
            return without_keys(kept)

    def get(self, kind: Kind, name: str) -> dict[str, Any]:
        """Return an enrolment without its keys.

        Raises:
            HubError: 404.
        """
        return without_keys(self.whole(kind, name))

    def whole(self, kind: Kind, name: str) -> dict[str, Any]:
        """Return an enrolment with its keys; `["attestation"]` is the attestation mechanism.

        Raises:
            HubError: 404.
        """
        with self.lock:
            found = self._found.get((kind, name))
            if found is None:
                raise HubError(404, "EnrollmentNotFound", f"There is no enrolment {name}.")
            return copy.deepcopy(found)

    def delete(self, kind: Kind, name: str, if_match: str | None = None) -> None:
        """Delete an enrolment.

        Raises:
            HubError: 404 or 412.
        """
        with self.lock:
            match(if_match, self.whole(kind, name)["etag"])
            del self._found[kind, name]

    def all(self, kind: Kind) -> list[dict[str, Any]]:
        """Return all of a kind without keys, by name."""
        with self.lock:
            return [without_keys(d) for (k, _), d in sorted(self._found.items()) if k == kind]

    def groups(self) -> list[dict[str, Any]]:
        """Return all groups with their keys."""
        with self.lock:
            found = [d for (k, _), d in sorted(self._found.items()) if k == "enrollmentGroups"]
            return copy.deepcopy(found)

    def trust(self, name: str, pem: bytes) -> None:
        """Take a CA certificate as uploaded and verified."""
        with self.lock:
            self.authorities[name] = x509.load_pem_x509_certificate(pem)


def keys_of(document: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the symmetric keys of an enrolment; none if it has another attestation."""
    if document["attestation"]["type"] != "symmetricKey":
        return ()
    found = document["attestation"]["symmetricKey"]
    return (found["primaryKey"], found["secondaryKey"])


def certificates_of(document: Mapping[str, Any], which: str) -> list[x509.Certificate]:
    """Return certificates of an enrolment: `clientCertificates` or `signingCertificates`."""
    found = (document["attestation"].get("x509") or {}).get(which) or {}
    texts = [(found.get(place) or {}).get("certificate") for place in ("primary", "secondary")]
    return [read_certificate(text) for text in texts if text]


def references_of(document: Mapping[str, Any]) -> list[str]:
    """Return the names of uploaded CAs that an enrolment refers to."""
    found = (document["attestation"].get("x509") or {}).get("caReferences") or {}
    return [found[place] for place in ("primary", "secondary") if found.get(place)]


def read_certificate(text: str) -> x509.Certificate:
    """Read a certificate that is PEM or DER in base64.

    Raises:
        HubError: 400, it is none.
    """
    try:
        if "BEGIN CERTIFICATE" in text:
            return x509.load_pem_x509_certificate(text.encode())
        return x509.load_der_x509_certificate(base64.b64decode(text))
    except ValueError as error:
        raise bad("A certificate of the enrolment cannot be read.") from error


def without_keys(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return an enrolment as it is answered: without symmetric keys."""
    said = copy.deepcopy(dict(document))
    if "symmetricKey" in said["attestation"]:
        said["attestation"]["symmetricKey"] = {"primaryKey": None, "secondaryKey": None}
    return said


def _check(document: dict[str, Any]) -> None:
    attestation = document.get("attestation")
    kind = attestation.get("type") if isinstance(attestation, dict) else None
    if kind not in {"symmetricKey", "x509"}:
        raise bad("The attestation is of type symmetricKey or x509.")
    if document.get("allocationPolicy") not in {None, *_ALLOCATION}:
        raise bad(f"The allocation policy is one of {', '.join(_ALLOCATION)} here.")
    if kind == "x509":
        known = certificates_of(document, "clientCertificates")
        known += certificates_of(document, "signingCertificates")
        if not known and not references_of(document):
            raise bad("The attestation names no certificate.")


def _complete(document: dict[str, Any], old: Mapping[str, Any] | None) -> None:
    document.setdefault("provisioningStatus", "enabled")
    if document.get("reprovisionPolicy") is None:
        document["reprovisionPolicy"] = dict(POLICY)
    if document["attestation"]["type"] == "symmetricKey":
        given = document["attestation"].get("symmetricKey") or {}
        before = keys_of(old) if old is not None else ()
        first, second = before or (make_key(), make_key())
        document["attestation"]["symmetricKey"] = {
            "primaryKey": given.get("primaryKey") or first,
            "secondaryKey": given.get("secondaryKey") or second,
        }
