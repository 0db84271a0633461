"""Run a command that dies with its parent: `python -m edgefleet_cloud.broker.tether PID CMD...`.

The kernel keeps a parent-death signal across `execve`, so the broker needs no help of its own, and
the fleet manager, which has threads, need not run Python between fork and exec.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """Ask for SIGTERM when the thread that started us ends; leave if `parent` is gone already.

    Args:
        parent: Process id of the starter, as it saw itself.
    """
    # Elsewhere than on Linux there is no such call; `amqtt_child` then watches by polling.
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(0)


def main() -> None:
    """Tie this process to its parent and become the command."""
    die_with(int(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606 - the starter names the broker to run


if __name__ == "__main__":
    main()
