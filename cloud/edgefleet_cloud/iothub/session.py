"""One connection to a hub's events, through azure-eventhub: which partitions, and what of them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgefleet_cloud.hub_config import IotHub
from edgefleet_cloud.iothub.checkpoints import Checkpoints, Position
from edgefleet_cloud.iothub.eventhub import Endpoint, event_of
from edgefleet_cloud.iothub.gaps import Gaps
from edgefleet_cloud.iothub.partitions import Held, Lag, Partition, lag, lost
from edgefleet_cloud.iothub.translate import Event
from edgefleet_shared.errors import UnavailableError

if TYPE_CHECKING:
    from azure.eventhub import EventData
    from azure.eventhub.aio import EventHubConsumerClient

BATCH = 100
WAIT_S = 1.0
AWAY_S = 1.0
"""Between two looks at the partitions while the hub does not answer."""
ASK_S = 15.0
ASK_AT_ONCE = 8

log = logging.getLogger(__name__)
# The library tells each error several times; what matters is said here once.
logging.getLogger("azure.eventhub").setLevel(logging.CRITICAL)


Deliver = Callable[[Event, Callable[[], bool]], Awaitable[bool]]
"""Delivers an event; returns whether it is done with, False once its second argument is true."""


class State:
    """What one thread notes and others read.

    Attributes:
        connected: Whether the hub's events can be read.
        lags: How far each partition is behind.
    """

    def __init__(self) -> None:
        self.connected = False
        self.lags: Sequence[Lag] = ()


class Session:
    """The partitions that this process has by one client. Everything here runs in one loop.

    Args:
        hub: Whose events.
        where: Where they are.
        checkpoints: Claims and positions.
        gaps: Told of what was lost.
        deliver: Takes events.
        state: Noted in.
        look_s: Seconds between two looks at the partitions.
    """

    def __init__(
        self,
        hub: IotHub,
        where: Endpoint,
        checkpoints: Checkpoints,
        gaps: Gaps,
        deliver: Deliver,
        state: State,
        look_s: float,
    ) -> None:
        self._hub = hub
        self._where = where
        self._checkpoints = checkpoints
        self._gaps = gaps
        self._deliver = deliver
        self._state = state
        self._look_s = look_s
        self._partitions: dict[str, Partition] = {}
        self._begin: Mapping[str, Position] = {}
        self._held: Callable[[str], Awaitable[Held]] | None = None
        self._look = asyncio.Event()
        self._said = ""

    async def receive(self, client: EventHubConsumerClient) -> None:
        """Read events until cancelled."""

        async def held(number: str) -> Held:
            # A hub that swallows a question must not hold up what others can answer.
            asked = client.get_partition_properties(number)
            return Held.of(await asyncio.wait_for(asked, ASK_S))

        self._held = held
        await client.receive_batch(
            self._take,
            max_batch_size=BATCH,
            max_wait_time=WAIT_S,
            starting_position="-1",
            on_partition_initialize=self._opened,
            on_partition_close=self._closed,
            on_error=self._failed,
        )

    async def audit(self, positions: Mapping[str, Position]) -> Mapping[str, Position]:
        """Return the positions from which can be read on; what was lost elsewhere is told."""
        good = dict(positions)
        asked = [number for number in positions if number not in self._partitions]
        for number, held in (await self._hold(asked)).items():
            count = lost(positions[number], held)
            if count != 0:
                await asyncio.to_thread(self._gaps.lost, number, count)
                await asyncio.to_thread(self._checkpoints.forget, number)
                del good[number]
        self._begin = good
        return good

    async def watch(self, client: EventHubConsumerClient) -> None:
        """Look again and again whether the hub answers, and how far behind we are."""
        while True:
            try:
                await asyncio.wait_for(self._measure(client), ASK_S * 2)
            except Exception as error:  # noqa: BLE001 - the library's tree is wide
                self._lost_sight(error)
            pause = self._look_s if self._state.connected else AWAY_S
            self._look.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._look.wait(), pause)

    async def _measure(self, client: EventHubConsumerClient) -> None:
        numbers = await client.get_partition_ids()
        self._saw()
        held = await self._hold(numbers)
        positions = dict(await asyncio.to_thread(self._checkpoints.positions))
        for number, mine in self._partitions.items():
            if mine.position is not None:  # what is handled is on disk, its position a bit later
                positions[number] = mine.position
        self._state.lags = tuple(
            lag(number, positions.get(number), held[number], here=number in self._partitions)
            for number in sorted(numbers, key=lambda number: (len(number), number))
        )

    async def _hold(self, numbers: Sequence[str]) -> Mapping[str, Held]:
        """Return what partitions hold now; some are asked at once, each by a connection."""
        limit, ask = asyncio.Semaphore(ASK_AT_ONCE), self._held
        assert ask is not None

        async def one(number: str) -> Held:
            async with limit:
                return await ask(number)

        asking = [asyncio.create_task(one(number)) for number in numbers]
        try:
            return dict(zip(numbers, await asyncio.gather(*asking), strict=True))
        finally:  # each closes its connection, also when the first has failed
            for each in asking:
                each.cancel()
            await asyncio.gather(*asking, return_exceptions=True)

    def _saw(self) -> None:
        if not self._state.connected:
            log.info("IoT Hub %s: events are read at %s", self._hub.name, self._where.namespace)
            self._state.connected = True

    def _lost_sight(self, error: Exception) -> None:
        """Note that the hub does not answer, and why; the same is not said twice."""
        said = str(error).partition("\n")[0] or repr(error)
        if self._state.connected or said != self._said:
            log.warning("The events of IoT Hub %s: %s", self._hub.name, said)
        self._state.connected, self._said = False, said

    async def _opened(self, context: Any) -> None:
        number = context.partition_id
        self._partitions[number] = Partition(number, self._checkpoints, self._begin.get(number))

    async def _closed(self, context: Any, _reason: object) -> None:
        partition = self._partitions.pop(context.partition_id, None)
        if partition is not None:
            partition.over = True
            await self._save(partition)

    async def _failed(self, _context: Any, error: Exception) -> None:
        from azure.eventhub.exceptions import OwnershipLostError

        if isinstance(error, OwnershipLostError):
            return  # another server has it now
        self._lost_sight(error)
        self._look.set()

    async def _take(self, context: Any, found: Sequence[EventData]) -> None:
        partition = self._partitions.get(context.partition_id)
        if partition is None:
            return
        events = [(event, at) for event, at in map(event_of, found) if at is not None]
        for event, position in sorted(events, key=lambda each: each[1].sequence):
            self._saw()
            if not partition.is_new(position.sequence):
                continue
            if not await self._deliver(event, lambda: partition.over):
                return
            partition.done(position)
            if partition.due:
                await self._save(partition)
        if partition.due:
            await self._save(partition)

    async def _save(self, partition: Partition) -> None:
        try:
            await asyncio.to_thread(partition.save)
        except UnavailableError as error:
            log.warning("A position at IoT Hub %s is saved later: %s", self._hub.name, error)
