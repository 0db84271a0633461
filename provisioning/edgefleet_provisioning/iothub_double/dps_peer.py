"""A device that asks the Device Provisioning Service to be provisioned."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from cryptography import x509

from edgefleet_provisioning.iothub_double import codec
from edgefleet_provisioning.iothub_double.admission import (
    BAD_ID,
    BAD_USER,
    UNAUTHORIZED,
    RefusedError,
)
from edgefleet_provisioning.iothub_double.codec import Connect, ProtocolError, Publish
from edgefleet_provisioning.iothub_double.credentials import read_token, refused
from edgefleet_provisioning.iothub_double.device_peer import fields
from edgefleet_provisioning.iothub_double.dialect import Answers
from edgefleet_provisioning.iothub_double.provisioning import Proof, Provisioning
from edgefleet_provisioning.iothub_double.refusals import HubError

ANSWERS = "$dps/registrations/res/#"
RETRY_AFTER_S = 3
_REGISTER = "$dps/registrations/PUT/iotdps-register/?"
_STATUS = "$dps/registrations/GET/iotdps-get-operationstatus/?"
_USER = re.compile(
    r"(?P<scope>[^/]+)/registrations/(?P<id>[^/]+)/api-version=[^&]+&ClientVersion=.*"
)


class DpsPeer:
    """A device before it has a hub.

    Args:
        service: Where it asks.
        hello: Its CONNECT.
        chain: The certificates it has shown, its own first.

    Raises:
        RefusedError: It may not even ask.
    """

    def __init__(
        self, service: Provisioning, hello: Connect, chain: Sequence[x509.Certificate]
    ) -> None:
        named = _USER.fullmatch(hello.username)
        if named is None:
            raise RefusedError(BAD_USER, f"No user name of a registration: {hello.username!r}.")
        if hello.client_id != named["id"]:
            raise RefusedError(BAD_ID, "The client id is not the registration id.")
        self.device = named["id"]
        self._service = service
        self._filters: set[str] = set()
        try:
            if named["scope"] != service.id_scope:
                raise refused(f"There is no id scope {named['scope']}.")
            token = read_token(hello.password) if hello.password else None
            self.expires = float(token.expires) if token else None
            self._proof: Proof | None = service.prove(self.device, token, chain)
        except HubError as error:
            raise RefusedError(UNAUTHORIZED, str(error)) from error

    def greet(self) -> bool:
        """See `Peer`: nothing outlives a connection here."""
        return False

    def end(self, *, clean: bool) -> None:
        """See `Peer`."""

    def subscribe(self, name: str, qos: int) -> int:
        """See `Peer`."""
        if name != ANSWERS:
            return 0x80
        self._filters.add(name)
        return min(qos, 1)

    def unsubscribe(self, name: str) -> None:
        """See `Peer`."""
        self._filters.discard(name)

    def subscribed(self) -> None:
        """See `Peer`: nothing has waited."""

    def acknowledged(self, number: int) -> None:
        """See `Peer`."""

    def label(self, message: Publish) -> str:
        """See `Peer`."""
        if message.topic.startswith(_REGISTER):
            return "in:register"
        if message.topic.startswith(_STATUS):
            return "in:register-status"
        raise ProtocolError(f"A message to {message.topic}.")

    async def publish(self, message: Publish) -> Answers:
        """See `Peer`."""
        asked = fields(message.topic.partition("?")[2])
        more = ""
        try:
            status, body = self._answer(self.label(message), asked, message.payload)
        except HubError as error:
            status = error.status
            body = {"errorCode": status * 1000 + 2, "trackingId": "", "message": str(error)}
            if status == 429:
                more = f"&retry-after={RETRY_AFTER_S}"
        if ANSWERS not in self._filters:
            return []
        if status == 202:
            more = f"&retry-after={RETRY_AFTER_S}"
        rid = quote(asked.get("$rid", ""), safe="")
        topic = f"$dps/registrations/res/{status}/?$rid={rid}{more}"
        return [("out:register", codec.publish(topic, json.dumps(body).encode()))]

    def _answer(
        self, label: str, asked: dict[str, str], payload: bytes
    ) -> tuple[int, dict[str, Any]]:
        if self._service.busy > 0:
            self._service.busy -= 1
            raise HubError(429, "ThrottlingException", "Too many requests.")
        if self._proof is None:
            raise refused("Unauthorized")
        if label == "in:register":
            try:
                said = json.loads(payload)
            except ValueError:
                said = None
            if not isinstance(said, dict) or said.get("registrationId") != self.device:
                raise HubError(400, "BadRequest", "The body names another registration id.")
            operation = self._service.register(self.device, self._proof)
            return 202, {"operationId": operation, "status": "assigning"}
        operation = asked.get("operationId", "")
        outcome = self._service.outcome(self.device, operation)
        if outcome is None:
            return 202, {"operationId": operation, "status": "assigning"}
        return 200, outcome
