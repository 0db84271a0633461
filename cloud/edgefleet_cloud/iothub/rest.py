"""A hub's service API over HTTPS: registry, twins, queries, direct methods."""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from edgefleet_cloud.errors import NotFoundError
from edgefleet_cloud.hub_config import IotHub
from edgefleet_cloud.iothub import tokens
from edgefleet_cloud.iothub.tokens import Authority
from edgefleet_shared.errors import InvalidInputError, UnavailableError

if TYPE_CHECKING:
    import httpx

API_VERSION = "2021-04-12"
TIMEOUT_S = 20.0
RETRY_AFTER_S = 5.0
"""After a 429 that does not say how long."""
RETRY_AFTER_MAX_S = 300.0
BULK = 100
"""Devices that one bulk request may name."""
_SHOWN = 300


class Throttled(UnavailableError):  # noqa: N818 - it is no fault, it is a word to wait
    """The hub's tier takes no more for now: 429.

    Attributes:
        retry_after_s: Seconds to wait, as the hub says.
    """

    default_code = "iothub_throttled"

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RefusedError(InvalidInputError):
    """The hub refuses the request for what it holds; again would not help.

    Attributes:
        status: 400, 409, 412 or 413, as HTTP has it.
    """

    default_code = "iothub_refused"

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class HubRest:
    """The service API of one hub. Safe from any thread.

    Args:
        hub: Which.
        authority: Who we are to it; None = as the hub's configuration says.
        timeout_s: How long one request may take, seconds.
        connections: How many requests may be under way at once.

    Raises:
        InvalidInputError: httpx is missing, or a file cannot be used.
    """

    def __init__(
        self,
        hub: IotHub,
        authority: Authority | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
        connections: int = 64,
    ) -> None:
        self._authority = authority or tokens.of(hub)
        self._hub = hub
        self._client = _client(hub, timeout_s, connections)

    def close(self) -> None:
        """Close every connection."""
        self._client.close()

    def twin(self, device: str, module: str = "") -> dict[str, Any] | None:
        """Return a twin, or None if the registry knows no such device."""
        return self._find(f"/twins/{_path(device, module)}")

    def patch_twin(
        self, device: str, patch: Mapping[str, Any], module: str = "", *, etag: str = "*"
    ) -> dict[str, Any]:
        """Merge a patch into a twin and return the whole; None as a value removes a key.

        Args:
            device: Whose.
            patch: With `tags` and `properties.desired`, as the twin has them.
            module: Of which module identity; '' = the device's own.
            etag: Only if the twin still has this one.

        Raises:
            NotFoundError: The registry knows no such device.
            RefusedError: The patch breaks a rule of twins, or the twin has another etag.
            Throttled: The tier's limit of twin updates is reached.
            UnavailableError: The hub does not answer, or does not know us.
        """
        headers = {"If-Match": _quoted(etag)}
        return self._ask("PATCH", f"/twins/{_path(device, module)}", patch, headers)

    def device(self, device: str) -> dict[str, Any] | None:
        """Return a device's identity as the registry has it, or None."""
        return self._find(f"/devices/{_path(device)}")

    def put_device(self, identity: Mapping[str, Any], *, etag: str = "") -> dict[str, Any]:
        """Create a device, or with an etag (`*` = whichever) change the one that is there.

        Raises:
            RefusedError: It exists (409), or has another etag (412).
        """
        headers = {"If-Match": _quoted(etag)} if etag else None
        return self._ask("PUT", f"/devices/{_path(str(identity['deviceId']))}", identity, headers)

    def delete_device(self, device: str) -> None:
        """Take a device out of the registry, its twin with it. That it is not there is fine."""
        try:
            self._ask("DELETE", f"/devices/{_path(device)}", headers={"If-Match": "*"})
        except NotFoundError:
            return

    def bulk(self, identities: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Do what each identity's `importMode` says, up to 100 of them; return the errors.

        Raises:
            InvalidInputError: They are too many.
        """
        if len(identities) > BULK:
            raise InvalidInputError(f"{len(identities)} devices are more than {BULK} at once.")
        try:
            answer = self._ask("POST", "/devices", list(identities))
        except RefusedError as error:
            raise InvalidInputError(f"None was taken: {error}", code="iothub_refused") from error
        return list(answer.get("errors") or [])

    def query(
        self, sql: str, page_size: int = 100, before_page: Callable[[], None] = lambda: None
    ) -> Iterator[dict[str, Any]]:
        """Yield every row of a query, page after page; `before_page` may wait for the limit."""
        following = ""
        while True:
            before_page()
            rows, following = self.page(sql, following, page_size)
            yield from rows
            if not following:
                return

    def page(
        self, sql: str, following: str = "", page_size: int = 100
    ) -> tuple[list[dict[str, Any]], str]:
        """Return one page of a query and what continues it; '' = it was the last.

        Args:
            sql: In IoT Hub's query language.
            following: What the page before has returned; '' = the first page.
            page_size: Rows at most.
        """
        headers = {"x-ms-max-item-count": str(page_size)}
        if following:
            headers["x-ms-continuation"] = following
        answer = self._send("POST", "/devices/query", {"query": sql}, headers)
        return _rows(answer), answer.headers.get("x-ms-continuation", "")

    def invoke(
        self, device: str, method: str, payload: object, module: str = "", *, timeout_s: int = 30
    ) -> dict[str, Any]:
        """Call a direct method of a device that is connected; return `status` and `payload`.

        Raises:
            NotFoundError: It is unknown or not connected.
            UnavailableError: It does not answer in time (504).
        """
        body = {
            "methodName": method,
            "payload": payload,
            "responseTimeoutInSeconds": max(5, min(timeout_s, 300)),
            "connectTimeoutInSeconds": 0,
        }
        wait = timeout_s + TIMEOUT_S
        return self._ask("POST", f"/twins/{_path(device, module)}/methods", body, timeout_s=wait)

    def statistics(self) -> dict[str, Any]:
        """Return `totalDeviceCount`, `enabledDeviceCount` and `disabledDeviceCount`."""
        return self._ask("GET", "/statistics/devices")

    def _find(self, path: str) -> dict[str, Any] | None:
        try:
            return self._ask("GET", path)
        except NotFoundError:
            return None

    def _ask(
        self,
        verb: str,
        path: str,
        body: object = None,
        headers: Mapping[str, str] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> dict[str, Any]:
        found = _json(self._send(verb, path, body, headers, timeout_s))
        if not isinstance(found, dict):
            raise _unavailable(self._hub, "answers with something else than an object")
        return found

    def _send(
        self,
        verb: str,
        path: str,
        body: object,
        headers: Mapping[str, str] | None,
        timeout_s: float | None = None,
    ) -> httpx.Response:
        import httpx

        # Through a gateway it is still the hub that must prove who it is.
        more: dict[str, Any] = {"extensions": {"sni_hostname": self._hub.host}}
        if body is not None:
            more["content"] = json.dumps(body)
        if timeout_s is not None:
            more["timeout"] = timeout_s
        sent = {
            "Host": self._hub.host,
            "Authorization": self._authority.authorization(),
            "Content-Type": "application/json; charset=utf-8",
            **(headers or {}),
        }
        try:
            answer = self._client.request(verb, path, headers=sent, **more)
        except (httpx.HTTPError, ssl.SSLError) as error:
            raise _unavailable(self._hub, f"does not answer: {error or repr(error)}") from error
        if answer.is_success:
            return answer
        if answer.status_code == 401:
            self._authority.forget()
        raise _error(self._hub, answer, f"{verb} {path}")


def _client(hub: IotHub, timeout_s: float, connections: int) -> httpx.Client:
    try:
        import httpx
    except ImportError as error:
        raise InvalidInputError(
            "Azure IoT Hub needs httpx, which is not installed.",
            code="iothub_extra",
            hint="pip install 'edgefleet-cloud[iothub]'",
        ) from error
    try:
        context = ssl.create_default_context(cafile=hub.ca or None)
    except OSError as error:  # ssl.SSLError is one
        raise InvalidInputError(
            f"iothub {hub.name!r}: ca = {hub.ca!r} cannot be used: {error}.", code="iothub_ca"
        ) from error
    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
    return httpx.Client(
        base_url=hub.service_url,
        params={"api-version": API_VERSION},
        verify=context,
        timeout=timeout_s,
        limits=limits,
    )


def _error(hub: IotHub, answer: httpx.Response, what: str) -> Exception:
    status = answer.status_code
    said = f"{what}: {_message(answer)}"
    if status == 404:
        return NotFoundError(f"IoT Hub {hub.name}: {said}", code="iothub_unknown_device")
    if status == 429:
        return Throttled(f"IoT Hub {hub.name} is throttled: {said}", _retry_after(answer))
    if status in {401, 403}:
        return UnavailableError(
            f"IoT Hub {hub.name} does not know us: {said}",
            code="iothub_credentials",
            hint="Check the connection_file (policy `service` with registryReadWrite), or the "
            "role IoT Hub Data Contributor; and this machine's clock.",
        )
    if 400 <= status < 500 and status not in {408, 425}:
        return RefusedError(f"IoT Hub {hub.name} refuses: {said}", status)
    return _unavailable(hub, f"fails: {said}")


def _unavailable(hub: IotHub, what: str) -> UnavailableError:
    return UnavailableError(
        f"IoT Hub {hub.name} {what}",
        code="iothub",
        hint=f"Is {hub.service_url} reached from here?",
    )


def _message(answer: httpx.Response) -> str:
    try:
        found = answer.json()
    except ValueError:
        return f"{answer.status_code} {answer.text[:_SHOWN]}"
    text = found.get("Message") or found.get("message") if isinstance(found, dict) else found
    return f"{answer.status_code} {str(text)[:_SHOWN]}"


def _retry_after(answer: httpx.Response) -> float:
    """Return seconds; a date, or no word at all, counts as the usual wait."""
    text = answer.headers.get("Retry-After", "")
    if not text.isascii() or not text.isdigit():
        return RETRY_AFTER_S
    return min(float(text), RETRY_AFTER_MAX_S)


def _json(answer: httpx.Response) -> object:
    if not answer.content:
        return {}
    try:
        return answer.json()
    except ValueError as error:
        raise UnavailableError(
            "IoT Hub's answer is not JSON.", code="iothub", hint="Is there a proxy in between?"
        ) from error


def _rows(answer: httpx.Response) -> list[dict[str, Any]]:
    found = _json(answer)
    return [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []


def _path(device: str, module: str = "") -> str:
    named = quote(device, safe="")
    return f"{named}/modules/{quote(module, safe='')}" if module else named


def _quoted(etag: str) -> str:
    return etag if etag == "*" else f'"{etag.strip(chr(34))}"'
