"""A worker as a program of its own, where forking is not possible.

`--fd N`: its socket. `--spare N RUNTIME`: import the runtime and wait on socket N for that socket.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket

from edgefleet_agent.worker import compose, sandbox, serving
from edgefleet_shared.errors import IncompatibleError


def wait(fd: int, runtime: str) -> int:
    """Get ready, then wait; return the worker's socket, -1 if there is nothing to do any more."""
    sandbox.die_with_parent(os.getppid())
    with contextlib.suppress(IncompatibleError):  # the worker will say that it is missing
        compose.runtime(runtime)
    with socket.socket(fileno=fd) as control:
        _, fds, _, _ = socket.recv_fds(control, 1, 1)
        if fds:
            control.send(b"+")
    return fds[0] if fds else -1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fd", type=int, default=-1)
    parser.add_argument("--spare", nargs=2, metavar=("N", "RUNTIME"))
    options = parser.parse_args()
    own = wait(int(options.spare[0]), options.spare[1]) if options.spare else options.fd
    if own >= 0:
        serving.main(own)
