"""Loopback addresses for servers whose port is fixed: each has an address of its own.

The SDK knows ports 8883 and 443 alone, and Linux takes all of 127.0.0.0/8 as its own.
"""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack

_TRIES = 100


def loopback(ports: tuple[int, ...] = (8883,)) -> str:
    """Return a 127.x.y.z on which nobody listens at these ports.

    It is drawn at random out of sixteen million, so that processes beside one another do not meet.

    Raises:
        OSError: No address could be bound, as a port below 1024 by who is not root.
    """
    draw = random.SystemRandom()
    failed: OSError | None = None
    for _ in range(_TRIES):
        address = f"127.{draw.randint(16, 250)}.{draw.randint(0, 255)}.{draw.randint(1, 254)}"
        try:
            with ExitStack() as stack:
                for port in ports:
                    probe = stack.enter_context(socket.socket())
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind((address, port))
        except PermissionError:
            raise
        except OSError as error:
            failed = error
        else:
            return address
    assert failed is not None
    raise failed


def may_bind(port: int) -> bool:
    """Return whether this process may listen at a port: below 1024 it takes root, mostly."""
    try:
        loopback((port,))
    except PermissionError:
        return False
    return True
