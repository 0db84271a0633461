"""A connection to a service of Azure: JSON over HTTPS, throttling waited out, errors explained."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from edgefleet_provisioning.azure_iot.credentials import Credential
from edgefleet_provisioning.errors import NotFoundError, RefusedError, UnreachableError
from edgefleet_shared.errors import EdgeFleetError, InvalidInputError

TIMEOUT = httpx.Timeout(30.0, connect=10.0)
ATTEMPTS = 4
LONGEST_WAIT_S = 30.0
HINTS = {
    401: "Is that this service's connection string, its key the present one, this clock right?",
    403: "The policy or role may not do this: it needs to write enrolments, or certificates.",
    404: "Look at the name, and at the service that is asked.",
    409: "It exists already; `update` changes it.",
    412: "Somebody changed it meanwhile; look at it again and repeat.",
    429: "Azure throttles; wait a minute and repeat.",
}


class AzureClient:
    """A context manager.

    Args:
        url: The service, as `https://NAME.azure-devices-provisioning.net`.
        api_version: What every request is for.
        credential: As whom.
        tls_ca: PEM file of the CA behind the server's certificate; None: the system's.
        sleep: Waits as long as Azure says when it throttles.

    Raises:
        InvalidInputError: The address or the PEM file cannot be used.
    """

    def __init__(
        self,
        url: str,
        api_version: str,
        credential: Credential,
        tls_ca: Path | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.url = _check(url)
        self._version = {"api-version": api_version}
        self._credential, self._sleep = credential, sleep
        self._http = httpx.Client(
            base_url=url,
            headers={"User-Agent": "edgefleet", "Accept": "application/json"},
            timeout=TIMEOUT,
            verify=_trusted(tls_ca),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.close()

    def ask(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        """Send a request and return an answer that is 2xx.

        Raises:
            UnreachableError: Nobody answers, or Azure goes on throttling.
            NotFoundError: There is no such thing.
            RefusedError: Azure says no.
            InvalidInputError: Azure says that the request is wrong.
        """
        for attempt in range(ATTEMPTS):
            response = self._send(method, path, body, headers or {})
            if response.status_code not in {429, 503} or attempt == ATTEMPTS - 1:
                break
            self._sleep(_wait_s(response, attempt))
        if not response.is_success:
            raise to_error(response.status_code, response.content, f"{method} {path}")
        return response

    def _send(
        self, method: str, path: str, body: Any, headers: Mapping[str, str]
    ) -> httpx.Response:
        try:
            return self._http.request(
                method,
                path,
                params=self._version,
                json=body,
                headers={"Authorization": self._credential.authorization(), **headers},
            )
        except httpx.HTTPError as error:
            raise UnreachableError(
                f"{self.url} does not answer: {str(error) or repr(error)}.",
                code="azure_unreachable",
                hint="Look at the name of the service and at your way out.",
            ) from error


def to_error(status: int, body: bytes, what: str) -> EdgeFleetError:
    """Return the error for an answer of Azure's that is not 2xx.

    Args:
        status: HTTP status.
        body: The answer's body: IoT services have `message`, Resource Manager has `error`.
        what: What was asked, for example `GET /enrollmentGroups/x`.
    """
    try:
        found = json.loads(body)
    except ValueError:
        found = {}
    if isinstance(found, dict) and isinstance(found.get("error"), dict):
        found = found["error"]
    fields = {key.lower(): value for key, value in found.items()} if isinstance(found, dict) else {}
    said = str(fields.get("message") or "").strip().rstrip(".")
    message = f"Azure answered {what} with {status}{f': {said}' if said else ''}."
    kind: type[EdgeFleetError] = {
        400: InvalidInputError, 404: NotFoundError, 429: UnreachableError, 503: UnreachableError,
    }.get(status, RefusedError)  # fmt: skip
    return kind(message, code=f"azure_{status}", hint=HINTS.get(status, ""))


def _wait_s(response: httpx.Response, attempt: int) -> float:
    try:
        asked = float(response.headers.get("retry-after", ""))
    except ValueError:
        asked = 2.0**attempt
    return min(max(asked, 0.0), LONGEST_WAIT_S)


def _check(url: str) -> str:
    parts = httpx.URL(url)
    loopback = parts.host in {"127.0.0.1", "localhost", "::1"}
    if not parts.host or (parts.scheme != "https" and not (parts.scheme == "http" and loopback)):
        raise InvalidInputError(
            f"{url[:200]!r} is not the address of a service of Azure.",
            code="invalid_address",
            hint="An address looks like https://NAME.azure-devices-provisioning.net.",
        )
    return url


def _trusted(tls_ca: Path | None) -> ssl.SSLContext | bool:
    if tls_ca is None:
        return True
    try:
        return ssl.create_default_context(cafile=str(tls_ca))
    except (OSError, ssl.SSLError) as error:
        raise InvalidInputError(
            f"{tls_ca} holds no certificate of a CA: {error}.", code="not_readable"
        ) from error
