"""Starts a worker with its order and waits, for as long as the package allows, for its report."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec

from edgefleet_agent.gateway.cgroups import Cgroups
from edgefleet_agent.gateway.child import Child, describe
from edgefleet_agent.gateway.dialer import Dialer
from edgefleet_agent.gateway.link import Link
from edgefleet_agent.gateway.spawner import Spawner
from edgefleet_agent.ipc import bodies, frames, loans
from edgefleet_agent.ipc.bodies import Bodies
from edgefleet_agent.ipc.control import ModelSpec
from edgefleet_agent.worker import devices
from edgefleet_shared.errors import UnavailableError

_BUFFER_BYTES = 1 << 20
_FIRST_PACKET = 64 * 1024
_EXIT_S = 2.0
PREPARE_LOADS = 4
"""Preparing loads the package twice and its form once, at idle priority."""
_LONGEST_ANSWER = 2**30  # bytes; nor can an answer be larger than the worker's memory


class Started(NamedTuple):
    """A worker's report; the rest only of one that serves.

    `descriptors` is the socket on which it takes applications' memory, `bodies` and `area` are
    shared with it for large requests and for lent connections.
    """

    report: frames.Report
    link: Link | None
    child: Child | None
    descriptors: socket.socket | None = None
    area: loans.Area | None = None
    bodies: Bodies | None = None


class Launcher:
    """Every worker of this gateway begins here; `running` holds those that have not ended."""

    def __init__(self, spawner: Spawner, threads: int, cgroups: Cgroups) -> None:
        self._spawner, self._cgroups = spawner, cgroups
        self._threads = threads
        self.running: set[Child] = set()

    async def launch_serving(
        self, spec: ModelSpec, files: Sequence[int], *, again: bool = False
    ) -> Started:
        """Start a worker that serves: with a socket for applications' memory, and room for loans.

        A container's worker is lent nothing: it would only pass on what it is asked. Nor is one
        that batches: it joins what comes over many connections.
        """
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            lends = spec.container is None and spec.batching is None
            with (
                far,
                _room_for_bodies() as (laid, fd),
                _room_for_loans(lends=lends) as (area, room),
            ):
                channels = [far.fileno(), fd, *room]
                started = await self.launch(spec, files, again=again, channels=channels)
        except BaseException:
            near.close()
            raise
        if started.link is None:
            near.close()
            return started
        return started._replace(descriptors=near, area=area, bodies=laid)

    async def launch(
        self,
        spec: ModelSpec,
        files: Sequence[int],
        *,
        prove: bool = False,
        again: bool = False,
        measure: bool = False,
        prepare_bytes: int = 0,
        cancel: asyncio.Future[None] | None = None,
        channels: Sequence[int] = (),
    ) -> Started:
        """Start a worker. Never raises for a bad model or a dead worker: the report says it.

        Args:
            spec: What to load.
            files: Descriptors in the order of `spec.files`, then that of the container's folder if
                it is one; they stay the caller's.
            prove: Load, run golden vectors, report, exit.
            again: It takes the place of one that died: the worker hashes the files itself.
            measure: Time the golden inputs too.
            prepare_bytes: As in `frames.Order`; with `prove`.
            cancel: Once it is done, the worker is ended.
            channels: As in `frames.Order`; they stay the caller's.
        """
        loop = asyncio.get_running_loop()
        begun = time.monotonic()
        dialer = Dialer(files[-1]) if spec.container else None
        ours, theirs = _pair()
        try:
            fresh = spec.accelerator in devices.KINDS
            child = await self._spawner.spawn(theirs, spec.runtime, fresh=fresh)
        except UnavailableError as error:
            ours.close()
            if dialer is not None:
                dialer.close()
            return _failed("load_failed", str(error))
        if dialer is not None:
            files = [*files[:-1], dialer.theirs.fileno()]
            child.ended.add_done_callback(lambda _: dialer.close())
        grouped = self._keep(child, spec, prove=prove)
        first: asyncio.Future[frames.Report | None] = loop.create_future()
        longest = min(spec.limits.memory_mb * 2**20, _LONGEST_ANSWER)
        link = Link(lambda frame: _on_report(first, frame), lambda: _on_lost(first), longest)
        threads = max(1, min(spec.threads, self._threads))
        spec = msgspec.structs.replace(spec, threads=threads)
        order = frames.Order(
            spec, prove, threads, os.getpid(), again, measure, prepare_bytes, len(channels)
        )
        rest = _send_order(ours, order, [*files, *channels])
        ours.setblocking(False)
        await loop.create_connection(lambda: link, sock=ours)
        if rest:
            link.send(rest, b"")
        patience = spec.limits.load_s * (PREPARE_LOADS if prepare_bytes else 1)
        left = patience - (time.monotonic() - begun)
        awaited: list[asyncio.Future[Any]] = [first, cancel] if cancel else [first]
        await asyncio.wait(awaited, timeout=max(0.0, left), return_when=asyncio.FIRST_COMPLETED)
        if not first.done():
            child.kill()
            link.close()
            await child.ended
            if cancel is not None and cancel.done():
                return _failed("canceled", "It was told to stop.")
            return _failed("load_timeout", f"It was not ready after {patience} s.")
        report = first.result()
        if report is None:
            status = await child.end(_EXIT_S)
            return _died(status, out_of_memory=child.out_of_memory)
        report = self._named(report) if grouped else report
        if report.ok and not prove:
            return Started(report, link, child)
        link.close()
        await child.end(_EXIT_S)
        return Started(report, None, None)

    def _keep(self, child: Child, spec: ModelSpec, *, prove: bool) -> bool:
        """Take charge of a worker that has loaded nothing yet; return whether a group holds it."""
        self.running.add(child)
        child.ended.add_done_callback(lambda _: self._ended(child))
        return self._cgroups.place(child.pid, spec.limits, prove=prove)

    def _named(self, report: frames.Report) -> frames.Report:
        return msgspec.structs.replace(report, sandbox=[*report.sandbox, self._cgroups.layer])

    def _ended(self, child: Child) -> None:
        self.running.discard(child)
        child.out_of_memory = self._cgroups.out_of_memory(child.pid)
        self._cgroups.remove(child.pid)


def _pair() -> tuple[socket.socket, socket.socket]:
    pair = socket.socketpair()
    for end in pair:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
    return pair


@contextlib.contextmanager
def _room_for_bodies() -> Iterator[tuple[Bodies, int]]:
    """Make memory for large bodies and give it with its descriptor, which is closed in the end."""
    fd = bodies.make()
    try:
        yield Bodies(fd), fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def _room_for_loans(*, lends: bool) -> Iterator[tuple[loans.Area | None, list[int]]]:
    """Make memory for loans and give it with its descriptor, which is closed in the end."""
    if not lends:
        yield None, []
        return
    fd = loans.make_area()
    try:
        yield loans.Area(fd), [fd]
    finally:
        os.close(fd)


def _send_order(sock: socket.socket, order: frames.Order, files: Sequence[int]) -> bytes:
    """Send the order's beginning with the descriptors; return what is still to be sent."""
    body = msgspec.msgpack.encode(order)
    data = frames.head(frames.OPEN, 0, 0, frames.NO_JSON, 0, len(body)) + body
    try:
        sent = socket.send_fds(sock, [data[:_FIRST_PACKET]], list(files))
    except OSError:
        return b""  # it has died; end of file tells that
    return data[sent:]


def _on_report(first: asyncio.Future[frames.Report | None], frame: frames.Frame) -> None:
    if first.done():
        return
    try:
        first.set_result(msgspec.msgpack.decode(frame[5], type=frames.Report).bounded())
    except msgspec.DecodeError:
        first.set_result(None)


def _on_lost(first: asyncio.Future[frames.Report | None]) -> None:
    if not first.done():
        first.set_result(None)


def _failed(code: str, message: str) -> Started:
    return Started(frames.Report(ok=False, code=code, message=message), None, None)


def _died(status: int, *, out_of_memory: bool) -> Started:
    if out_of_memory:
        return _failed("out_of_memory", "The kernel ended it: it outgrew its memory limit.")
    end = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    if end == signal.SIGXCPU:
        return _failed("load_timeout", "It used up the processor time that its package allows.")
    if end == signal.SIGSYS:
        return _failed("sandbox_violation", "It asked the kernel for what no model needs.")
    return _failed("crashed", f"The worker {describe(status)} while it loaded.")
