"""From the wire into the rooms: every message of a device finds the room that takes it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from sqlmodel import Session

from edgefleet_cloud.database import Database
from edgefleet_cloud.devices import repository as devices
from edgefleet_cloud.ports import Transport
from edgefleet_cloud.reports.ingest import Ingest
from edgefleet_cloud.rollouts.announcer import Announcer
from edgefleet_shared import strict_json, topics
from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.messages import Get

CONNECT_S = 5.0
GET_MAX_BYTES = 1024

_log = logging.getLogger(__name__)


class Uplink:
    """Runs the transport and hands its messages on; a `ports.BackgroundService`.

    Args:
        transport: Carries messages.
        ingest: Takes what devices report.
        announcer: Answers devices that ask what to run.
        database: For the transaction of an answer.
        greet: Told, in that transaction, of each device that asks, which it does on connecting.
    """

    def __init__(
        self,
        transport: Transport,
        ingest: Ingest,
        announcer: Announcer,
        database: Database,
        greet: Callable[[Session, str], None],
    ) -> None:
        self._transport = transport
        self._ingest = ingest
        self._announcer = announcer
        self._database = database
        self._greet = greet

    async def start(self) -> None:
        """Connect; a broker or hub that is away is waited for in the background after 5 s."""
        self._transport.start(self.handle)
        deadline = asyncio.get_running_loop().time() + CONNECT_S
        while not self._transport.connected:  # another thread sets it
            if asyncio.get_running_loop().time() > deadline:
                _log.warning("Not every way to devices is open yet; it is tried on and on.")
                break
            await asyncio.sleep(0.02)
        await asyncio.to_thread(self._announcer.recover)

    async def stop(self) -> None:
        """Disconnect; what was not acknowledged comes again at the next start."""
        await asyncio.to_thread(self._transport.stop)

    def facts(self) -> Mapping[str, str]:
        """Return nothing: the broker speaks for itself."""
        return {}

    def handle(self, topic: str, payload: bytes) -> None:
        """Take one message; on return it is on disk, or refused for good.

        Raises:
            UnavailableError: Not now; it must come again.
        """
        parsed = topics.parse(topic)
        if not payload:
            return  # a retained message was emptied, which is nothing to report
        if parsed is None or parsed.direction != "up":
            _log.warning("Nobody takes messages on %s", topic[:200])
        elif parsed.kind == "get" and not parsed.rest:
            self._answer(parsed.device, payload)
        else:
            self._ingest.handle(parsed.device, parsed.kind, parsed.rest, payload)

    def _answer(self, device: str, payload: bytes) -> None:
        try:
            strict_json.decode(payload, Get, max_bytes=GET_MAX_BYTES, what="get")
        except InvalidInputError as error:
            _log.warning("%s asks for its document in vain: %s", device[:80], error)
            return
        with self._database.write() as session:
            if devices.find(session, device) is not None:
                self._announcer.answer(session, device)
                self._greet(session, device)
