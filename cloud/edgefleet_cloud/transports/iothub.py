"""The fleet manager on one Azure IoT Hub: documents into twins, and what devices say out of events.

A thread compares what is to be said with what each twin is known to hold, and gives what differs
to a pool, as fast as the hub's tier allows. Each device has one write under way at most, so that
no older document overtakes a newer one.
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

from edgefleet_cloud.database import Database
from edgefleet_cloud.errors import NotFoundError
from edgefleet_cloud.hub_config import IotHub
from edgefleet_cloud.iothub import repository
from edgefleet_cloud.iothub.letters import Letter, Letters, check_kind, plan
from edgefleet_cloud.iothub.limits import Usage
from edgefleet_cloud.iothub.pacing import Pacer
from edgefleet_cloud.iothub.registry import Registry
from edgefleet_cloud.iothub.rest import HubRest, RefusedError, Throttled
from edgefleet_cloud.ports import Clock, Handler, system_clock
from edgefleet_shared import topics
from edgefleet_shared.errors import EdgeFleetError, InvalidInputError
from edgefleet_shared.times import format_time

IDLE_S = 5.0
LATENCY_S = 0.4
"""A request may take this long, and still as many are under way as the limit needs."""
WORKERS = (8, 64)
BACKOFF_S = (0.5, 60.0)
STOP_S = 30.0
METHOD_S = 10
"""What a device is given to answer a direct method."""

log = logging.getLogger(__name__)


class Upward(Protocol):
    """The half that listens: `iothub.upstream.Upstream`."""

    @property
    def connected(self) -> bool:
        """Return whether events flow now."""
        ...

    def start(self, handler: Handler) -> None:
        """Listen, from where the last one has stopped; returns at once."""
        ...

    def stop(self) -> None:
        """Stop listening; what was not handled comes again."""
        ...


class Parts(NamedTuple):
    """What a hub's transport is made of."""

    hub: IotHub
    rest: HubRest
    pacer: Pacer
    database: Database
    registry: Registry
    upward: Upward


class IotHubTransport:
    """`ports.Transport` over one hub. `letters` is shared with the registry that parts name.

    Args:
        parts: What it is made of; it starts and stops all of it.
        letters: What waits.
        clock: Dates what is noted.
        backoff_s: Least and most seconds between two tries while the hub is away.
    """

    def __init__(
        self,
        parts: Parts,
        letters: Letters,
        clock: Clock = system_clock,
        backoff_s: tuple[float, float] = BACKOFF_S,
    ) -> None:
        self._hub, self._rest, self._pacer, self._database, self._registry, self._upward = parts
        self._letters, self._clock, self._backoff_s = letters, clock, backoff_s
        limit = parts.pacer.usage().limit
        self._workers = min(WORKERS[1], max(WORKERS[0], math.ceil(limit * LATENCY_S)))
        name = f"iothub-{parts.hub.name}"
        self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix=name)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._lock = threading.Lock()
        self._under_way, self._failures = 0, 0
        self._not_before, self._pause_s = 0.0, IDLE_S
        self._over = False

    @property
    def connected(self) -> bool:
        """Return whether events flow, and the last write has reached the hub."""
        return self._upward.connected and not self._failures

    @property
    def pending(self) -> int:
        """Return how many devices have something to be told that their twins do not say yet."""
        return len(self._letters)

    @property
    def sent(self) -> int:
        """Return how many twins were written since the start."""
        return self._letters.done_count

    def usage(self) -> Usage:
        """Return how the hub's limit of twin updates is used."""
        return self._pacer.usage()

    def invoke(self, device: str, method: str) -> dict[str, Any]:
        """Call a direct method of a device, or of the module that speaks for it; see `HubRest`."""
        with self._database.read() as session:
            held = repository.find(session, device, self._hub.name)
        return self._rest.invoke(
            device, method, {}, held.module if held else "", timeout_s=METHOD_S
        )

    def start(self, handler: Handler) -> None:
        """Listen, write, and keep the registry; returns at once."""
        self._upward.start(handler)
        self._registry.start()
        self._thread.start()

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> Future[None]:
        """Have a device's twin say it; the future ends when it does, or when nobody is there.

        Raises:
            InvalidInputError: It is no topic of ours, or has no place in a twin.
        """
        del retain  # a twin keeps whatever it is told
        parsed = topics.parse(topic)
        if parsed is None:
            raise InvalidInputError(f"{topic[:200]!r} is no topic of ours.")
        if check_kind(parsed.kind):
            return self._letters.put(parsed.device, parsed.kind, payload)
        nothing: Future[None] = Future()
        nothing.set_result(None)
        return nothing

    def disconnect(self, device: str) -> None:
        """A device was revoked, or has enrolled: the registry is told, in the background."""
        self._registry.wake()
        self._letters.unpark(device)

    def stop(self) -> None:
        """Stop; what was not written is known by the announcements and said at the next start."""
        self._over = True
        self._pacer.stop()
        self._letters.poke()
        self._upward.stop()
        if self._thread.is_alive():
            self._thread.join(STOP_S)
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._registry.stop()
        self._rest.close()

    def _run(self) -> None:
        while not self._over:
            try:
                self._pause_s = IDLE_S
                if not (self._look() | self._send()):
                    self._letters.wait(self._pause_s)
            except Exception:
                log.exception("Writing to IoT Hub %s failed", self._hub.name)
                self._letters.wait(BACKOFF_S[0])

    def _look(self) -> bool:
        """Compare the next letter with what its twin holds; return whether there was one."""
        letter = self._letters.new()
        if letter is None:
            return False
        try:
            with self._database.read() as session:
                held = repository.find(session, letter.device, self._hub.name)
            letter.plan = plan(letter, held, self._hub.inline_max)
        except InvalidInputError as error:
            self._give_up(letter, error)
        except BaseException:
            self._letters.keep(letter)  # looked at again when it is written
            raise
        else:
            if letter.plan is None:
                self._letters.done(letter, written=False)
            else:
                self._letters.keep(letter)
        return True

    def _send(self) -> bool:
        """Give the next letter to the pool, if the hub takes one now; return whether it did."""
        rest = self._not_before - time.monotonic()
        if rest > 0:
            self._pause_s = min(self._pause_s, rest)
            return False
        with self._lock:
            if self._under_way >= self._workers:
                return False
        letter = self._letters.due(self._may)
        if letter is None:
            return False
        with self._lock:
            self._under_way += 1
        self._pool.submit(self._deliver, letter)
        return True

    def _may(self, device: str) -> bool:
        wait = self._pacer.write(device)
        if wait > 0:
            self._pause_s = min(self._pause_s, wait)
        return wait <= 0

    def _deliver(self, letter: Letter) -> None:
        written = False
        try:
            written = self._write(letter)
        except Throttled as error:
            self._pacer.throttled(error.retry_after_s)
            self._letters.back(letter)
        except RefusedError as error:
            if letter.plan is not None and letter.plan.inline:
                # Too much beside what others keep in this twin: it is fetched over HTTPS then.
                letter.inline, letter.plan = False, None
                self._letters.back(letter)
            else:
                self._give_up(letter, error)
        except NotFoundError:
            self._miss(letter)
        except EdgeFleetError as error:
            self._back_off(error)
            self._letters.back(letter)
        except Exception as error:
            log.exception("Writing to %s at IoT Hub %s failed", letter.device, self._hub.name)
            self._back_off(error)
            self._letters.back(letter)
        finally:
            if not written:
                self._pacer.unwrote(letter.device)
            with self._lock:
                self._under_way -= 1
            self._letters.poke()

    def _write(self, letter: Letter) -> bool:
        """Write a letter; return whether the hub was asked, which its limit counts.

        Raises:
            EdgeFleetError: It was not written.
        """
        if letter.plan is None:
            with self._database.read() as session:
                held = repository.find(session, letter.device, self._hub.name)
            letter.plan = plan(letter, held, self._hub.inline_max)
        found = letter.plan
        if found is not None:
            patch = {"properties": {"desired": found.patch}}
            self._rest.patch_twin(letter.device, patch, found.module)
            self._failures = 0
            self._note(letter.device, dict(found.known))
        self._letters.done(letter, written=found is not None)
        return found is not None

    def _note(self, device: str, known: dict[str, str]) -> None:
        """Remember what a twin holds; if that fails, it is unknown and written again some time."""
        try:
            with self._database.write() as session:
                now = format_time(self._clock())
                repository.change(session, device, self._hub.name, now, **known)
        except Exception:
            log.exception("What the twin of %s holds could not be noted", device)

    def _miss(self, letter: Letter) -> None:
        """The hub does not know the device: it waits until it does, or nobody is to be told."""
        try:
            if letter.plan is not None and letter.plan.module:
                # The module is gone; the device, perhaps, is not.
                self._note(letter.device, {"module": "", "sha256": "", "content": "", "renew": ""})
                letter.plan = None
                self._letters.back(letter)
                return
            expected = self._registry.missing(letter.device)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is tried again
            self._back_off(error)
            self._letters.back(letter)
            return
        if expected:
            self._letters.park(letter)
            self._registry.wake()
        else:
            self._letters.done(letter, written=False)

    def _give_up(self, letter: Letter, error: Exception) -> None:
        log.error("%s is not told at IoT Hub %s: %s", letter.device, self._hub.name, error)
        self._letters.fail(letter, error)

    def _back_off(self, error: Exception) -> None:
        with self._lock:
            self._failures += 1
            least, most = self._backoff_s
            longest = min(most, least * 2 ** min(self._failures, 16))
            wait = random.uniform(least, max(least, longest))  # noqa: S311 - jitter
            self._not_before = max(self._not_before, time.monotonic() + wait)
        log.warning("IoT Hub %s: %s", self._hub.name, error)
