"""A worker's life: take the order, load, report, then answer frames until the socket ends."""

from __future__ import annotations

import array
import os
import socket
import threading
import time
from collections.abc import Sequence

import msgspec

from edgefleet_agent.ipc import bodies, frames, loans
from edgefleet_agent.ipc.control import MAX_FDS
from edgefleet_agent.ipc.control import PREPARED_FILES as MADE
from edgefleet_agent.ports import Session
from edgefleet_agent.worker import preparing, sandbox
from edgefleet_agent.worker.answering import Answerer
from edgefleet_agent.worker.batch_loop import BatchLoop
from edgefleet_agent.worker.codec import Codec
from edgefleet_agent.worker.fast_codec import FastCodec
from edgefleet_agent.worker.joint import Joint
from edgefleet_agent.worker.lent_http import Heads
from edgefleet_agent.worker.loop import Loop
from edgefleet_agent.worker.opening import Opened, import_code, open_model
from edgefleet_agent.worker.pace import Pace
from edgefleet_agent.worker.pool import Pool
from edgefleet_agent.worker.processing.around import Around

_REPARENT_S = 5.0


def main(fd: int) -> None:
    """Be a worker on the gateway's socket `fd`; returns when the work is done."""
    sock = socket.socket(fileno=fd)
    buffer = frames.FrameBuffer()
    received = _receive_order(sock, buffer)
    if received is None:
        return
    order, files = received
    last = len(files) - order.channels
    files, channels = files[:last], files[last:]
    area = _map_area(channels)
    buffer.held = _map_bodies(channels)
    _wait_for_parent(order.parent)
    sandbox.die_with_parent(order.parent)
    sandbox.close_others([fd, *files, *channels])
    import_code(order)
    spec = order.spec
    connections = spec.container.container.concurrency if spec.container else 0
    slots = loans.SLOTS if area else 0
    sandbox.give_up_rights(len(files) + len(channels) + connections + slots, spec)
    sandbox.limit(order)
    if order.prepare_bytes:
        opened = _prepare(order, files)
        layers = opened.report.sandbox
    else:
        reopened = files[: len(spec.files)] if spec.container else files  # no rule is for a socket
        layers = sandbox.confine(reopened, spec, fatal=order.prove)
        opened = _open_gently(order, files)
    for file in files:
        os.close(file)
    body = msgspec.msgpack.encode(msgspec.structs.replace(opened.report, sandbox=layers))
    sock.sendall(frames.head(frames.REPORT, 0, 0, frames.NO_JSON, 0, len(body)) + body)
    if opened.session is not None and not order.prove:
        codec, door = Codec(order.spec), opened.door or opened.session
        fast = FastCodec(order.spec, codec, socket.socket(fileno=channels[0]))
        answerer = Answerer(opened.session, door, codec, fast)
        pace = Pace(opened.runs, elsewhere=order.spec.container is not None)
        pool = _pool(order, opened.session)
        if order.spec.batching is not None:
            joint = _joint(order, opened.session, door, answerer)
            threads = pool or Pool(1)  # so that it receives while it runs
            BatchLoop(sock, buffer, answerer, pace, threads, joint, order.spec.batching).run()
        else:
            Loop(sock, buffer, answerer, pace, pool, area, Heads(order.spec)).run()


def _joint(order: frames.Order, session: Session, door: Session, answerer: Answerer) -> Joint:
    """Return what runs several requests as one."""
    processing = order.spec.processing
    return Joint(
        session,
        door if isinstance(door, Around) else None,
        answerer,
        [tensor.name for tensor in order.spec.outputs],
        pictures=bool(processing and processing.pre),
    )


def _map_area(channels: list[int]) -> loans.Area | None:
    """Map the memory for lent connections, before any limit on memory, and close it."""
    if len(channels) < 3:
        return None
    fd = channels.pop()
    area = loans.Area(fd)
    os.close(fd)
    return area


def _map_bodies(channels: list[int]) -> memoryview | None:
    """Map the memory in which large requests lie, likewise."""
    if len(channels) < 2:
        return None
    fd = channels.pop()
    view = bodies.read(fd)
    os.close(fd)
    return view


def _pool(order: frames.Order, session: Session) -> Pool | None:
    """Return threads for as many runs at a time as there are cores for, None for one at a time."""
    if order.spec.container is not None:
        width = order.spec.container.container.concurrency  # its threads only wait
        return Pool(width) if width > 1 else None
    width = len(os.sched_getaffinity(0)) // max(1, order.threads)
    return Pool(width) if width > 1 and getattr(session, "concurrent", False) else None


def _receive_order(
    sock: socket.socket, buffer: frames.FrameBuffer
) -> tuple[frames.Order, list[int]] | None:
    files: list[int] = []
    while True:
        space = socket.CMSG_SPACE(MAX_FDS * 4)
        count, ancillary, _, _ = sock.recvmsg_into([buffer.space()], space, socket.MSG_CMSG_CLOEXEC)
        if not count:
            return None
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                numbers = array.array("i")
                numbers.frombytes(data[: len(data) - len(data) % 4])
                files.extend(numbers)
        buffer.wrote(count)
        frame = buffer.next()
        if frame is not None:
            return msgspec.msgpack.decode(frame[5], type=frames.Order), files


def _wait_for_parent(parent: int) -> None:
    """Wait until the process between the zygote and us is gone and the gateway is our parent."""
    deadline = time.monotonic() + _REPARENT_S
    while os.getppid() != parent and time.monotonic() < deadline:
        time.sleep(0.001)


def _prepare(order: frames.Order, files: Sequence[int]) -> Opened:
    """Make the prepared form; the descriptors after the package's alone may be written."""
    sandbox.idle()
    package, targets = files[:-MADE], files[-MADE:]
    layers = sandbox.confine(package, order.spec, fatal=True, writable=targets)
    report = preparing.prepare(order, package, targets, layers)
    return Opened(msgspec.structs.replace(report, sandbox=layers), None)


def _open_gently(order: frames.Order, files: Sequence[int]) -> Opened:
    """Load in a thread of low priority, so that nobody who is being served feels it.

    Raising a priority again needs a privilege, leaving a thread behind does not. With several
    threads onnxruntime's pool would keep the low priority for ever: then load at the normal one.
    """
    if order.threads > 1 and not order.prove:
        return open_model(order, files)
    result: list[Opened] = []

    def load() -> None:
        sandbox.lower_this_thread()
        result.append(open_model(order, files))

    thread = threading.Thread(target=load)
    thread.start()
    thread.join()
    if not result:
        raise RuntimeError("The loading thread ended without a result.")
    return result[0]
