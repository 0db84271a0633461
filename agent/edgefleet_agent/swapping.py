"""Activate: move the route, measure what that did to requests, write the receipt."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Literal, NamedTuple

import msgspec

from edgefleet_agent import admission
from edgefleet_agent.gateway_client import GatewayClient
from edgefleet_agent.ipc.control import DigestStats
from edgefleet_agent.journal import VersionRef
from edgefleet_agent.probation import Sample
from edgefleet_agent.toolbox import Toolbox
from edgefleet_shared import histogram
from edgefleet_shared.messages import SwapReceipt

Kind = Literal["activate", "rollback", "restore", "stop"]
MEASURE_S = 0.5
"""Least time that counts as `during`; it goes on until the old version's requests are answered."""
AFTER_S = 5.0
"""How long the new version is watched for `after`; less where probation ends before."""

Reading = Mapping[str, DigestStats]


class Swap(NamedTuple):
    """A flip that was done.

    Attributes:
        old: What the route named before.
        before: The counters before it, and before a stand-in answered.
        receipt: So far as it is known.
        stand_in: The digest that answered meanwhile, '' if none did.
    """

    old: VersionRef | None
    before: Reading
    receipt: SwapReceipt
    stand_in: str = ""


def read(client: GatewayClient) -> dict[str, DigestStats]:
    """Return the gateway's counters by digest."""
    return {stats.digest: stats for stats in client.stats()}


def flip(
    tools: Toolbox,
    deployment: str,
    old: VersionRef | None,
    new: VersionRef,
    kind: Kind,
    trigger: str = "",
    before: Reading | None = None,
) -> Swap:
    """Route the model to `new`, which is loaded.

    `before` is a reading from before requests were held, if they were.

    Raises:
        GatewayRefusedError: It is not loaded; the route stands as it was.
        GatewayLostError: The gateway went away; the route is what it says when it is back.
    """
    client = tools.gateway()
    now = read(client)
    tools.telemetry.close_windows(client.state.boot, list(now.values()))
    peak = admission.workers_kb([w.pid for w in client.workers() if w.model == new.model and w.pid])
    flipped = client.flip(new.model, new.digest)
    before = before or now
    was = before.get(old.digest) if old else None
    receipt = msgspec.structs.replace(
        unmeasured(tools, deployment, old, new, kind),
        in_flight=flipped.in_flight,
        p50_us_before=_us(was.latency, 0.5) if was else None,
        p99_us_before=_us(was.latency, 0.99) if was else None,
        trigger=trigger,
        peak_memory_kb=peak,
    )
    return Swap(old, before, receipt)


def measure(tools: Toolbox, swap: Swap, drain_s: float) -> tuple[SwapReceipt, Reading]:
    """Watch until the old version's requests are answered; return the receipt and the counters.

    Raises:
        GatewayLostError: The gateway went away; the receipt stays as it was.
    """
    client, receipt = tools.gateway(), swap.receipt
    begun, gap = time.monotonic(), 0
    while True:
        time.sleep(0.1)
        now = read(client)
        gap = max([gap, *(s.max_gap_us for s in now.values() if s.model == receipt.slot)])
        elapsed = time.monotonic() - begun
        old = now.get(receipt.from_digest)
        if elapsed >= MEASURE_S and (old is None or not old.in_flight or elapsed >= drain_s):
            break
    empty = DigestStats(receipt.slot, "", "", "", 0, 0, 0, 0, 0, 0, 0, 0, 0, {}, {})
    pairs = [
        (now.get(digest, empty), swap.before.get(digest, empty))
        for digest in dict.fromkeys((receipt.from_digest, receipt.to_digest, swap.stand_in))
        if digest in now
    ]
    latency = histogram.merge(*(histogram.difference(a.latency, b.latency) for a, b in pairs))
    stood_in = [a.requests - b.requests for a, b in pairs if a.digest == swap.stand_in]
    receipt = msgspec.structs.replace(
        receipt,
        stand_in_requests=sum(stood_in),
        failed=sum(a.server_errors + a.rejected - b.server_errors - b.rejected for a, b in pairs),
        requests_during=sum(a.requests - b.requests for a, b in pairs),
        p50_us_during=_us(latency, 0.5),
        p99_us_during=_us(latency, 0.99),
        gap_us=gap,
        memory_kb=now.get(receipt.to_digest, empty).memory_kb,
        accelerated_pct=now.get(receipt.to_digest, empty).accelerated_pct,
    )
    return receipt, now


def with_after(tools: Toolbox, receipt: SwapReceipt, since: Reading) -> SwapReceipt:
    """Return the receipt with how the new version has answered since a reading.

    Raises:
        GatewayLostError: The gateway went away.
    """
    now, before = read(tools.gateway()).get(receipt.to_digest), since.get(receipt.to_digest)
    if now is None or before is None or now.requests < before.requests:
        return receipt
    latency = histogram.difference(now.latency, before.latency)
    return msgspec.structs.replace(
        receipt, p50_us_after=_us(latency, 0.5), p99_us_after=_us(latency, 0.99)
    )


def unmeasured(
    tools: Toolbox,
    deployment: str,
    old: VersionRef | None,
    new: VersionRef | None,
    kind: Kind = "activate",
) -> SwapReceipt:
    """Return a receipt of now that knows from what to what, and no more."""
    version = new or old
    return SwapReceipt(
        ts=tools.stamp(),
        kind=kind,
        slot=version.model if version else "",
        deployment=deployment,
        from_digest=old.digest if old else "",
        from_version=old.version if old else "",
        to_digest=new.digest if new else "",
        to_version=new.version if new else "",
        in_flight=0,
        failed=0,
        requests_during=0,
        ready_ms=0,
        p50_us_before=None,
        p99_us_before=None,
        p99_us_during=None,
    )


def _us(counts: Mapping[int, int], q: float) -> int | None:
    value = histogram.quantile_ns(counts, q)
    return None if value is None else value // 1000


def sample(now: DigestStats | None, before: DigestStats | None = None) -> Sample:
    """Return what one digest answered since a reading, for `probation`."""
    if now is None:
        return Sample()
    if before is None or before.requests > now.requests:
        return Sample(now.requests, now.server_errors, now.nonfinite, now.crashes, now.compute)
    return Sample(
        now.requests - before.requests,
        now.server_errors - before.server_errors,
        now.nonfinite - before.nonfinite,
        now.crashes - before.crashes,
        histogram.difference(now.compute, before.compute),
    )
