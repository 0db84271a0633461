"""A thin client of the fleet manager's HTTP API: JSON in, JSON out, errors with a hint."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import quote

import httpx

from edgefleet_provisioning import problems
from edgefleet_provisioning.errors import RefusedError, UnreachableError
from edgefleet_provisioning.settings import Connection
from edgefleet_shared import reasons
from edgefleet_shared.errors import InvalidInputError

TIMEOUT = httpx.Timeout(30.0, connect=5.0)
STREAM_TIMEOUT = httpx.Timeout(30.0, connect=5.0, read=45.0)  # the server pings more often
PAGE_SIZE = 200

Params = Mapping[str, str | int]


class ServerEvent(NamedTuple):
    """One server-sent event: its number as text, and its decoded data."""

    id: str
    data: dict[str, Any]


class Api:
    """One connection to a fleet manager; a context manager.

    Args:
        connection: Where, and as whom.
        reason: Why, for the record of what is changed.

    Raises:
        InvalidInputError: The address, token or reason cannot be used.
    """

    def __init__(self, connection: Connection, reason: str = "") -> None:
        self.server = connection.server
        headers = {"User-Agent": "edgefleet", "Accept": "application/json"}
        if connection.token:
            headers["Authorization"] = f"Bearer {connection.token}"
        if not re.fullmatch(r"[\x21-\x7e]*", connection.token):
            raise InvalidInputError(
                "The API token holds a character that cannot be sent.",
                code="bad_token",
                hint="Look for a space or a line break in it.",
            )
        if reason:
            headers[reasons.HEADER] = reasons.encode_reason(reason)
        url = _base_url(connection.server)
        self._http = httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.close()

    def get(self, path: str, **params: str | int) -> Any:
        """Return a resource.

        Raises:
            UnreachableError: Nobody answers.
            RefusedError: The server says no, `NotFoundError` if there is no such thing.
            InvalidInputError: The server says that the request is wrong.
        """
        return _json(self.request("GET", path, params=params))

    def items(self, path: str, limit: int | None = None, **params: str) -> list[Any]:
        """Return a list, over all its pages or up to `limit` items; raises as `get`.

        Args:
            path: The list.
            limit: Items to stop at.
            params: Query; an empty value is left out.
        """
        query = {name: value for name, value in params.items() if value}
        found: list[Any] = []
        page = ""
        while True:
            size = min(PAGE_SIZE, limit - len(found)) if limit else PAGE_SIZE
            more = {"page_token": page} if page else {}
            answer = self.get(path, page_size=size, **query, **more)
            if not isinstance(answer, dict) or not isinstance(answer.get("items"), list):
                raise _foreign(path)
            found += answer["items"]
            page = answer.get("next_page_token") or ""
            if not page or (limit and len(found) >= limit):
                return found

    def post(self, path: str, body: Any, headers: Mapping[str, str] | None = None) -> Any:
        """Send a document and return the answer; raises as `get`."""
        return _json(self.request("POST", path, json=body, headers=headers))

    def change(self, method: str, path: str, body: Any) -> Any:
        """PATCH or PUT a resource as it now is; raises as `get`."""
        etag = self.request("GET", path).headers.get("etag", "")
        headers = {"If-Match": etag} if etag else None
        return _json(self.request(method, path, json=body, headers=headers))

    def delete(self, path: str) -> None:
        """Delete a resource; raises as `get`."""
        self.request("DELETE", path)

    def raw(self, path: str) -> bytes:
        """Return a resource's bytes; raises as `get`."""
        return self.request("GET", path, headers={"Accept": "*/*"}).content

    def stream(self, path: str) -> Iterator[bytes]:
        """Yield a resource's bytes as they come; raises as `get`."""
        try:
            with self._http.stream("GET", path, headers={"Accept": "*/*"}) as response:
                if not response.is_success:
                    body = response.read()
                    raise problems.to_error(response.status_code, body, f"GET {path}")
                yield from response.iter_bytes()
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send a request and return an answer that is 2xx; raises as `get`."""
        response = self.send(method, path, **options)
        if not response.is_success:
            raise problems.to_error(response.status_code, response.content, f"{method} {path}")
        return response

    def send(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send a request and return the answer, whatever it says.

        Raises:
            UnreachableError: Nobody answers.
        """
        try:
            return self._http.request(method, path, **options)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    def events(self, path: str, after: str = "") -> Iterator[ServerEvent]:
        """Follow a stream of server-sent events until the server ends it; raises as `get`."""
        headers = {"Accept": "text/event-stream"}
        if after:
            headers["Last-Event-ID"] = after
        try:
            with self._http.stream(
                "GET", path, headers=headers, timeout=STREAM_TIMEOUT
            ) as response:
                if not response.is_success:
                    body = response.read()
                    raise problems.to_error(response.status_code, body, f"GET {path}")
                yield from _parse_events(response.iter_lines(), path)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: httpx.HTTPError) -> UnreachableError:
        return UnreachableError(
            f"The fleet manager at {self.server} does not answer: {str(error) or repr(error)}.",
            hint="Start it with `edgefleet-cloud serve`, or give its address with --server.",
        )


def segment(value: str) -> str:
    """Return a value as one segment of a path."""
    return quote(value, safe="")


def _base_url(server: str) -> httpx.URL:
    try:
        return httpx.URL(server)
    except httpx.InvalidURL as error:
        raise InvalidInputError(
            f"{server[:200]!r} is not the address of a server: {error}.",
            code="invalid_address",
            hint="An address looks like http://127.0.0.1:8080.",
        ) from error


def _json(response: httpx.Response) -> Any:
    if response.status_code == httpx.codes.NO_CONTENT or not response.content:
        return None
    try:
        return response.json()
    except ValueError as error:
        raise _foreign(str(response.url)) from error


def _foreign(what: str) -> RefusedError:
    return RefusedError(
        f"{what} does not answer as a fleet manager does.",
        code="not_a_fleet_manager",
        hint="Is that address a fleet manager of this version?",
    )


def _parse_events(lines: Iterator[str], path: str) -> Iterator[ServerEvent]:
    """Yield events of a stream (WHATWG HTML, section 9.2.6); comments keep it alive."""
    number, data = "", list[str]()
    for line in lines:
        if not line:
            if data:
                try:
                    document = json.loads("\n".join(data))
                except ValueError as error:
                    raise _foreign(path) from error
                yield ServerEvent(number, document)
            data = []
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "id":
            number = value
        elif field == "data":
            data.append(value)
