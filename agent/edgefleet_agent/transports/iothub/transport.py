"""Azure IoT Hub through azure-iot-device: the transport port.

A thread of our own runs a loop, and all happens in it. Each connection has a client of its own, as
with MQTT, so that nothing of a broken one lingers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import re
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from azure.iot.device import exceptions as sdk

from edgefleet_agent.ports import TransportEvents
from edgefleet_agent.transports.iothub.address import parse, parse_proxy
from edgefleet_agent.transports.iothub.assignment import Assignment
from edgefleet_agent.transports.iothub.clients import Credentials, hub_client
from edgefleet_agent.transports.iothub.fetching import Fetching
from edgefleet_agent.transports.iothub.link import BrokenLinkError, distrusted, told
from edgefleet_agent.transports.iothub.pacing import Done, Reports
from edgefleet_agent.transports.iothub.session import Around, Session
from edgefleet_agent.transports.iothub.speech import Who
from edgefleet_shared.errors import InvalidInputError, UnavailableError

logger = logging.getLogger("edgefleet")

BACKOFF_MIN_S = 1.0
STEADY_S = 30.0
"""A connection that broke sooner was no success: whoever is kicked again and again slows down."""
GOODBYE_S = 2.0
END_S = 30.0
_UNKNOWN = re.compile(r"status code 40[13]\b")  # of the provisioning service
_DISTRUST = "our certificate or key is not taken, or theirs not believed"


class _End(NamedTuple):
    """How an attempt ended."""

    reason: str
    distrust: str = ""
    welcomed: bool = False


class IotHubTransport:
    """The transport port over Azure IoT Hub.

    Args:
        url: `iothub://HOST`, `dps://ID_SCOPE` or `dps://HOST/ID_SCOPE`.
        who: The device, this start of the agent, its version.
        known: What we show, and whom we believe.
        state: The state folder, for what the provisioning service has assigned.
        fetch: Returns the desired document from the fleet manager, None if there is none; blocks.
        backoff_max_s: Longest wait between two tries.
        configured: Told what our section of the twin holds, and whether that is all of it.

    Raises:
        InvalidInputError: An address in it is none.
    """

    def __init__(
        self,
        url: str,
        who: Who,
        known: Credentials,
        state: Path,
        fetch: Callable[[], bytes | None],
        backoff_max_s: float = 300.0,
        configured: Callable[[Mapping[str, Any], bool], None] = lambda _section, _whole: None,
    ) -> None:
        parse_proxy(known.options.proxy)
        self._assignment = Assignment(parse(url), known, state / "iothub.json")
        self._who, self._known, self._configured = who, known, configured
        self._backoff_max_s = backoff_max_s
        self._reports = Reports(known.options.report_min_s, backoff_max_s, time.monotonic)
        self._newest: bytes | None = None
        self._fetching = Fetching(fetch, self._fetched, backoff_max_s)
        self._lock = threading.Lock()
        self._posted: list[tuple[Callable[[], None], Callable[[], None]]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._again = asyncio.Event()
        self._place: asyncio.Task[str] | None = None
        self._opening: Session | None = None
        self._session: Session | None = None
        self._stopping = False
        self._thread = threading.Thread(target=self._main, name="iothub", daemon=True)
        self._events: TransportEvents

    def start(self, events: TransportEvents) -> None:
        """Connect, and stay connected until `stop`."""
        self._events = events
        self._loop = asyncio.new_event_loop()
        self._thread.start()

    def request_desired(self, have: int) -> None:
        """Hand over the document that lies in the twin, and ask for the one that should."""

        def ask() -> None:
            if self._session:
                self._session.ask(have)

        self._post(ask)

    def publish_reported(self, sealed: bytes, done: Done) -> None:
        """Publish the reported document, in the twin if it fits."""

        def publish() -> None:
            self._newest = sealed
            self._report(sealed, done)

        self._post(publish, lambda: done(False))

    def publish_batch(self, stream: str, sealed: bytes, done: Done) -> None:
        """Publish a batch of one stream as a message."""

        def publish() -> None:
            if self._session is None:
                done(False)
            else:
                self._session.publish(stream, sealed, done)

        self._post(publish, lambda: done(False))

    def renewed(self) -> None:
        """Connect anew, with the key and the certificates as they lie there now."""

        def leave() -> None:
            self._again.set()
            if self._session:
                self._session.link.leave("our certificate is a new one")

        self._post(leave)

    def stop(self) -> None:
        """Send the message that we are gone, and disconnect."""
        self._fetching.stop()
        self._post(self._leave)
        if self._thread.is_alive():
            self._thread.join(END_S)

    def _post(self, act: Callable[[], None], lost: Callable[[], None] = lambda: None) -> None:
        """Do something in the loop; `lost` if there is none any more."""
        with self._lock:
            if self._loop is not None:
                self._posted.append((act, lost))
                self._loop.call_soon_threadsafe(self._drain)
                return
        lost()

    def _fetched(self, document: bytes) -> None:
        self._events.on_desired(document)

    # All that follows happens in the loop.

    def _drain(self) -> None:
        with self._lock:
            posted, self._posted = self._posted, []
        for act, _ in posted:
            act()

    def _main(self) -> None:
        loop = self._loop
        assert loop is not None
        loop.set_exception_handler(_quiet)
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            try:
                runner.run(self._run())
            finally:
                with self._lock:
                    self._loop, posted, self._posted = None, self._posted, []
                for _, lost in posted:
                    lost()

    def _leave(self) -> None:
        self._stopping = True
        self._again.set()
        if self._place:
            self._place.cancel()
        if self._opening:
            self._opening.link.leave("we are stopping")
        if session := self._session:
            said = session.say(online=False)
            said.add_done_callback(lambda _: session.link.leave("we are stopping"))
            asyncio.get_running_loop().call_later(GOODBYE_S, session.link.leave, "we are stopping")

    def _report(self, sealed: bytes, done: Done) -> None:
        if self._session is None:
            done(False)
            return
        self._reports.put(sealed, done)
        self._session.reports_changed()

    def _report_again(self) -> bool:
        if self._newest is None:
            return False
        self._report(self._newest, _nobody)
        return True

    async def _run(self) -> None:
        delay = BACKOFF_MIN_S
        while not self._stopping:
            began = time.monotonic()
            end = await self._attempt()
            if self._stopping:
                return
            if end.distrust:
                self._events.on_refused(end.distrust)
            self._events.on_disconnected(end.reason)
            if end.welcomed and time.monotonic() - began > STEADY_S:
                delay = BACKOFF_MIN_S
            wait = random.uniform(delay / 2, delay)  # noqa: S311 - jitter, no secret
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._again.wait(), wait)
            self._again.clear()
            delay = min(2 * delay, self._backoff_max_s)

    async def _attempt(self) -> _End:
        """Connect once and stay until it breaks; return how it ended."""
        try:
            host = await self._where()
            client = await hub_client(self._known, host)
        except asyncio.CancelledError:
            return _End("we are stopping")
        except UnavailableError as error:
            return _End(str(error))
        except sdk.ClientError as error:
            why = f"the provisioning service: {told(error)}"
            refused = distrusted(error) or _UNKNOWN.search(why)
            return _End(why, why if refused else "")
        except TimeoutError:
            return _End("the provisioning service does not answer")
        except (OSError, ValueError, InvalidInputError) as error:
            # Key and certificate of different times, as power may leave them: renewal mends it.
            if self._known.options.auth == "edge":
                return _End(f"the IoT Edge runtime: {told(error)}")
            why = f"our certificate or key cannot be used: {told(error)}"
            return _End(why, why)
        end = await self._stay(client, host)
        if end.welcomed:
            self._assignment.welcomed()
        elif end.distrust:
            self._assignment.refused()
        else:
            self._assignment.unreachable()
        return end

    async def _where(self) -> str:
        self._place = asyncio.create_task(self._assignment.host())
        try:
            return await self._place
        finally:
            self._place = None

    async def _stay(self, client: Any, host: str) -> _End:
        around = Around(
            self._who, self._events, self._reports, self._fetching, self._report_again,
            self._configured,
        )  # fmt: skip
        session = self._opening = Session(client, self._known.token_s, around)
        welcomed = False
        try:
            if not self._stopping:
                await session.open()
                self._opening, self._session = None, session
                welcomed = True
                self._events.on_connected()
                await session.run()
        except BrokenLinkError:
            pass  # its reason tells
        finally:
            self._opening = self._session = None
            await session.close()
            for done in self._reports.drop():
                done(False)
        reason = f"{host}: {session.link.reason}"
        distrust = session.link.distrust and f"{_DISTRUST}: {reason}"
        return _End(reason, distrust, welcomed)


def _quiet(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """The SDK answers what was given up; anything else is a fault."""
    given_up = isinstance(context.get("exception"), asyncio.InvalidStateError)
    if not given_up and context["message"] != "Future exception was never retrieved":
        loop.default_exception_handler(context)


def _nobody(_held: bool) -> None:
    """For a report that was asked for by method."""
