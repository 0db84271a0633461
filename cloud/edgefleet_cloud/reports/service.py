"""Answers from what devices sent: who ran what when, how swaps went, how models answered."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sqlalchemy import Select, select
from sqlmodel import Session, col

from edgefleet_cloud.auth.caller import Scope
from edgefleet_cloud.devices.repository import among
from edgefleet_cloud.devices.service import Devices
from edgefleet_cloud.filters import condition, parse
from edgefleet_cloud.paging import PageQuery, paginate
from edgefleet_cloud.ports import Clock, Releases, system_clock
from edgefleet_cloud.reports import repository
from edgefleet_cloud.reports.tables import ReceiptRow, StreamRow, WindowRow
from edgefleet_shared import histogram
from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.times import format_time, parse_time

COUNTS = (
    "requests",
    "client_errors",
    "server_errors",
    "rejected",
    "nonfinite",
    "replayed",
    "crashes",
)


class TelemetryQuery(NamedTuple):
    """Which windows to merge; '' means any. A window counts if it overlaps the time span."""

    slot: str = ""
    digest: str = ""
    version: str = ""
    device: str = ""
    start: str = ""
    end: str = ""


@dataclass
class Answered:
    """What one digest answered over all devices and windows; histograms merge exactly."""

    slot: str
    digest: str
    version: str
    devices: set[str] = field(default_factory=set)
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTS, 0))
    latency: histogram.Counts = field(default_factory=dict)
    compute: histogram.Counts = field(default_factory=dict)

    def add(self, window: WindowRow) -> None:
        """Add one window."""
        self.devices.add(window.device)
        for name in COUNTS:
            self.counts[name] += getattr(window, name)
        self.latency = histogram.merge(self.latency, _counts(window.latency))
        self.compute = histogram.merge(self.compute, _counts(window.compute))


class Reports:
    """Reads what `Ingest` stored.

    Args:
        devices: Tells an unknown device from a silent one.
        releases: Knows the digest of a version.
        clock: Tells the time.
    """

    def __init__(self, devices: Devices, releases: Releases, clock: Clock = system_clock) -> None:
        self._devices = devices
        self._releases = releases
        self._clock = clock

    def history(
        self,
        session: Session,
        device: str,
        slot: str,
        at: str,
        query: PageQuery,
        scope: Scope = None,
    ) -> tuple[Sequence[ReceiptRow], str]:
        """Return what ran on a device, oldest first: ever, or at one time if `at` is given.

        Raises:
            NotFoundError: There is no such device within the scope.
            InvalidInputError: `at` is not a time, or a bad order or token.
        """
        self._devices.get(session, device, scope)
        statement = repository.activations(_time(at, "at") if at else None).where(
            col(ReceiptRow.device) == device
        )
        if slot:
            statement = statement.where(col(ReceiptRow.slot) == slot)
        return _page(session, statement, query, "position")

    def where_ran(
        self,
        session: Session,
        model: str,
        version: str,
        at: str,
        query: PageQuery,
        scope: Scope = None,
    ) -> tuple[Sequence[ReceiptRow], str]:
        """Return the activations of a version that stood at a time, now if `at` is ''.

        Raises:
            NotFoundError: There is no such version.
            InvalidInputError: `at` is not a time, or a bad order or token.
        """
        manifest = self._releases.find(session, model, version).manifest
        time = _time(at, "at") if at else format_time(self._clock())
        statement = repository.activations(time).where(
            col(ReceiptRow.to_digest) == manifest,
            col(ReceiptRow.slot) == model,
            *among(ReceiptRow.device, scope),
        )
        return _page(session, statement, query, "device")

    def receipts(
        self, session: Session, device: str, slot: str, query: PageQuery, scope: Scope = None
    ) -> tuple[Sequence[ReceiptRow], str]:
        """Return swap receipts, oldest first; '' means any.

        Raises:
            InvalidInputError: A bad filter, order or token.
        """
        statement = repository.receipts(device, slot).where(*among(ReceiptRow.device, scope))
        if query.filter:
            node = parse(query.filter, repository.RECEIPTS)
            statement = statement.where(condition(node, repository.RECEIPT_COLUMNS))
        return _page(session, statement, query, "position" if device else "ts")

    def telemetry(
        self, session: Session, query: TelemetryQuery, scope: Scope = None
    ) -> list[Answered]:
        """Return what each digest answered on the scope's devices, by slot, version and digest.

        Raises:
            InvalidInputError: `from` or `to` is not a time, or they are the wrong way round.
        """
        merged: dict[tuple[str, str, str], Answered] = {}
        for window in repository.windows(
            session, _windows(query).where(*among(WindowRow.device, scope))
        ):
            key = (window.slot, window.version, window.digest)
            if key not in merged:
                merged[key] = Answered(window.slot, window.digest, window.version)
            merged[key].add(window)
        return [merged[key] for key in sorted(merged)]

    def gaps(self, session: Session, device: str, scope: Scope = None) -> Sequence[StreamRow]:
        """Return the streams of which something is missing; '' means any device in the scope."""
        return repository.gaps(session, device, scope)


def quantile_us(counts: histogram.Counts, q: float) -> int | None:
    """Return a quantile in microseconds; None of nothing."""
    found = histogram.quantile_ns(counts, q)
    return None if found is None else round(found / 1000)


def _windows(query: TelemetryQuery) -> Select[Any]:
    start = _time(query.start, "from") if query.start else ""
    end = _time(query.end, "to") if query.end else ""
    if start and end and end <= start:
        raise InvalidInputError(
            "`to` is not after `from`.", code="time_span", hint="Swap them, or leave one out."
        )
    statement = select(WindowRow)
    for name in ("slot", "digest", "version", "device"):
        if value := getattr(query, name):
            statement = statement.where(getattr(WindowRow, name) == value)
    if start:
        statement = statement.where(col(WindowRow.end) > start)
    if end:
        statement = statement.where(col(WindowRow.start) < end)
    return statement


def _page(
    session: Session, statement: Select[Any], query: PageQuery, default: str
) -> tuple[Sequence[ReceiptRow], str]:
    names: Iterable[str] = ("position", "ts", "received", "device", "slot")
    return paginate(
        session,
        statement,
        query,
        {name: getattr(ReceiptRow, name) for name in names},
        ReceiptRow.id,
        default=default,
    )


def _counts(stored: dict[str, int]) -> histogram.Counts:
    return {int(bucket): count for bucket, count in stored.items()}


def _time(text: str, what: str) -> str:
    try:
        return format_time(parse_time(text))
    except InvalidInputError as error:
        raise InvalidInputError(
            f"`{what}` is not a time.", code="time_span", hint="Write 2026-01-31T12:00:00Z."
        ) from error
