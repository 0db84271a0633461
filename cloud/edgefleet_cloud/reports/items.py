"""Stores the items of a batch: each once, in whatever order batches arrive."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from sqlmodel import Session

from edgefleet_cloud.devices.tables import DeviceRow
from edgefleet_cloud.ports import EventSink
from edgefleet_cloud.reports import repository
from edgefleet_cloud.reports.opening import Item, read_item
from edgefleet_cloud.reports.ranges import Ranges
from edgefleet_cloud.reports.tables import ReceiptRow, StreamRow, WindowRow, position
from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.messages import Batch, DeviceEvent, SwapReceipt


class Items:
    """Where the items of the outbox streams go.

    Args:
        events: Takes the stream `events`.
    """

    def __init__(self, events: EventSink) -> None:
        self._events = events

    def store(self, session: Session, device: DeviceRow, batch: Batch, now: str) -> list[str]:
        """Store what is new in a batch, and return why each unusable item was left out.

        An unusable item counts as arrived: its device must not send it for ever.
        """
        row = repository.stream(session, device.id, device.enrollment, batch.stream)
        seen = Ranges(((first, last) for first, last in row.ranges), row.lost)
        refused: list[str] = []
        for seq, item in zip(batch.seqs, batch.items, strict=True):
            if not seen.add(seq):
                continue
            try:
                found = read_item(batch.stream, item)
            except InvalidInputError as error:
                refused.append(f"Item {seq} of {batch.stream}: {error.message}")
                continue
            self._put(session, device, seq, found, now)
        _remember(row, seen, batch.dropped)
        session.add(row)
        return refused

    def _put(self, session: Session, device: DeviceRow, seq: int, item: Item, now: str) -> None:
        if isinstance(item, DeviceEvent):
            self._put_event(session, device.id, seq, item)
            return
        fields: Mapping[str, Any] = msgspec.to_builtins(item, str_keys=True)
        where: dict[str, Any] = {"device": device.id, "position": position(device.enrollment, seq)}
        if isinstance(item, SwapReceipt):
            _put_receipt(session, ReceiptRow(**where, **fields, received=now))
        else:
            session.add(WindowRow(**where, **fields))

    def _put_event(self, session: Session, device: str, seq: int, event: DeviceEvent) -> None:
        about = msgspec.structs.asdict(event)
        extra = {name: about[name] for name in ("level", "slot", "deployment", "digest")}
        self._events.record(
            session,
            type=f"device.{event.code}",
            step=event.step,
            subject=f"devices/{device}",
            message=event.message,
            actor=f"devices/{device}",
            data={**event.data, **extra, "device_ts": event.ts, "seq": seq},
        )


def _put_receipt(session: Session, row: ReceiptRow) -> None:
    """Put an activation between its neighbours: each one ends where the next begins."""
    before, after = repository.neighbours(session, row)
    if before:
        before.until = row.ts
        session.add(before)
    row.until = after.ts if after else None
    session.add(row)
    session.flush()


def _remember(row: StreamRow, seen: Ranges, dropped: int) -> None:
    row.ranges = [[first, last] for first, last in seen.to_list()]
    row.lost, row.missing, row.beginnings = seen.lost, seen.missing, seen.beginnings
    # Batches arrive in any order, and what was dropped only grows.
    row.dropped = max(row.dropped, dropped)
