"""`python -m edgefleet_agent.containers --fd N`: the keeper, on its socket to agentd."""

from __future__ import annotations

import argparse
import os
import signal
import socket

import msgspec

from edgefleet_agent.containers.client import Settings
from edgefleet_agent.containers.engine import Engine
from edgefleet_agent.containers.keeper import Keeper


def main() -> None:
    """Be the keeper until agentd closes its end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fd", type=int, required=True)
    fd = parser.parse_args().fd
    os.set_inheritable(fd, False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sock = socket.socket(fileno=fd)
    # Passwords come by the socket: everybody on this machine may read a command line.
    given = msgspec.msgpack.decode(sock.recv(65536), type=Settings)
    Keeper(sock, lambda: Engine(given.docker, given.fleet, given.device, given.registries)).run()


if __name__ == "__main__":
    main()
