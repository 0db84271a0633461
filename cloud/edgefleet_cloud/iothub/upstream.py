"""The upward half of one hub: its events by Event Hubs, handled in order, checkpointed after.

One thread, with a loop of its own, talks to the hub; another calls the handler. The messages of a
device lie in one partition, so to handle each partition in order is to keep theirs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

from edgefleet_cloud.database import Database
from edgefleet_cloud.delivery import Delivery
from edgefleet_cloud.hub_config import IotHub
from edgefleet_cloud.iothub import eventhub, translate
from edgefleet_cloud.iothub.checkpoints import Checkpoints
from edgefleet_cloud.iothub.eventhub import Endpoint, Times
from edgefleet_cloud.iothub.gaps import Gaps
from edgefleet_cloud.iothub.hearing import Hearing, Told, Twins
from edgefleet_cloud.iothub.partitions import Lag
from edgefleet_cloud.iothub.session import Session, State
from edgefleet_cloud.iothub.sockets import TidyLoop
from edgefleet_cloud.iothub.tokens import read_secret
from edgefleet_cloud.iothub.translate import Event
from edgefleet_cloud.ports import EventSink, Handler
from edgefleet_shared.errors import InvalidInputError, UnavailableError

T = TypeVar("T")

RETRY_S = (0.5, 30.0)

log = logging.getLogger(__name__)
# The library tells each error several times; what matters is said here once.
logging.getLogger("azure.eventhub").setLevel(logging.CRITICAL)


class Needs(NamedTuple):
    """What an `Upstream` works with; `hearing` says what for."""

    twins: Twins
    database: Database
    told: Told
    events: EventSink


class Upstream:
    """Reads one hub's events.

    Args:
        hub: Which; its `events_file` is read anew for each connection, and watched.
        needs: What it works with.
        times: How often what is looked at.

    Raises:
        InvalidInputError: The connection string cannot be used, or azure-eventhub is missing.
    """

    def __init__(self, hub: IotHub, needs: Needs, times: Times | None = None) -> None:
        self._hub = hub
        self._needs = needs
        self._times = times or Times()
        self._endpoint()  # at the start, so that whoever configured it hears of it
        eventhub.check_installed()
        self._gaps = Gaps(hub.name, needs.database, needs.events)
        self._hearing: Hearing | None = None
        self._state = State()
        self._ending = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended: asyncio.Event | None = None
        # One thread: `ports.Transport` promises the handler that it runs in one.
        self._worker = ThreadPoolExecutor(1, thread_name_prefix=f"iothub-{hub.name}")
        self._thread = threading.Thread(
            target=self._run, name=f"iothub-events-{hub.name}", daemon=True
        )

    @property
    def connected(self) -> bool:
        """Return whether the hub's events can be read now."""
        return self._state.connected

    @property
    def lags(self) -> Sequence[Lag]:
        """Return how far each partition was behind at the last look, some seconds ago."""
        return self._state.lags

    def start(self, handler: Handler) -> None:
        """Begin to read, and go on; returns at once."""
        twins, database, told, events = self._needs
        self._hearing = Hearing(self._hub.name, twins, database, told, events, handler)
        self._thread.start()

    def stop(self) -> None:
        """End; an event whose handling has not ended is read again next time."""
        self._ending.set()
        loop, ended = self._loop, self._ended
        if loop is not None and ended is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed already
                loop.call_soon_threadsafe(ended.set)
        if self._thread.is_alive():
            self._thread.join()
        self._worker.shutdown(wait=True, cancel_futures=True)

    def between(self, call: Callable[[Hearing], T]) -> Future[T]:
        """Have something done in the handler's thread, between two events.

        Raises:
            UnavailableError: It has not begun, or has ended.
        """
        hearing = self._hearing
        if hearing is None or self._ending.is_set():
            raise UnavailableError(f"IoT Hub {self._hub.name} is not listened to.", code="iothub")
        return self._worker.submit(call, hearing)

    def _endpoint(self) -> Endpoint:
        path = self._hub.events_file
        return eventhub.endpoint(read_secret(path), path)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=TidyLoop) as runner:
            runner.run(self._stay())

    async def _stay(self) -> None:
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        attempt = 0
        while not self._ending.is_set():
            began = time.monotonic()
            try:
                await self._session(self._endpoint())
            except Exception as error:  # noqa: BLE001 - the library's tree is wide, and its network's wider
                log.warning("The events of IoT Hub %s: %s", self._hub.name, error or repr(error))
            finally:
                self._state.connected = False
            attempt = 0 if time.monotonic() - began > RETRY_S[1] else attempt + 1
            await self._pause(random.uniform(0, min(RETRY_S[1], RETRY_S[0] * 2**attempt)))  # noqa: S311 - jitter

    async def _pause(self, seconds: float) -> None:
        """Wait, unless it is over."""
        assert self._ended is not None
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._ended.wait(), seconds)

    async def _session(self, where: Endpoint) -> None:
        """Read until we stop or the events are to be read elsewhere."""
        assert self._ended is not None
        source = where.source(self._hub.name, self._hub.consumer_group)
        await asyncio.to_thread(self._gaps.reads_at, source)
        checkpoints = Checkpoints(self._needs.database, source)
        session = Session(
            self._hub, where, checkpoints, self._gaps, self._deliver, self._state,
            self._times.look_s,
        )  # fmt: skip
        client = eventhub.client(where, checkpoints, session.audit, self._hub, self._times)
        async with client:
            tasks = [
                asyncio.create_task(each)
                for each in (session.receive(client), session.watch(client), self._moved(where),
                             self._ended.wait())
            ]  # fmt: skip
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for each in done:
                    each.result()
            finally:
                for each in tasks:
                    each.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _moved(self, where: Endpoint) -> None:
        """Return once the file names another endpoint, or the same with another key."""
        while True:
            await asyncio.sleep(self._times.file_s)
            with contextlib.suppress(InvalidInputError):  # it is being written, perhaps
                if await asyncio.to_thread(self._endpoint) != where:
                    return

    async def _deliver(self, event: Event, over: Callable[[], bool]) -> bool:
        """Try until it works, is given up, or is somebody else's business."""
        hearing = self._hearing
        assert hearing is not None

        def call() -> None:
            word = translate.read(event, self._hub.module)
            if word is not None:
                hearing.hear(word, first=delivery.tries == 1)

        delivery = Delivery(_named(self._hub.name, event), call)
        while not over() and not self._ending.is_set():
            if await asyncio.get_running_loop().run_in_executor(self._worker, delivery.once):
                return True
            await self._pause(delivery.pause_s)
        return False


def _named(hub: str, event: Event) -> str:
    device, source = event.system.get(translate.DEVICE), event.system.get(translate.SOURCE)
    return f"{str(source)[:40]} of {str(device)[:80]} at IoT Hub {hub}"
