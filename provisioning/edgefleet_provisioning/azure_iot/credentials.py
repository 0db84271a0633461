"""As whom we speak to Azure: a service connection string, or a token of Entra ID."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol
from urllib.parse import quote

from edgefleet_provisioning.errors import RefusedError
from edgefleet_provisioning.fleet_folder import read
from edgefleet_shared.errors import InvalidInputError

DPS_SCOPE = "https://azure-devices-provisioning.net/.default"
RESOURCE_MANAGER_SCOPE = "https://management.azure.com/.default"
TOKEN_S = 300  # a command is over long before
Now = Callable[[], float]


class Credential(Protocol):
    """Proves who we are."""

    def authorization(self) -> str:
        """Return the header `Authorization`.

        Raises:
            EdgeFleetError: There is nothing to prove it by.
        """
        ...


class ConnectionString(NamedTuple):
    """A service connection string: the host, the policy and its key."""

    host: str
    policy: str
    key: str

    @classmethod
    def read(cls, path: Path) -> ConnectionString:
        """Read it from a file.

        Raises:
            InvalidInputError: There is none, or it is not of this form (`connection_string`).
        """
        missing = f"There is no file {path} with a connection string."
        data = read(path, "connection string", missing, hint=_WHERE)
        return cls.parse(data.decode("utf-8", "replace").strip(), str(path))

    @classmethod
    def parse(cls, text: str, where: str) -> ConnectionString:
        """Read `HostName=...;SharedAccessKeyName=...;SharedAccessKey=...`; no error shows the key.

        Raises:
            InvalidInputError: It is not of this form (`connection_string`).
        """
        fields = dict(part.split("=", 1) for part in text.split(";") if "=" in part)
        wanted = ("HostName", "SharedAccessKeyName", "SharedAccessKey")
        lacking = [name for name in wanted if not fields.get(name)]
        if "DeviceId" in fields:
            raise _bad(f"{where} holds a device's connection string, not a service's.")
        if lacking:
            raise _bad(f"{where} holds no service connection string: it lacks {lacking[0]}.")
        host, policy, key = (fields[name] for name in wanted)
        decode_key(key, where)
        return cls(host, policy, key)


class SharedAccess:
    """Signs with the key of a policy.

    Args:
        found: The connection string.
        now: Seconds since 1970.
    """

    def __init__(self, found: ConnectionString, now: Now = time.time) -> None:
        self._found, self._now = found, now

    def authorization(self) -> str:
        """Return a token for the whole service that holds for some minutes."""
        resource = quote(self._found.host, safe="")
        until = int(self._now()) + TOKEN_S
        key = decode_key(self._found.key, "the connection string")
        signed = hmac.new(key, f"{resource}\n{until}".encode(), hashlib.sha256).digest()
        signature = quote(base64.b64encode(signed), safe="")
        policy = quote(self._found.policy, safe="")
        return f"SharedAccessSignature sr={resource}&sig={signature}&se={until}&skn={policy}"


class Entra:
    """Asks azure-identity for a token: `az login`, a managed identity, environment variables.

    Args:
        scope: What the token is for.
    """

    def __init__(self, scope: str) -> None:
        self._scope = scope

    def authorization(self) -> str:
        """Return a bearer token.

        Raises:
            InvalidInputError: azure-identity is not installed (`no_azure_identity`).
            RefusedError: Nobody is logged in (`no_azure_login`).
        """
        try:
            # Lazy: an extra, and half a second of imports that no other command should pay.
            from azure.core.exceptions import ClientAuthenticationError
            from azure.identity import CredentialUnavailableError, DefaultAzureCredential
        except ImportError as error:
            raise InvalidInputError(
                "Logging in to Azure needs azure-identity, which is not installed.",
                code="no_azure_identity",
                hint="Install edgefleet with its extra: pip install 'edgefleet[iothub]'.",
            ) from error
        with DefaultAzureCredential() as credential:
            try:
                token = credential.get_token(self._scope)
            except (ClientAuthenticationError, CredentialUnavailableError) as error:
                raise RefusedError(
                    f"Azure knows nobody here: {str(error).splitlines()[0]}",
                    code="no_azure_login",
                    hint="Run `az login`, or set AZURE_CLIENT_ID, AZURE_TENANT_ID and "
                    "AZURE_CLIENT_SECRET.",
                ) from error
        return f"Bearer {token.token}"


def decode_key(text: str, where: str) -> bytes:
    """Return the bytes of a base64 key; no error shows it.

    Raises:
        InvalidInputError: It is not base64 (`connection_string`).
    """
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _bad(f"The key in {where} is not base64.") from error


_WHERE = (
    "az iot dps connection-string show --dps-name NAME --policy-name provisioningserviceowner "
    "writes one; keep it in a file of mode 0600."
)


def _bad(message: str) -> InvalidInputError:
    return InvalidInputError(message, code="connection_string", hint=_WHERE)
