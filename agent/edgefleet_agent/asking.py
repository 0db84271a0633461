"""Ask for the desired document over HTTP, for as long as the transport has not brought it."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable
from datetime import datetime

import urllib3

from edgefleet_agent.identity import Identity
from edgefleet_shared.errors import EdgeFleetError, UnavailableError
from edgefleet_shared.messages import DESIRED_MAX_BYTES

LOOK_S = 30.0
TIMEOUT_S = 30.0
SLOWEST = 12
"""While nothing changes it is asked ever less often, down to this many periods apart."""


class Asking:
    """When to ask. All but the request itself happens in agentd's own thread.

    Args:
        period_s: Seconds until it is asked first; 0: never.
        fetch: Returns the document, or None if there is none; blocks.
        arrived: Told of the answer, in the thread that asked.
        failed: Told why there is no answer, in the thread that asked.
    """

    def __init__(
        self,
        period_s: float,
        fetch: Callable[[], bytes | None],
        arrived: Callable[[bytes | None], None],
        failed: Callable[[EdgeFleetError], None],
    ) -> None:
        self._period_s = self._gap_s = period_s
        self._fetch, self._arrived, self._failed = fetch, arrived, failed
        self._due: float | None = None
        self._busy = threading.Event()

    def lacking(self) -> None:
        """Something may be missing: no connection, a refusal, a document that was cut off."""
        if self._due is None and self._period_s:
            self._gap_s = self._period_s
            self._due = self._next()

    def satisfied(self) -> None:
        """The newest document is here."""
        self._due = None

    def wait_s(self) -> float:
        """Ask if it is time to; return in how many seconds to look again."""
        if self._due is None or self._busy.is_set():
            return LOOK_S
        if (left := self._due - time.monotonic()) > 0:
            return left
        self._gap_s = min(2 * self._gap_s, SLOWEST * self._period_s)
        self._due = self._next()
        self._busy.set()
        threading.Thread(target=self._ask, name="asking", daemon=True).start()
        return LOOK_S

    def _next(self) -> float:
        return time.monotonic() + random.uniform(self._gap_s / 2, self._gap_s)  # noqa: S311 - jitter

    def _ask(self) -> None:
        try:
            found = self._fetch()
        except EdgeFleetError as error:
            self._failed(error)
        else:
            self._arrived(found)
        finally:
            self._busy.clear()


def fetch(identity: Identity, now: datetime) -> bytes | None:
    """Return this device's desired document from the fleet manager; None if it has none.

    Args:
        identity: Whose; its key signs the request.
        now: The device's time.

    Raises:
        UnavailableError: No answer that can be used (code `fleet_manager_unreachable`).
    """
    url = f"{identity.api}/v1/devices/{identity.device}/desired"
    try:
        response = urllib3.request(
            "GET",
            url,
            headers={"Authorization": identity.authorization(url, now)},
            timeout=TIMEOUT_S,
            retries=False,
            preload_content=False,
        )
        try:
            # Of one that is too long only as much is kept as shows that it is.
            data = response.read(DESIRED_MAX_BYTES + 1)
        finally:
            response.close()
    except (urllib3.exceptions.HTTPError, ValueError) as error:
        raise _unreachable(url, str(error)) from error
    if response.status == 200:
        return data
    if response.status == 404 and _code(data) == "not_assigned":
        return None
    raise _unreachable(url, f"it answered {response.status} {_code(data)}".strip())


def _unreachable(url: str, why: str) -> UnavailableError:
    return UnavailableError(
        f"The desired document cannot be had from {url}: {why}.", code="fleet_manager_unreachable"
    )


def _code(data: bytes) -> str:
    try:
        return str(json.loads(data)["code"])
    except (ValueError, KeyError, TypeError):
        return ""
