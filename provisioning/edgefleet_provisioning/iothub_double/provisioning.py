"""The Device Provisioning Service: who is who, and which hub a device belongs to. Pure."""

from __future__ import annotations

import base64
import hashlib
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from cryptography import x509

from edgefleet_provisioning.iothub_double.clock import iso
from edgefleet_provisioning.iothub_double.credentials import (
    Token,
    check_dates,
    check_token,
    common_name,
    derived_key,
    issuer_of,
    refused,
    thumbprints,
)
from edgefleet_provisioning.iothub_double.enrolments import (
    Enrolments,
    certificates_of,
    keys_of,
    references_of,
)
from edgefleet_provisioning.iothub_double.refusals import HubError
from edgefleet_provisioning.iothub_double.registry import make_key
from edgefleet_provisioning.iothub_double.state import Azure, Hub

POLICIES = ("provisioningserviceowner",)


class Proof(NamedTuple):
    """An enrolment that lets somebody in, and what the hub is to know it by."""

    document: dict[str, Any]
    group: str
    identity: dict[str, Any]


class Provisioning:
    """One Device Provisioning Service.

    Args:
        azure: Its hubs; all are linked at first.
        host: Its host name.
        id_scope: Its id scope.
    """

    def __init__(self, azure: Azure, host: str, id_scope: str = "0ne00000DB1") -> None:
        self.azure, self.host, self.id_scope = azure, host, id_scope
        self.enrolments = Enrolments(azure.clock)
        self.policies = {policy: make_key() for policy in POLICIES}
        self.unlinked: set[str] = set()
        """Hosts of hubs that are not linked (any more)."""
        self.latency: dict[str, float] = {}
        """Of a hub by its host, for the policy geoLatency."""
        self.busy = 0
        """So many requests of devices are still answered by 429."""
        self.wait_s = 0.0
        """Seconds for which an assignment is on its way."""
        self._states: dict[str, dict[str, Any]] = {}
        self._operations: dict[str, tuple[str, float]] = {}

    def connection_string(self, policy: str = POLICIES[0]) -> str:
        """Return what a service connects with."""
        key = self.policies[policy]
        return f"HostName={self.host};SharedAccessKeyName={policy};SharedAccessKey={key}"

    def prove(
        self, registration: str, token: Token | None, chain: Sequence[x509.Certificate]
    ) -> Proof | None:
        """Find the enrolment that lets a device in.

        Args:
            registration: Its registration id.
            token: Its password, None without one.
            chain: The certificates it has shown, its own first.

        Returns:
            None if there is no enrolment that could.

        Raises:
            HubError: 401, there is one and the proof is wrong, or it is disabled.
        """
        try:
            own = self.enrolments.whole("enrollments", registration)
        except HubError:
            own = None
        candidates = [own] if own is not None else self.enrolments.groups()
        wrong: HubError | None = None
        for document in candidates:
            try:
                proof = self._prove(registration, document, token, chain)
            except HubError as error:
                wrong = error
                continue
            if proof is not None:
                if document["provisioningStatus"] != "enabled":
                    raise refused("The enrolment is disabled.")
                return proof
        if wrong is not None:
            raise wrong
        return None

    def register(self, registration: str, proof: Proof) -> str:
        """Begin to provision a device; return the number of the operation."""
        with self.enrolments.lock:
            state = self._assign(registration, proof)
            self._states[registration.lower()] = state
            operation = f"5.{uuid.uuid4().hex}.{uuid.uuid4()}"
            self._operations[operation] = (registration, self.azure.clock.now() + self.wait_s)
            return operation

    def outcome(self, registration: str, operation: str) -> dict[str, Any] | None:
        """Return what has become of an operation, None while it is on its way.

        Raises:
            HubError: 404, there is none of this number for this device.
        """
        with self.enrolments.lock:
            known, ready = self._operations.get(operation, ("", 0.0))
            if known != registration:
                raise HubError(404, "OperationNotFound", "There is no such operation.")
            if self.azure.clock.now() < ready:
                return None
            state = self._states[registration.lower()]
            return {"operationId": operation, "status": state["status"], "registrationState": state}

    def state(self, registration: str) -> dict[str, Any]:
        """Return what is known of a device that has registered.

        Raises:
            HubError: 404.
        """
        found = self._states.get(registration.lower())
        if found is None:
            raise HubError(404, "RegistrationNotFound", f"{registration} has not registered.")
        return dict(found)

    def states(self, group: str) -> list[dict[str, Any]]:
        """Return the devices that have registered by a group."""
        with self.enrolments.lock:
            return [dict(s) for s in self._states.values() if s["enrollmentGroupId"] == group]

    def forget(self, registration: str) -> None:
        """Delete a registration; the device at its hub stays.

        Raises:
            HubError: 404.
        """
        with self.enrolments.lock:
            self.state(registration)
            del self._states[registration.lower()]

    def hubs(self) -> list[Hub]:
        """Return the linked hubs."""
        found = self.azure.hubs.values()
        return [hub for hub in found if hub.host not in self.unlinked]

    def _prove(
        self, registration: str, document: dict[str, Any], token: Token | None,
        chain: Sequence[x509.Certificate],
    ) -> Proof | None:  # fmt: skip
        group = document.get("enrollmentGroupId", "")
        keys = keys_of(document)
        if keys and token is not None:
            known = tuple(derived_key(key, registration) for key in keys) if group else keys
            resource = f"{self.id_scope}/registrations/{registration}"
            check_token(token, resource, known, self.azure.clock.now())
            first, second = known
            return Proof(document, group, {"auth": "sas", "primary": first, "secondary": second})
        if keys or not chain:
            return None
        if common_name(chain[0]).lower() != registration.lower():
            raise refused(f"The certificate is for {common_name(chain[0])}.")
        self._check_chain(document, chain)
        shown = max(thumbprints(chain[0]), key=len)
        return Proof(document, group, {"auth": "selfSigned", "thumbprints": (shown, "")})

    def _check_chain(self, document: Mapping[str, Any], chain: Sequence[x509.Certificate]) -> None:
        now = self.azure.clock.now()
        check_dates(chain[0], now)
        if chain[0] in certificates_of(document, "clientCertificates"):
            return
        known = certificates_of(document, "signingCertificates")
        named = (self.enrolments.authorities.get(name) for name in references_of(document))
        issuer_of(chain, known + [found for found in named if found is not None], now)

    def _assign(self, registration: str, proof: Proof) -> dict[str, Any]:
        now = iso(self.azure.clock.now())
        old = self._states.get(registration.lower())
        device = proof.document.get("deviceId") or (old or {}).get("deviceId") or registration
        before = self._hub_of(old, device)
        policy = proof.document["reprovisionPolicy"]
        stays = before is not None and not policy.get("updateHubAssignment", True)
        hub = before if before is not None and stays else self._allocate(proof.document, device)
        migrate = bool(policy.get("migrateDeviceData", True))
        substatus = "initialAssignment"
        if before is not None:
            substatus = self._move(before, hub, device, migrate=migrate, stays=stays)
        fresh = before is None or substatus == "deviceDataReset"
        self._introduce(hub, device, proof, fresh=fresh)
        return {
            "registrationId": registration, "deviceId": device, "assignedHub": hub.host,
            "status": "assigned", "substatus": substatus,
            "enrollmentGroupId": proof.group,
            "createdDateTimeUtc": old["createdDateTimeUtc"] if old else now,
            "lastUpdatedDateTimeUtc": now,
            "etag": base64.b64encode(uuid.uuid4().bytes).decode(),
        }  # fmt: skip

    def _hub_of(self, old: Mapping[str, Any] | None, device: str) -> Hub | None:
        """Return the hub at which a device of old is still registered."""
        hub = self.azure.hubs.get(old["assignedHub"]) if old else None
        if hub is None:
            return None
        try:
            hub.registry.get(device)
        except HubError:
            return None
        return hub

    def _allocate(self, document: Mapping[str, Any], device: str) -> Hub:
        listed = document.get("iotHubs") or []
        if document.get("iotHubHostName"):
            listed = [document["iotHubHostName"]]
        hubs = [hub for hub in self.hubs() if not listed or hub.host in listed]
        if not hubs:
            raise HubError(400, "IotHubNotLinked", "No linked hub is left for this enrolment.")
        policy = document.get("allocationPolicy") or "hashed"
        if policy == "static":
            return min(hubs, key=lambda hub: listed.index(hub.host) if listed else 0)
        if policy == "geoLatency":
            least = min(self.latency.get(hub.host, 0.0) for hub in hubs)
            hubs = [hub for hub in hubs if self.latency.get(hub.host, 0.0) == least]
        # The highest hash wins: where a hub is unlinked only its own devices move.
        return max(hubs, key=lambda hub: hashlib.sha256(f"{device}|{hub.host}".encode()).digest())

    def _move(self, before: Hub, hub: Hub, device: str, *, migrate: bool, stays: bool) -> str:
        if stays:
            return "initialAssignment"
        twin = before.twin(device)
        if before is not hub:
            before.registry.delete(device)
            hub.registry.create(device)
        elif migrate:
            return "initialAssignment"
        if migrate:
            desired = twin["properties"]["desired"]
            hub.patch_twin(device, "", {"tags": twin["tags"], "properties": {"desired": desired}})
            reported = twin["properties"]["reported"]
            hub.report(device, "", {k: v for k, v in reported.items() if k[0] != "$"})
            return "deviceDataMigrated"
        hub.patch_twin(device, "", {"tags": {}, "properties": {"desired": {}}}, replace=True)
        return "deviceDataReset"

    def _introduce(self, hub: Hub, device: str, proof: Proof, *, fresh: bool) -> None:
        """Make the device known at its hub, by what it has shown here."""
        edge = bool((proof.document.get("capabilities") or {}).get("iotEdge"))
        try:
            hub.registry.update(device, edge=edge, **proof.identity)
        except HubError as error:
            if error.status != 404:
                raise
            hub.registry.create(device, edge=edge, **proof.identity)
        twin = proof.document.get("initialTwin")
        if twin and fresh:
            hub.patch_twin(device, "", twin)
