"""Who the fleet manager is to a hub: a shared access signature, or a token of Entra ID."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from edgefleet_cloud.hub_config import IotHub
from edgefleet_shared.errors import InvalidInputError, UnavailableError

LIFE_S = 3600
RENEW_BEFORE_S = 900
"""A signature is made anew this long before it ends: a clock may be off by ten minutes."""
SCOPE = "https://iothubs.azure.net/.default"
_log = logging.getLogger(__name__)
_FIELDS = ("HostName", "SharedAccessKeyName", "SharedAccessKey")


class Authority(Protocol):
    """Gives what stands in the header `Authorization`; safe from any thread."""

    def authorization(self) -> str:
        """Return it, made anew if the last one ends soon.

        Raises:
            UnavailableError: Whoever gives tokens does not (code `iothub_credentials`).
        """
        ...

    def forget(self) -> None:
        """Make a new one next time: the hub has refused the last."""
        ...


def read_connection_string(text: str, what: str) -> dict[str, str]:
    """Return the fields of a service connection string.

    Args:
        text: `HostName=...;SharedAccessKeyName=...;SharedAccessKey=...`.
        what: Where it came from, for the error.

    Raises:
        InvalidInputError: A field is missing, or the key is not base64 (code `iothub_connection`).
    """
    pairs = (part.partition("=") for part in text.strip().split(";") if part)
    fields = {name.strip(): value.strip() for name, _, value in pairs}
    missing = [name for name in _FIELDS if not fields.get(name)]
    if missing:
        raise _bad(f"{what} is no connection string of a hub: {', '.join(missing)} is missing.")
    try:
        base64.b64decode(fields["SharedAccessKey"], validate=True)
    except (binascii.Error, ValueError) as error:
        raise _bad(f"The SharedAccessKey of {what} is not base64.") from error
    return fields


def sas(resource: str, key: str, expiry: int, key_name: str = "") -> str:
    """Return a shared access signature.

    Args:
        resource: What it opens, as a hub's host.
        key: Base64.
        expiry: Unix time of its end.
        key_name: The policy's; '' = none, as with a device's own key.
    """
    spelled = quote(resource, safe="")
    signed = hmac.new(base64.b64decode(key), f"{spelled}\n{expiry}".encode(), hashlib.sha256)
    signature = quote(base64.b64encode(signed.digest()), safe="")
    policy = f"&skn={key_name}" if key_name else ""
    return f"SharedAccessSignature sr={spelled}&sig={signature}&se={expiry}{policy}"


class Sas:
    """An `Authority` by a policy's key.

    Args:
        resource: What it opens, as a hub's host.
        key_name: The policy's name.
        key: Its key, base64.
        clock: Gives Unix time in seconds.
        reread: Returns name and key as they are now; asked once the hub has refused them.
    """

    def __init__(
        self,
        resource: str,
        key_name: str,
        key: str,
        clock: Callable[[], float] = time.time,
        reread: Callable[[], tuple[str, str]] | None = None,
    ) -> None:
        self._resource, self._name, self._key = resource, key_name, key
        self._clock, self._reread = clock, reread
        self._lock = threading.Lock()
        self._token, self._end = "", 0.0

    def authorization(self) -> str:
        """Return a signature that holds for a quarter of an hour at least."""
        with self._lock:
            now = self._clock()
            # A clock that was set back makes one that would hold for days: that is new too.
            if not now + RENEW_BEFORE_S < self._end <= now + LIFE_S:
                self._end = int(now) + LIFE_S
                self._token = sas(self._resource, self._key, int(self._end), self._name)
            return self._token

    def forget(self) -> None:
        """Sign anew next time, by the key that is configured then: it may have been rotated."""
        with self._lock:
            self._end = 0.0
            if self._reread is None:
                return
            try:
                self._name, self._key = self._reread()
            except InvalidInputError as error:
                _log.warning("The old key is kept: %s", error)


class Entra:
    """An `Authority` by azure-identity: whoever this process is, by environment or machine.

    Raises:
        InvalidInputError: azure-identity is not installed (code `iothub_extra`).
    """

    def __init__(self, credential: Any = None, clock: Callable[[], float] = time.time) -> None:
        self._credential = credential or _default_credential()
        self._clock = clock
        self._lock = threading.Lock()
        self._token, self._end = "", 0.0

    def authorization(self) -> str:
        """Return a bearer token that holds for five minutes at least, as azure-identity's do."""
        with self._lock:
            if self._clock() + RENEW_BEFORE_S / 3 >= self._end:
                try:
                    found = self._credential.get_token(SCOPE)
                except Exception as error:  # azure-identity's tree is its own, and wide
                    raise UnavailableError(
                        f"Entra ID gives no token for IoT Hub: {str(error)[:300]}",
                        code="iothub_credentials",
                        hint="Give this process an identity with the role IoT Hub Data "
                        "Contributor, or name a connection_file.",
                    ) from error
                self._token, self._end = str(found.token), float(found.expires_on)
            return f"Bearer {self._token}"

    def forget(self) -> None:
        """Ask for a new one next time."""
        with self._lock:
            self._end = 0.0


def of(hub: IotHub, clock: Callable[[], float] = time.time) -> Authority:
    """Return who we are to a hub, as it is configured.

    Raises:
        InvalidInputError: The connection string cannot be read or used, or is another hub's.
    """
    if not hub.connection_file:
        return Entra(clock=clock)
    reread = partial(_policy, hub)
    return Sas(hub.host.lower(), *reread(), clock, reread)


def _policy(hub: IotHub) -> tuple[str, str]:
    fields = read_connection_string(read_secret(hub.connection_file), hub.connection_file)
    if fields["HostName"].lower() != hub.host.lower():
        raise _bad(f"{hub.connection_file} is for {fields['HostName']}, not for {hub.host}.")
    return fields["SharedAccessKeyName"], fields["SharedAccessKey"]


def read_secret(path: str) -> str:
    """Return what a file holds.

    Raises:
        InvalidInputError: It cannot be read (code `iothub_connection`).
    """
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise _bad(f"{path} cannot be read: {error}.") from error


def _default_credential() -> Any:
    try:
        from azure.identity import DefaultAzureCredential
    except ImportError as error:
        raise InvalidInputError(
            "Entra ID needs azure-identity, which is not installed.",
            code="iothub_extra",
            hint="pip install 'edgefleet-cloud[iothub]', or name a connection_file.",
        ) from error
    return DefaultAzureCredential()


def _bad(message: str) -> InvalidInputError:
    return InvalidInputError(
        message,
        code="iothub_connection",
        hint="Write the service policy's connection string into it, one line: "
        "HostName=...;SharedAccessKeyName=service;SharedAccessKey=...",
    )
