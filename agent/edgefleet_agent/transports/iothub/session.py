"""One connection from its opening to its end: twin, reports, messages and methods."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, NamedTuple

from edgefleet_agent.ports import TransportEvents
from edgefleet_agent.transports.iothub import speech
from edgefleet_agent.transports.iothub.fetching import Fetching
from edgefleet_agent.transports.iothub.link import BrokenLinkError, HubRefusalError, Link
from edgefleet_agent.transports.iothub.pacing import Done, Reports
from edgefleet_agent.transports.iothub.speech import Answer, Who
from edgefleet_shared import strict_json, twin
from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.messages import Get, Presence

FRESH_S = 5.0
"""A whole twin serves so long for whoever asks for it."""
PATIENCE_MAX_S = 60.0
THROTTLED = 429
UNFIT = frozenset({400, 413})
"""The twin takes no such thing: other software may have filled it."""


class Around(NamedTuple):
    """What outlives a connection.

    Attributes:
        who: For presence and `ping`.
        events: The agent.
        reports: What waits for the twin.
        fetching: Brings what the twin only points to.
        again: Sends the newest report again; returns False if there is none yet.
        configured: Told what our section of the twin holds, and whether that is a patch or whole.
    """

    who: Who
    events: TransportEvents
    reports: Reports
    fetching: Fetching
    again: Callable[[], bool]
    configured: Callable[[Mapping[str, Any], bool], None]


class Session:
    """What is done by one connection.

    Args:
        client: The SDK's, not connected.
        token_s: Seconds after which it renews its token; None: it has none.
        around: What was before and will be after.
    """

    def __init__(self, client: Any, token_s: float | None, around: Around) -> None:
        self.link = Link(client, token_s, self._patched, self._method, self._renewed)
        self._around = around
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._version = -1  # of desired properties, the newest we have seen
        self._whole: tuple[float, Mapping[str, Any]] = (float("-inf"), {})
        self._shown: set[str] = set()
        self._seen = ""

    async def open(self) -> None:
        """Connect, and get the twin as it stands once changes to it are heard.

        Raises:
            BrokenLinkError: It could not be had; `link.reason` says why.
        """
        await self.link.open()
        await self._twin()
        await self.link.listen()
        self._note(await self._twin())

    async def run(self) -> None:
        """Say that we are here, hand over what the twin holds, and report until it breaks."""
        self.say(online=True)
        self._heed(self._whole[1])
        self._spawn(self._report())
        await self.link.broken.wait()

    def say(self, *, online: bool) -> asyncio.Task[None]:
        """Say whether we are here, if there is somebody to speak for."""
        who = self._around.who
        if not who.boot:
            return self._spawn(asyncio.sleep(0))
        payload = strict_json.encode(Presence(1, online, who.boot, who.version))
        return self._spawn(self._send(payload, twin.message_properties("presence")))

    def ask(self, have: int) -> None:
        """Hand over the document that is there, and ask for the one that should be."""
        self._spawn(self._ask(have))

    def publish(self, stream: str, sealed: bytes, done: Done) -> None:
        """Send a batch of a stream."""
        self._spawn(self._publish(stream, sealed, done))

    def reports_changed(self) -> None:
        """A report waits."""
        self._wake.set()

    async def close(self) -> None:
        """Let go of everything; each `done` is told."""
        await self.link.close()
        if self._tasks:  # none is cancelled: each ends by itself now that the link is broken
            await asyncio.wait(self._tasks)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        async def run() -> None:
            try:
                await work
            except BrokenLinkError:
                return

        task = asyncio.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # What comes down.

    def _patched(self, patch: Mapping[str, Any]) -> None:
        version = patch.get("$version", 0)
        if version <= self._version:
            return  # the twin that we have got meanwhile holds it
        missed = version > self._version + 1
        self._version = version
        self._heed(patch, whole=False)
        if missed:
            self._renewed()

    def _renewed(self) -> None:
        """Patches may have passed us by."""
        self._spawn(self._look())

    async def _look(self) -> None:
        if self._note(await self._twin()):
            self._heed(self._whole[1])

    def _note(self, found: Mapping[str, Any]) -> bool:
        """Remember a whole twin; return whether it is the newest."""
        desired = found.get("desired", {})
        version = desired.get("$version", 0)
        if version < self._version:
            return False
        self._version = version
        self._whole = (time.monotonic(), desired)
        self._shown = speech.shown_slots(found.get("reported", {}))
        if twin.SECTION not in desired:
            self._seen = ""
        return True

    def _heed(self, properties: Mapping[str, Any], *, whole: bool = True) -> None:
        """Hand over what desired properties, or a patch of them, hold."""
        around = self._around
        try:
            document = twin.read_document(properties)
        except InvalidInputError:
            around.fetching.want("?")  # not to be read: the fleet manager knows better
        else:
            if document is not None:
                self._seen = document.sha256
                if document.payload is None:
                    around.fetching.want(document.sha256)
                else:
                    around.fetching.forget()
                    around.events.on_desired(document.payload)
        if word := twin.read_renew(properties):
            around.events.on_renew(word)
        if whole or twin.SECTION in properties:
            section = properties.get(twin.SECTION)
            if not isinstance(section, Mapping):
                section, whole = {}, True
            around.configured(section, whole)

    def _method(self, name: str, payload: object) -> Answer:
        around = self._around
        return speech.answer(
            name, payload, around.who, report=around.again, renew=around.events.on_renew
        )

    # What goes up.

    async def _ask(self, have: int) -> None:
        at, desired = self._whole
        current = desired.get("$version", 0) == self._version
        if time.monotonic() - at > FRESH_S or not current:
            self._note(await self._twin())
        self._heed(self._whole[1])
        await self._send(
            strict_json.encode(Get(1, have)), twin.message_properties("get", seen=self._seen)
        )

    async def _publish(self, stream: str, sealed: bytes, done: Done) -> None:
        held = False
        try:
            await self._send(sealed, twin.message_properties("ev", stream))
            held = True
        finally:
            done(held)

    async def _send(self, payload: bytes, properties: Mapping[str, str]) -> None:
        await self.link.send(payload, properties)

    async def _report(self) -> None:
        reports = self._around.reports
        while True:
            wait = reports.wait_s()
            if wait is None:
                await self._pause(self._wake, None)
                self._wake.clear()
            elif wait > 0:
                await self._pause(None, wait)
            else:
                await self._report_one(reports.take())

    async def _report_one(self, sealed: bytes) -> None:
        reports = self._around.reports
        patch = speech.report_patch(sealed, self._shown)
        try:
            if patch is None:
                await self._send(sealed, twin.message_properties("reported"))
            else:
                await self._patch(patch, sealed)
        except HubRefusalError:
            reports.refused()
            return
        for done in reports.held():
            done(True)

    async def _patch(self, patch: dict[str, Any], sealed: bytes) -> None:
        try:
            await self.link.report(patch)
        except HubRefusalError as error:
            if error.status not in UNFIT:
                raise
            await self._send(sealed, twin.message_properties("reported"))
            return
        slots = patch[twin.SECTION].get("slots", {})
        self._shown = {name for name, slot in slots.items() if slot is not None} or self._shown

    async def _twin(self) -> dict[str, Any]:
        """Return the whole twin; a hub that is busy is asked again, a little later each time."""
        delay = 1.0
        while True:
            try:
                return await self.link.twin()
            except HubRefusalError:
                wait = random.uniform(delay / 2, delay)  # noqa: S311 - jitter, no secret
                await self._pause(None, wait)
                delay = min(2 * delay, PATIENCE_MAX_S)

    async def _pause(self, event: asyncio.Event | None, seconds: float | None) -> None:
        """Wait for an event, or so long.

        Raises:
            BrokenLinkError: The connection has broken meanwhile.
        """
        waits = [asyncio.ensure_future(self.link.broken.wait())]
        if event is not None:
            waits.append(asyncio.ensure_future(event.wait()))
        try:
            await asyncio.wait(waits, timeout=seconds, return_when="FIRST_COMPLETED")
        finally:
            for one in waits:
                one.cancel()
        if self.link.broken.is_set():
            raise BrokenLinkError(self.link.reason)
