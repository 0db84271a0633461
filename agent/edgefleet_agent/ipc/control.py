"""Control messages between agentd (client) and gateway (server); `ipc/packets.py` carries them.

agentd connects to `<run_dir>/control.sock`, sends requests with an id of its choice and gets one
reply with the same id; the gateway sends `Event` messages in between. Descriptors of verified blobs
travel with `Prove` and `Load` by SCM_RIGHTS, in the order of `ModelSpec.files`, and after them the
opened register window of a core in an FPGA. The gateway serves on when agentd goes away; a new
agentd says `Hello` and finds what runs.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from edgefleet_agent.ipc.model_spec import ModelSpec, PreparedFile, PreparedForm

__all__ = ["ModelSpec", "PreparedFile", "PreparedForm"]

MAX_FDS = 250
"""Descriptors of one message; Linux takes 253 (SCM_MAX_FD)."""
PREPARED_FILES = 2
"""How many files a prepared form has: the graph, and its weights."""

LAYERS = ("rlimits", "no_new_privs", "no_capabilities", "landlock", "seccomp")
"""What a worker should be shut in by; `netns` comes on top where privilege allows it."""


class Hello(msgspec.Struct, tag=True, frozen=True):
    """First message of a connection; answered by `GatewayState`."""

    id: int


class Prove(msgspec.Struct, tag=True, frozen=True):
    """Load in a throw-away process, run the golden vectors, report, exit. Answered by `Outcome`.

    `measure`: run the golden inputs long enough to tell their median time.
    """

    id: int
    spec: ModelSpec
    measure: bool = False


class Prepare(msgspec.Struct, tag=True, frozen=True):
    """Make the package's prepared form in a throw-away process. Answered by `Outcome`.

    After the package's descriptors come `PREPARED_FILES` empty files, open for writing, of which
    each may grow to `max_bytes`. Code `does_not_pay`: loading it as it is takes as little time;
    `nothing_to_prepare`: its runtime knows no such form; `prepared_differs`: the form answers
    otherwise than the package.
    """

    id: int
    spec: ModelSpec
    max_bytes: int


class Cancel(msgspec.Struct, tag=True, frozen=True):
    """End what proves or prepares `digest`; that request's outcome has the code `canceled`."""

    id: int
    digest: str


class Load(msgspec.Struct, tag=True, frozen=True):
    """Start a worker beside the ones that serve; golden and warm-up. Answered by `Outcome`.

    Loading a digest that is loaded already succeeds at once.
    """

    id: int
    spec: ModelSpec


class Flip(msgspec.Struct, tag=True, frozen=True):
    """Route `model` to the loaded `digest`; the previous one becomes the standby.

    Answered by `Flipped`, or by `Outcome` with the code `not_loaded`, `not_ready` (its worker is
    being restarted) or `quarantined`.
    """

    id: int
    model: str
    digest: str


class Canary(msgspec.Struct, tag=True, frozen=True):
    """Let the loaded `digest` answer `pct` percent of `model`'s clients for `lease_s` seconds.

    Said again, it goes on; not said again, it ends, and what is active answers everything. It ends
    at once with 0 percent, with the digest's worker, and with a `Flip`, `Hold` or `Unroute`.
    Requests that name a version are not touched. Answered by `Outcome`: `not_loaded`, `active`.
    """

    id: int
    model: str
    digest: str
    pct: int
    lease_s: int = 10


class Shadow(msgspec.Struct, tag=True, frozen=True):
    """Give the loaded `digest` copies of `pct` percent of `model`'s answered requests.

    A lease as `Canary`, and ended alike: by `Canary` with 0 percent, a `Flip` and so on. Answered
    by `Shadowed`, or by `Outcome`: `not_loaded`, `active`.
    """

    id: int
    model: str
    digest: str
    pct: int
    lease_s: int = 10


class Hold(msgspec.Struct, tag=True, frozen=True):
    """End every worker of `model` while its requests wait for the next `Flip`.

    What the workers are busy with gets up to `drain_s` seconds; what is not answered then waits
    too, no request longer than its deadline. Answered by `Outcome` once the memory is free.
    """

    id: int
    model: str
    drain_s: int = 10


class Unroute(msgspec.Struct, tag=True, frozen=True):
    """Answer 404 for `model` from now on; its workers drain and exit. Answered by `Outcome`."""

    id: int
    model: str


class Release(msgspec.Struct, tag=True, frozen=True):
    """Drain `digest` for up to `drain_s` seconds, then end its worker. Answered by `Outcome`.

    Refused (code `active`) while the digest is routed.
    """

    id: int
    digest: str
    drain_s: int = 10


class Stats(msgspec.Struct, tag=True, frozen=True):
    """Ask for cumulative counters; answered by `StatsReply`."""

    id: int


class Shutdown(msgspec.Struct, tag=True, frozen=True):
    """End gateway, zygote and workers after draining. Answered by `Outcome`, then end of file."""

    id: int


class Outcome(msgspec.Struct, tag=True, frozen=True):
    """How a request ended; `code` and `message` are for a report.

    Codes of Prove and Load: `load_failed`, `golden_mismatch`, `batch_mismatch`, `load_timeout`,
    `out_of_memory`, `crashed`, `canceled`, `sandbox_violation`, `unsupported_runtime`,
    `unsupported_accelerator`, and those of the lint. Times are milliseconds, memory the worker's
    private kilobytes and the
    most anonymous memory that loading took; `sandbox` names the layers that the worker was shut in
    by. `accelerated_pct` is the share of the model's nodes on the variant's accelerator (-1 = not
    known), `median_us` the median run of a proof that measured. `prepared`: the prepared form is
    what was loaded; `note` says why not, where there was one; `maker` is what has made a form.
    """

    id: int
    ok: bool
    code: str = ""
    message: str = ""
    load_ms: int = 0
    golden_ms: int = 0
    ready_ms: int = 0
    memory_kb: int = 0
    pid: int = 0
    sandbox: list[str] = []
    accelerated_pct: int = -1
    median_us: int = 0
    peak_kb: int = 0
    prepared: bool = False
    note: str = ""
    maker: str = ""


class Flipped(msgspec.Struct, tag=True, frozen=True):
    """The route moved: from which digest ('' = none), and requests in flight on it just then."""

    id: int
    previous: str
    in_flight: int


class Shadowed(msgspec.Struct, tag=True, frozen=True):
    """What a version in the shadow has answered since it began, copies that were `dropped` aside.

    `requests` were answered 200, `errors` otherwise; `compute` is as in `DigestStats`. Of
    `compared` answers so many `agreed` with the live one; `max_difference_ppm` is the largest
    difference in a floating-point number, in millionths.
    """

    id: int
    requests: int = 0
    errors: int = 0
    nonfinite: int = 0
    compared: int = 0
    agreed: int = 0
    dropped: int = 0
    max_difference_ppm: int = 0
    compute: dict[int, int] = {}


class DigestStats(msgspec.Struct, frozen=True):
    """Cumulative counters of one digest over the life of this gateway, reloads included.

    `role` is as in `WorkerInfo`, or `released` for a digest that is no longer loaded. `requests`
    were answered 200; `nonfinite` of them held NaN or infinity. `latency` is the whole request in
    the gateway, `compute` the worker's run: `edgefleet_shared.histogram` counts. `max_gap_us`, of
    the active digest alone, is the longest time since the last `Stats` that the model let pass
    between two answers while a request was open: a time without requests is no gap.
    `latency_ns` and `compute_ns` are the sums of what the histograms hold, `failed_ns` that of all
    requests answered otherwise, `last_ms` the last answer's time since the Unix epoch.
    `executions` are runs of the model and `inferences` their rows, as Triton counts: without
    batching each request is one of both. `batches`, of a loaded model that is run in batches, holds
    by rows how many runs there were and their nanoseconds.
    """

    model: str
    version: str
    digest: str
    role: str
    requests: int
    client_errors: int
    server_errors: int
    rejected: int
    nonfinite: int
    replayed: int
    crashes: int
    in_flight: int
    memory_kb: int
    latency: dict[int, int]
    compute: dict[int, int]
    max_gap_us: int = 0
    accelerated_pct: int = -1
    latency_ns: int = 0
    compute_ns: int = 0
    failed_ns: int = 0
    last_ms: int = 0
    executions: int = 0
    inferences: int = 0
    batches: dict[int, tuple[int, int]] = {}


class StatsReply(msgspec.Struct, tag=True, frozen=True):
    """Answer to `Stats`."""

    id: int
    digests: list[DigestStats]


class WorkerInfo(msgspec.Struct, frozen=True):
    """One loaded digest; role is `active`, `standby` or `idle` (loaded, not routed).

    `pid` is 0 while its worker is being restarted, and once it is quarantined. `accelerated_pct` is
    as in `Outcome`.
    """

    model: str
    version: str
    digest: str
    role: str
    pid: int
    accelerated_pct: int = -1


class GatewayState(msgspec.Struct, tag=True, frozen=True):
    """Answer to `Hello`: what this gateway runs. `boot` differs after each start of the gateway.

    `sandbox` names the layers of the last worker that reported; empty before the first.
    """

    id: int
    pid: int
    boot: str
    workers: list[WorkerInfo]
    sandbox: list[str] = []


class Event(msgspec.Struct, tag=True, frozen=True):
    """Something happened in the gateway: a worker died or came back, or what it runs on changed.

    The codes: `worker_died`, `restarted`, `quarantined`, `sandbox`, `cpu_fallback`,
    `prepared_unused` (a worker was restarted without the prepared form, which cannot be used).

    `quarantined` comes after three crashes within a minute: the digest is not restarted, and the
    route has moved to the standby where there is one (`fallback`, else ''). `sandbox` comes when
    the layers that workers are shut in by are known, or are others: `message` names them.
    `cpu_fallback` comes when a restarted worker runs less of its model on the accelerator than the
    one before it.
    """

    code: str
    model: str
    digest: str
    message: str
    fallback: str = ""


Request = (
    Hello
    | Prove
    | Prepare
    | Cancel
    | Load
    | Flip
    | Canary
    | Shadow
    | Hold
    | Unroute
    | Release
    | Stats
    | Shutdown
)
Reply = Outcome | Flipped | Shadowed | StatsReply | GatewayState
Message = Request | Reply | Event


def missing_layers(sandbox: Sequence[str]) -> list[str]:
    """Return which of `LAYERS` are not among those that hold; a version may follow a name."""
    held = {layer.partition(" ")[0] for layer in sandbox}
    return [layer for layer in LAYERS if layer not in held]
