"""Report: the sealed state document and the outbox's batches, on their way to the fleet manager."""

from __future__ import annotations

import platform
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from securesystemslib.signer import Signer

from edgefleet_agent import __version__
from edgefleet_agent.outbox import STREAMS, Outbox
from edgefleet_agent.ports import Transport
from edgefleet_shared import dsse, strict_json
from edgefleet_shared.errors import UnavailableError
from edgefleet_shared.messages import (
    BATCH_TYPE,
    REPORTED_TYPE,
    Batch,
    OwnersLock,
    Reported,
    SlotReport,
    Stream,
)

PROGRESS_S = 10.0
"""A change of nothing but fetched bytes is reported at most this often."""
RETRY_S = 5.0


class Facts:
    """What a report says beside the slots; the daemon keeps it current.

    Attributes:
        counter: Newest accepted assignment counter.
        refused: Code of the newest refused document, or ''.
        agent: Versions, hardware, flags.
        locked: The owner's lock while it holds.
    """

    def __init__(
        self,
        hardware: str,
        accelerators: frozenset[str],
        unavailable: Mapping[str, str] | None = None,
    ) -> None:
        self.counter = 0
        self.refused = ""
        self.locked: OwnersLock | None = None
        self.agent: dict[str, Any] = {
            "version": __version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
            "hardware": hardware,
            "accelerators": sorted(accelerators),
            "unavailable": {kind: why[:500] for kind, why in (unavailable or {}).items()},
        }


class Reporter:
    """Publishes the reported document when it changed, and on each connect.

    Args:
        device: The device's id.
        boot: This start of the agent.
        signer: The device's key.
        outbox: Gives `seq`.
        transport: The way out.
        slots: Gives every slot's report.
        facts: The rest of the document.
        stamp: Gives the device's time as RFC 3339 text.
    """

    def __init__(
        self,
        device: str,
        boot: str,
        signer: Signer,
        outbox: Outbox,
        transport: Transport,
        slots: Callable[[], Mapping[str, SlotReport]],
        facts: Facts,
        stamp: Callable[[], str],
    ) -> None:
        self._device, self._boot, self._signer = device, boot, signer
        self._outbox, self._transport = outbox, transport
        self._slots, self.facts, self._stamp = slots, facts, stamp
        self._last: tuple[object, ...] | None = None
        self._last_bytes: tuple[int, ...] = ()
        self._at = float("-inf")
        self._failed = threading.Event()

    def forget(self) -> None:
        """Publish again whatever was published: the connection is new."""
        self._last = None

    def publish_if_due(self) -> float | None:
        """Publish what has changed.

        Returns:
            Seconds until a change that waits is due; None if nothing waits.

        Raises:
            UnavailableError: The outbox gives no number.
        """
        if self._failed.is_set():
            self._failed.clear()
            self._last = None
        slots = dict(self._slots())
        said = self.facts
        facts = (said.counter, said.refused, said.locked, strict_json.encode(said.agent))
        state = (*facts, *((n, s.deployment, s.seq, s.active) for n, s in slots.items()))
        fetched = tuple(slot.bytes_done for slot in slots.values())
        if state == self._last:
            if fetched == self._last_bytes:
                return None
            if (rest := self._at + PROGRESS_S - time.monotonic()) > 0:
                return rest
        self._last, self._last_bytes, self._at = state, fetched, time.monotonic()
        self._publish(slots)
        return None

    def _publish(self, slots: dict[str, SlotReport]) -> None:
        reported = Reported(
            v=1,
            device=self._device,
            boot=self._boot,
            seq=self._outbox.next_number("reported"),
            ts=self._stamp(),
            counter=self.facts.counter,
            slots=slots,
            agent=self.facts.agent,
            refused=self.facts.refused,
            locked=self.facts.locked,
        )
        sealed = dsse.seal(strict_json.encode(reported), REPORTED_TYPE, self._signer)

        def done(held: bool) -> None:
            if not held:
                self._failed.set()

        self._transport.publish_reported(sealed, done)


class Sender:
    """Empties the outbox, one batch of a stream at a time.

    Args:
        device: The device's id.
        boot: This start of the agent.
        signer: The device's key.
        outbox: Where the items wait.
        transport: The way out.
        stamp: Gives the device's time as RFC 3339 text.
        wake: Called, from the transport's thread, when the next batch may go.
    """

    def __init__(
        self,
        device: str,
        boot: str,
        signer: Signer,
        outbox: Outbox,
        transport: Transport,
        stamp: Callable[[], str],
        wake: Callable[[], None],
    ) -> None:
        self._device, self._boot, self._signer = device, boot, signer
        self._outbox, self._transport = outbox, transport
        self._stamp, self._wake = stamp, wake
        self._under_way: set[Stream] = set()
        self._not_before = 0.0

    @property
    def busy(self) -> bool:
        """Whether something is under way, or waits to be tried again."""
        return bool(self._under_way) or time.monotonic() < self._not_before

    def send(self) -> None:
        """Publish the next batch of every stream that has none under way."""
        if time.monotonic() < self._not_before:
            return
        for stream in STREAMS:
            if stream not in self._under_way:
                self._send(stream)

    def _send(self, stream: Stream) -> None:
        pending = self._outbox.pending(stream)
        if pending is None:
            return
        batch = Batch(
            v=1,
            device=self._device,
            boot=self._boot,
            stream=stream,
            ts=self._stamp(),
            seqs=pending.seqs,
            items=pending.items,
            dropped=pending.dropped,
        )
        sealed = dsse.seal(strict_json.encode(batch), BATCH_TYPE, self._signer)
        self._under_way.add(stream)

        def done(held: bool) -> None:
            if not held or not self._removed(stream, pending.seqs):
                self._not_before = time.monotonic() + RETRY_S
            self._under_way.discard(stream)
            self._wake()

        self._transport.publish_batch(stream, sealed, done)

    def _removed(self, stream: Stream, seqs: list[int]) -> bool:
        """Forget what was taken; if the disk refuses, it is sent again and known by its number."""
        try:
            self._outbox.remove(stream, seqs)
        except UnavailableError:
            return False
        return True
