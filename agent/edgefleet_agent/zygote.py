"""The process that workers are forked from: it has imported runtimes and done nothing else.

It runs one thread, holds no secret and opens no model. On fd 3 (SOCK_SEQPACKET) the gateway sends
a request number and a runtime's name with the worker's end of a socketpair, and gets the number
with the worker's pid, or with a negative errno. The worker is a grandchild whose parent becomes the
gateway (a subreaper), so it outlives the zygote, and only the gateway reaps it. A runtime is
imported when the first model comes that needs it: a device that has two installed and uses one does
not hold both in memory.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import signal
import socket
import struct
import sys
import traceback
from pathlib import Path
from typing import NoReturn

from edgefleet_agent import code_pages
from edgefleet_agent.worker import compose, environment, sandbox, serving
from edgefleet_shared.errors import IncompatibleError


def main() -> None:
    """Fork workers until the gateway closes its end."""
    control = socket.socket(fileno=3)
    sandbox.die_with_parent(os.getppid())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    imported: set[bytes] = set()
    while True:
        data, fds, _, _ = socket.recv_fds(control, environment.REQUEST.size, 1)
        if not data:
            return
        number, name = environment.REQUEST.unpack(data)
        if name not in imported:
            imported.add(name)
            _import(name.rstrip(b"\0").decode())
        pid = _fork(control, fds[0]) if fds else -errno.EBADF
        for fd in fds:
            os.close(fd)
        control.send(environment.REPLY.pack(number, pid))


def _import(runtime: str) -> None:
    with contextlib.suppress(IncompatibleError):  # the worker will say that it is missing
        compose.runtime(runtime)
    gc.collect()
    gc.freeze()  # keeps the collector from touching pages that are shared
    code_pages.let_go()  # of what importing alone needed


def _fork(control: socket.socket, fd: int) -> int:
    if len(list(Path("/proc/self/task").iterdir())) != 1:
        return -errno.EDEADLK  # a lock of another thread would stay locked in the child for ever
    reader, writer = os.pipe()
    try:
        child = os.fork()
    except OSError as error:
        os.close(reader)
        os.close(writer)
        return -(error.errno or errno.EAGAIN)
    if not child:
        _between(control, writer, fd)
    os.close(writer)
    told = os.read(reader, 4)
    os.close(reader)
    os.waitpid(child, 0)
    return struct.unpack("<i", told)[0] if len(told) == 4 else -errno.EAGAIN


def _between(control: socket.socket, writer: int, fd: int) -> NoReturn:
    """Fork the worker, tell its pid and exit, so that the worker becomes the gateway's child."""
    try:
        worker = os.fork()
        if worker:
            os.write(writer, struct.pack("<i", worker))
            os._exit(0)
        os.close(writer)
        control.close()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        serving.main(fd)
    except BaseException:  # noqa: BLE001 - a forked process must never run its parent's code
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    main()
