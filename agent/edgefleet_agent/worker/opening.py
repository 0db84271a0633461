"""From an order to a session that has proved itself: open, golden vectors, warm-up."""

from __future__ import annotations

import contextlib
import mmap
import time
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple

import msgspec
import numpy as np

from edgefleet_agent import code_pages
from edgefleet_agent.ipc.frames import Order, Report
from edgefleet_agent.ports import Accelerator, Preparing, Runtime, Session
from edgefleet_agent.worker import batch_proof, compose, descriptors, golden, lint, sandbox
from edgefleet_agent.worker.calls import OUT_OF_MEMORY, run_checked, zeros
from edgefleet_agent.worker.peak import Peak
from edgefleet_agent.worker.processing import images
from edgefleet_agent.worker.processing.around import Around, read_labels
from edgefleet_shared.errors import EdgeFleetError, IncompatibleError, InvalidInputError

WARM_UP_RUNS = 3
MEASURE_S = 0.5
MEASURE_LEAST, MEASURE_MOST = 5, 500
"""How long and how often a proof that measures runs the golden inputs; at least the least."""


class Opened(NamedTuple):
    """The report, and the session unless the report is a refusal; `runs` = warm-up times, ns.

    `door` is what applications ask: the session itself, or with the package's processing around it.
    """

    report: Report
    session: Session | None
    runs: tuple[int, ...] = ()
    door: Session | None = None


def import_code(order: Order) -> None:
    """Import runtime and accelerator while files can still be read; `open_model` says what lacks.

    In a fork of the zygote all of it is there already, but for the decoders of images: few models
    need them, and they take 4 MB.
    """
    if order.spec.processing is not None and order.spec.processing.pre:
        with contextlib.suppress(IncompatibleError):
            images.load()
    if order.prepare_bytes:
        import_module("numpy.random")  # numpy itself leaves it for later; it takes some MB
    for make, name in (
        (compose.runtime, order.spec.runtime),
        (compose.accelerator, order.spec.accelerator),
    ):
        with contextlib.suppress(IncompatibleError):
            make(name)


def open_model(order: Order, files: Sequence[int]) -> Opened:
    """Load the model, compare its golden vectors, run it warm. Never raises for a bad model.

    The prepared form comes first where there is one; the package itself is always good enough.
    """
    own = order.spec.descriptors - order.spec.prepared_files
    package, prepared = files[:own], files[own:]
    note = ""
    if order.spec.prepared is not None:
        opened = _open_safely(order, package, prepared)
        if opened.session is not None:
            return opened
        note = f"The prepared form cannot be used: {opened.report.message}"
    opened = _open_safely(order, package, ())
    return opened._replace(report=msgspec.structs.replace(opened.report, note=note))


def _open_safely(order: Order, files: Sequence[int], prepared: Sequence[int]) -> Opened:
    """Open the prepared form if there is one, else the package; what is wrong is reported."""
    try:
        with Peak() as peak:
            opened = _open(order, files, prepared)
        report = msgspec.structs.replace(opened.report, peak_kb=peak.kb)
        return opened._replace(report=report)
    except EdgeFleetError as error:
        return Opened(Report(ok=False, code=error.code, message=str(error)), None)
    except MemoryError:
        return Opened(_out_of_memory(order, "no memory is left"), None)
    except (RuntimeError, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno == 12:
            return Opened(_out_of_memory(order, str(error)), None)
        if any(sign in str(error) for sign in OUT_OF_MEMORY):
            return Opened(_out_of_memory(order, str(error)), None)
        return Opened(Report(ok=False, code="load_failed", message=str(error)), None)


def _out_of_memory(order: Order, why: str) -> Report:
    limit = order.spec.limits.memory_mb
    return Report(
        ok=False,
        code="out_of_memory",
        message=f"The model needs more than the {limit} MB that its package allows: {why}",
    )


def _open(order: Order, files: Sequence[int], prepared: Sequence[int]) -> Opened:
    spec = order.spec
    started = time.monotonic_ns()
    accelerator = compose.accelerator(spec.accelerator)
    if why_not := accelerator.compatible(spec):
        raise IncompatibleError(why_not, code="unsupported_accelerator")
    runtime = compose.runtime(spec.runtime)
    package = files[: len(spec.files)]  # what follows is a way to the model
    descriptors.check(spec, package, rehash=order.again)
    lint.check(spec, package)
    slot = accelerator.reserve(spec)
    accelerator.program(slot, spec, [*package, *prepared])
    session = _session(order, files, prepared, runtime, accelerator)
    around = Around(session, spec, read_labels(spec, package)) if spec.processing else None
    loaded = time.monotonic_ns()
    cases = golden_cases(order, package)
    for index, case in enumerate(cases):
        found = run_checked(session, order, case.inputs)
        assert spec.golden is not None
        golden.compare(index, found, case.outputs, spec.golden)
    if spec.batching is not None:
        batch_proof.prove(session, order, cases, spec.batching)
    proved = time.monotonic_ns()
    inputs = cases[0].inputs if cases else zeros(order)
    if not order.again:  # for a worker that has crashed somebody may wait
        code_pages.let_go()  # of what loading alone needed; the warm-up brings back what runs
    runs: list[int] = []
    for _ in range(WARM_UP_RUNS):
        begun = time.perf_counter_ns()
        run_checked(session, order, inputs)
        runs.append(time.perf_counter_ns() - begun)
    median = _median_us(session, [case.inputs for case in cases] or [inputs], order)
    if around is not None:
        begun = time.perf_counter_ns()
        around.prove(inputs)
        runs.append(time.perf_counter_ns() - begun)
    return Opened(
        Report(
            ok=True,
            load_ms=(loaded - started) // 1_000_000,
            golden_ms=(proved - loaded) // 1_000_000,
            ready_ms=(time.monotonic_ns() - started) // 1_000_000,
            memory_kb=sandbox.private_kb(),
            accelerated_pct=getattr(session, "device_share", -1),
            median_us=median,
            prepared=bool(prepared),
        ),
        session,
        tuple(runs),
        around or session,
    )


def _median_us(session: Session, cases: Sequence[dict[str, np.ndarray]], order: Order) -> int:
    """Return the median microseconds of a run, over every case in turn; 0 if nobody asked."""
    if not order.measure:
        return 0
    times: list[int] = []
    until = time.monotonic() + MEASURE_S
    while len(times) < MEASURE_LEAST or (time.monotonic() < until and len(times) < MEASURE_MOST):
        begun = time.perf_counter_ns()
        session.run(cases[len(times) % len(cases)])
        times.append(time.perf_counter_ns() - begun)
    return max(1, sorted(times)[len(times) // 2] // 1000)


def _session(
    order: Order,
    files: Sequence[int],
    prepared: Sequence[int],
    runtime: Runtime,
    accelerator: Accelerator,
) -> Session:
    spec, providers = order.spec, accelerator.providers(order.spec)
    if not prepared:
        return runtime.open(spec, files, providers)
    assert spec.prepared is not None
    if spec.prepared.maker != maker(runtime):
        raise IncompatibleError(
            f"{spec.prepared.maker} has made it, here is {maker(runtime)}.", code="load_failed"
        )
    descriptors.check_prepared(spec.prepared, prepared, rehash=order.again)
    if not isinstance(runtime, Preparing):  # then its accelerator has made it
        return runtime.open(spec, files, providers)
    return runtime.open_prepared(spec, prepared, providers)


def golden_cases(order: Order, files: Sequence[int]) -> list[golden.Case]:
    """Return the cases of the package's golden file, none if it has no such file.

    Raises:
        InvalidInputError: It cannot be read (code `load_failed`).
    """
    wanted = order.spec.golden
    if wanted is None:
        return []
    for entry, fd in zip(order.spec.files, files, strict=True):
        if entry.path == wanted.path:
            with mmap.mmap(fd, entry.size, prot=mmap.PROT_READ) as mapping:
                return golden.read(bytes(mapping), wanted, order.spec)
    raise InvalidInputError(f"The package lacks {wanted.path!r}.", code="load_failed")


def maker(runtime: Runtime) -> str:
    """Return what a prepared form must say of the runtime that made it."""
    return f"{runtime.name} {runtime.version()}"
