"""An issuer of tokens as Entra ID is one, so that azure-identity can be driven: a test issuer.

It knows clients by id and secret and gives each a list of roles on everything the double serves.
Tokens are JWTs signed with RS256, by a key of this process.
"""

from __future__ import annotations

import base64
import hmac
import json
import secrets
from dataclasses import dataclass, field
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256

from edgefleet_provisioning.iothub_double.clock import Clock
from edgefleet_provisioning.iothub_double.credentials import refused
from edgefleet_provisioning.iothub_double.refusals import HubError

TENANT = "7f1f7c0b-5a3e-4f0c-9f0e-0d6b1e6b9c11"
LIFETIME_S = 3600
HUB, EVENTS, RESOURCES, DPS = (
    "https://iothubs.azure.net",
    "https://eventhubs.azure.net",
    "https://management.azure.com",
    "https://azure-devices-provisioning.net",
)
ROLES = {
    "IoT Hub Data Contributor": frozenset({"read", "write", "service"}),
    "IoT Hub Data Reader": frozenset({"read"}),
    "IoT Hub Registry Contributor": frozenset({"read", "write"}),
    "IoT Hub Twin Contributor": frozenset({"service"}),
    "Azure Event Hubs Data Receiver": frozenset({"listen"}),
    "Device Provisioning Service Data Contributor": frozenset({"enroll"}),
    "Contributor": frozenset({"manage"}),
}
"""What each role may do: the rights that the double's interfaces ask for."""


@dataclass
class Client:
    """An application that may ask for tokens."""

    secret: str
    roles: tuple[str, ...]
    object_id: str = field(default_factory=lambda: secrets.token_hex(16))

    @property
    def rights(self) -> frozenset[str]:
        """What its roles let it do."""
        return frozenset().union(*(ROLES[role] for role in self.roles))


class Issuer:
    """Gives tokens to clients and checks them.

    Args:
        clock: The double's time.
    """

    def __init__(self, clock: Clock) -> None:
        self.tenant = TENANT
        self.lifetime_s = LIFETIME_S
        self._clock = clock
        self._clients: dict[str, Client] = {}
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)

    def register(self, client_id: str, *roles: str, secret: str = "") -> str:
        """Let a client in; return its secret.

        Args:
            client_id: Its id; an earlier one of this id is forgotten.
            *roles: Of `ROLES`.
            secret: Its secret; a new one if empty.
        """
        client = Client(secret or secrets.token_urlsafe(24), roles)
        self._clients[client_id] = client
        return client.secret

    def token(self, client_id: str, secret: str, scope: str, authority: str) -> dict[str, Any]:
        """Return the answer to a client credentials grant.

        Raises:
            HubError: 401; the client or its secret is not known.
        """
        client = self._clients.get(client_id)
        if client is None or not hmac.compare_digest(client.secret.encode(), secret.encode()):
            raise HubError(401, "invalid_client", "AADSTS7000215: Invalid client secret provided.")
        now = int(self._clock.now())
        claims = {
            "aud": scope.removesuffix("/.default").rstrip("/"),
            "iss": f"{authority}/{self.tenant}/v2.0",
            "tid": self.tenant,
            "appid": client_id,
            "oid": client.object_id,
            "iat": now,
            "nbf": now,
            "exp": now + self.lifetime_s,
        }
        told = {"token_type": "Bearer", "expires_in": self.lifetime_s}
        return {**told, "ext_expires_in": self.lifetime_s, "access_token": self._sign(claims)}

    def check(self, token: str, audience: str) -> dict[str, Any]:
        """Return what a token claims, if this issuer has signed it and it is for `audience`.

        Raises:
            HubError: 401.
        """
        head, _, signature = token.rpartition(".")
        try:
            self._key.public_key().verify(
                _unpack(signature), head.encode(), padding.PKCS1v15(), SHA256()
            )
            claims: dict[str, Any] = json.loads(_unpack(head.partition(".")[2]))
        except (InvalidSignature, ValueError) as error:
            raise refused("The token was not signed by the tenant's issuer.") from error
        if claims["aud"] != audience:
            raise refused(f"The token is for {claims['aud']}, not for {audience}.")
        if claims["exp"] <= self._clock.now():
            raise refused("The token has expired.")
        return claims

    def rights(self, token: str, audience: str) -> frozenset[str]:
        """Return what the bearer of a token may do now, by its client's roles.

        Raises:
            HubError: 401.
        """
        client = self._clients.get(self.check(token, audience)["appid"])
        return client.rights if client else frozenset()

    def _sign(self, claims: dict[str, Any]) -> str:
        head = f"{_pack({'typ': 'JWT', 'alg': 'RS256', 'kid': 'double'})}.{_pack(claims)}"
        signature = self._key.sign(head.encode(), padding.PKCS1v15(), SHA256())
        return f"{head}.{base64.urlsafe_b64encode(signature).decode().rstrip('=')}"


def _pack(value: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


def _unpack(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
