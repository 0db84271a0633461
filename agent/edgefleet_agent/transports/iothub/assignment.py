"""Which hub: the one that the address names, or the one that the provisioning service assigns.

The assignment is remembered on disk, so that a start asks nobody. It is asked for anew when the
hub refuses us, or cannot be reached three times in a row: then the device may have been moved.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any, Literal

import msgspec

from edgefleet_agent import durable
from edgefleet_agent.transports.iothub.address import Address
from edgefleet_agent.transports.iothub.clients import Credentials, dps_client
from edgefleet_shared import strict_json
from edgefleet_shared.errors import InvalidInputError, UnavailableError

UNREACHABLE = 3
REGISTER_S = 120.0
CLOSE_S = 10.0
MAX_BYTES = 4096


class _Assigned(msgspec.Struct, frozen=True):
    """`<state_dir>/iothub.json`; `scope` and `registration` say whose assignment it is."""

    v: Literal[1]
    scope: str
    registration: str
    host: str


class Assignment:
    """The hub of this device.

    Args:
        address: Where to ask.
        known: Who we are.
        path: Where the assignment is remembered.
    """

    def __init__(self, address: Address, known: Credentials, path: Path) -> None:
        self._address, self._known, self._path = address, known, path
        self._failures = 0
        self._anew = False

    async def host(self) -> str:
        """Return the hub's host name.

        Raises:
            UnavailableError: The provisioning service assigns none (code `iothub_dps`).
            Exception: What the SDK says of the connection to it.
        """
        if not self._address.scope:
            return self._address.host
        found = None if self._anew else self._remembered()
        if found is None:
            found = await self._register()
            with contextlib.suppress(OSError):  # unwritten, it is only asked for once more
                durable.atomic_write(self._path, strict_json.encode(found))
            self._anew, self._failures = False, 0
        return found.host

    def welcomed(self) -> None:
        """The hub has taken us."""
        self._failures = 0

    def refused(self) -> None:
        """The hub does not take us."""
        self._anew = True

    def unreachable(self) -> None:
        """The hub could not be reached."""
        self._failures += 1
        if self._failures >= UNREACHABLE:
            self._anew = True

    def _remembered(self) -> _Assigned | None:
        data = durable.read_bytes(self._path)
        try:
            found = data and strict_json.decode(
                data, _Assigned, max_bytes=MAX_BYTES, what="file iothub.json"
            )
        except InvalidInputError:
            return None  # damaged: the service is asked
        mine = (self._address.scope, self._known.registration)
        return found if found and (found.scope, found.registration) == mine else None

    async def _register(self) -> _Assigned:
        client = dps_client(self._known, self._address.host, self._address.scope)
        try:
            result = await asyncio.wait_for(client.register(), REGISTER_S)
        finally:
            await _close(client)
        state = result.registration_state
        if result.status != "assigned" or not state.assigned_hub:
            raise UnavailableError(
                f"The provisioning service assigns no hub: {result.status}.", code="iothub_dps"
            )
        if state.device_id != self._known.device:
            raise UnavailableError(
                f"The provisioning service calls us {state.device_id!r}, not "
                f"{self._known.device!r}.",
                code="iothub_dps",
                hint="The enrolment must give the device its id in the fleet.",
            )
        return _Assigned(1, self._address.scope, self._known.registration, state.assigned_hub)


async def _close(client: Any) -> None:
    """End a client that may have failed: it has no word for that, and would stay connected."""
    pipeline = client._pipeline  # noqa: SLF001 - there is no other way to it
    ended = asyncio.Event()
    end = asyncio.get_running_loop().call_soon_threadsafe
    with contextlib.suppress(Exception):  # it has ended by itself, as after a success
        pipeline.shutdown(callback=lambda **_: end(ended.set))
        await asyncio.wait_for(ended.wait(), CLOSE_S)
