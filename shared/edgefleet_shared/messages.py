"""What travels between the fleet manager and a device; unknown fields are ignored, types strict.

Everything that decides something is signed: `Assignment` by the director, `Reported` and `Batch` by
the device. Times are RFC 3339 UTC text; numbers are integers with their unit in the name.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

ASSIGNMENT_TYPE = "application/vnd.edgefleet.assignment.v1+json"
REPORTED_TYPE = "application/vnd.edgefleet.reported.v1+json"
BATCH_TYPE = "application/vnd.edgefleet.batch.v1+json"
ACCESS_TYPE = "application/vnd.edgefleet.access.v1+json"

DESIRED_MAX_BYTES = 512 * 1024
"""A real one has some 20 kB; three hundred roots of two keys of three fit, each with a new key."""
REPORT_MAX_BYTES = 64 * 1024
MAX_SLOTS = 64
"""Slots of one assignment, and of one device that are there only to be ended."""

Stream = Literal["events", "receipts", "telemetry"]


SwapWay = Literal["auto", "overlap", "stand_in", "drain", "refuse"]
"""How a new version takes over.

`overlap`: it is loaded beside the old one, always. `stand_in`: the variant that the package names
as fallback answers while the old one ends and the new one is loaded; always, and without such a
variant that fits the deployment fails. `drain`: requests wait, the old one ends, the new one is
loaded, requests go on; always. `auto`: the first of overlap, stand-in and drain for which memory is
enough. `refuse`: overlap where memory is enough, else the deployment fails.
"""

TakenWay = Literal["overlap", "stand_in", "drain"]
"""How a version did take over."""


class Policy(msgspec.Struct, frozen=True):
    """How a device treats a new version during its probation.

    Attributes:
        probation_s: Seconds of service before the version counts as good.
        min_requests: Answers needed for a verdict; with fewer, probation ends `inconclusive`.
        max_error_ppm: Server errors per million answers that are still fine.
        max_nonfinite_ppm: Answers holding NaN or infinity, per million, that are still fine.
        max_latency_pct: Median compute time, in percent of the previous version's; 0: no limit.
        max_crashes: Worker crashes that are still fine.
        standby_s: Seconds the previous version stays loaded after probation.
        drain_s: Seconds that requests on the old version get to finish.
        swap: What happens where memory has no room for two versions at once; see `SwapWay`.
        shadow_s: Seconds for which the new version gets copies of requests before it takes over,
            and nobody its answers; 0: none.
        shadow_pct: How many of the requests are copied, in percent; 0: no window.
        min_agreement_pct: Answers to those copies that must agree with the live ones, in percent.
        canary_s: Seconds for which the new version answers a share before it takes over; 0: none.
        canary_pct: That share of the clients, in percent, chosen by a hash; 0: no window.
    """

    probation_s: int = 60
    min_requests: int = 20
    max_error_ppm: int = 10_000
    max_nonfinite_ppm: int = 0
    max_latency_pct: int = 300
    max_crashes: int = 0
    standby_s: int = 0
    drain_s: int = 10
    swap: SwapWay = "auto"
    shadow_s: int = 0
    shadow_pct: int = 10
    min_agreement_pct: int = 0
    canary_s: int = 0
    canary_pct: int = 10


class SlotAssignment(msgspec.Struct, frozen=True):
    """What one model slot of a device should do. The slot's name is the model's name.

    `manifest` and `size` repeat the TUF target's digest and length: both trust roots must agree.
    """

    mode: Literal["run", "stop"]
    deployment: str
    model: str
    version: str
    manifest: str
    size: int
    release_counter: int
    rollout: str = ""
    policy: Policy = Policy()


class Assignment(msgspec.Struct, frozen=True):
    """What one device should run now.

    A slot that is not named is left as it is; one that names none ends every slot, unless the
    device's own configuration keeps them (`empty_assignment`). It names its device all the same, so
    that nobody's empty assignment stops anybody else.

    `key` is the digest of the device's public key (SPKI, DER); `counter` only grows.
    """

    v: Literal[1]
    fleet: str
    device: str
    key: str
    counter: int
    issued: str
    expires: str
    slots: dict[str, SlotAssignment]


class Desired(msgspec.Struct, frozen=True):
    """The retained downwards document.

    `assignment` is a DSSE envelope (base64 of its JSON); `bundle` is `bundle.encode()` in base64
    and holds every TUF file the device may lack: what is absent from it does not exist. `blobs` is
    the base URL under which `/<digest>` answers.
    """

    v: Literal[1]
    counter: int
    ts: str
    assignment: str
    bundle: str
    blobs: str


class Get(msgspec.Struct, frozen=True):
    """A device asks for its desired document; `have` is the newest counter it accepted."""

    v: Literal[1]
    have: int
    root_version: int = 1


class Presence(msgspec.Struct, frozen=True):
    """A hint, not a proof: last-seen time decides. `boot` differs after each start of the agent."""

    v: Literal[1]
    online: bool
    boot: str
    agent: str = ""


class SlotReport(msgspec.Struct, frozen=True):
    """One slot as the device sees it.

    `state` is a `states.DeploymentState`; `reason` a stable code, `detail` a sentence. `active`,
    `previous` and `target` are manifest digests or ''. `verdict` is what probation found:
    pass, fail, inconclusive or ''. `variant` is the one taken of the target, `choice` why, with the
    numbers of those that were measured.
    """

    deployment: str
    attempt: int
    seq: int
    state: str
    active: str
    active_version: str
    previous: str = ""
    target: str = ""
    target_version: str = ""
    reason: str = ""
    detail: str = ""
    verdict: str = ""
    bytes_done: int = 0
    bytes_total: int = 0
    since: str = ""
    variant: str = ""
    choice: str = ""


class OwnersLock(msgspec.Struct, frozen=True):
    """Whoever stands beside the device lets no model change.

    `by` is the user's name there, `until` '' = until it is lifted. Times are RFC 3339 UTC. A lock
    that cannot be read is one all the same, with `since` '' and the cause as its reason.
    """

    since: str
    by: str = ""
    reason: str = ""
    until: str = ""

    def __str__(self) -> str:
        """Say it in a sentence."""
        by = f" by {self.by}" if self.by else ""
        end = f" until {self.until}" if self.until else ""
        return f"Locked on the device{by}{end}: {self.reason or 'no reason was given'}."


class Reported(msgspec.Struct, frozen=True):
    """The device's whole state; `seq` only grows over the device's life, across boots.

    `counter` is the newest assignment counter it accepted, `refused` the code of the newest one it
    did not, or ''; `locked` the owner's lock while it holds.
    """

    v: Literal[1]
    device: str
    boot: str
    seq: int
    ts: str
    counter: int
    slots: dict[str, SlotReport]
    agent: dict[str, Any] = {}
    refused: str = ""
    locked: OwnersLock | None = None


class Batch(msgspec.Struct, frozen=True):
    """Items of one outbox stream. Item i has sequence number `seqs[i]`; a hole is a lost item.

    `dropped` counts the items that the device's disk budget has dropped from this stream so far.
    """

    v: Literal[1]
    device: str
    boot: str
    stream: Stream
    ts: str
    seqs: list[int]
    items: list[dict[str, Any]]
    dropped: int = 0


class DeviceEvent(msgspec.Struct, frozen=True):
    """One item of stream `events`; `step` is one of the twelve words, `code` is stable."""

    ts: str
    level: Literal["debug", "info", "warning", "error"]
    step: str
    code: str
    message: str
    slot: str = ""
    deployment: str = ""
    digest: str = ""
    data: dict[str, Any] = {}


class TrialResult(msgspec.Struct, frozen=True):
    """What a window before the flip has shown.

    Attributes:
        pct: The share, in percent.
        seconds: How long the policy asked for.
        verdict: pass, fail or inconclusive (too few requests).
        requests: Answers of the new version; `server_errors`, `nonfinite` and `crashes` of it too.
        p50_us: Its median run, microseconds; None: nobody asked.
        live_requests: Answers of the version that served, meanwhile; `live_p50_us` likewise.
        compared: In the shadow: answers that were compared with the live one; `agreed` of them did.
        dropped: In the shadow: requests of the share that were not copied.
        max_difference_ppm: In the shadow: the largest difference in a number, in millionths.
    """

    pct: int
    seconds: int
    verdict: Literal["pass", "fail", "inconclusive"]
    requests: int
    server_errors: int
    nonfinite: int
    crashes: int
    p50_us: int | None
    live_requests: int
    live_p50_us: int | None
    compared: int = 0
    agreed: int = 0
    dropped: int = 0
    max_difference_ppm: int = 0


class SwapReceipt(msgspec.Struct, frozen=True):
    """One item of stream `receipts`: what a change of the active version did to requests.

    `kind` says why: activate, rollback, restore (after a restart) or stop. Latencies are
    microseconds over the window named, None where nobody asked; `gap_us` is the longest time
    between two answers in `during`. `accelerated_pct` is the share of the new version's nodes that
    run on its accelerator, -1 where that is not known.

    `way` is how it took over; `pause_ms` how long requests were held for a drain; `stand_in` the
    variant that answered while the version itself could not ('' = none), and
    `stand_in_requests` how many of `requests_during` it answered. `shadow` and
    `canary` are what those windows before the flip have shown, None if there was none.
    `prepared`: the new version was loaded from the form that the device has made of it.
    `peak_memory_kb` is the proportional memory (PSS) of all workers of the model when most of them
    were loaded.
    """

    ts: str
    kind: Literal["activate", "rollback", "restore", "stop"]
    slot: str
    deployment: str
    from_digest: str
    from_version: str
    to_digest: str
    to_version: str
    in_flight: int
    failed: int
    requests_during: int
    ready_ms: int
    p50_us_before: int | None
    p99_us_before: int | None
    p99_us_during: int | None
    p50_us_after: int | None = None
    p99_us_after: int | None = None
    memory_kb: int = 0
    gap_us: int = 0
    trigger: str = ""
    accelerated_pct: int = -1
    p50_us_during: int | None = None
    way: TakenWay = "overlap"
    pause_ms: int = 0
    prepared: bool = False
    peak_memory_kb: int = 0
    stand_in: str = ""
    stand_in_requests: int = 0
    shadow: TrialResult | None = None
    canary: TrialResult | None = None


class TelemetryWindow(msgspec.Struct, frozen=True):
    """One item of stream `telemetry`: what one model digest answered from `start` to `end`.

    `requests` were answered 200; the other counts stand beside it. `nonfinite` of `requests` held a
    NaN or an infinity. `latency` (gateway, whole request) and `compute` (worker alone) are
    `histogram` counts. `accelerated_pct` is as in `SwapReceipt`.
    """

    start: str
    end: str
    slot: str
    digest: str
    version: str
    requests: int
    client_errors: int
    server_errors: int
    rejected: int
    nonfinite: int
    replayed: int
    crashes: int
    latency: dict[int, int]
    compute: dict[int, int]
    memory_kb: int = 0
    accelerated_pct: int = -1


class Access(msgspec.Struct, frozen=True):
    """What a device signs to read blobs over HTTP; valid until `expires`, at `audience` alone.

    `audience` is the origin of the URL it asks (scheme, host and port), so that a host that a
    hostile broker points it to cannot use the statement at the fleet manager.
    """

    fleet: str
    device: str
    audience: str
    expires: str
