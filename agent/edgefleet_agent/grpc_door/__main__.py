"""`python -m edgefleet_agent.grpc_door`: started by the gateway, dies with it."""

from __future__ import annotations

import argparse
import asyncio
import resource
import signal
import sys
from pathlib import Path

import grpc

from edgefleet_agent.grpc_door.service import Service
from edgefleet_agent.grpc_door.upstream import Upstream
from edgefleet_agent.worker import sandbox

CALLS_AT_A_TIME = 256
"""More are answered RESOURCE_EXHAUSTED; each holds one connection to the gateway."""

CALLS_A_CONNECTION = 64
"""More wait in their client."""

_GRACE_S = 5.0
_NO_NEW_PRIVS = 38


def main() -> int:
    """Serve until SIGTERM, or the gateway's end; returns the exit status."""
    parser = argparse.ArgumentParser(prog="edgefleet_agent.grpc_door", description=__doc__)
    parser.add_argument("--uds", type=Path, required=True)
    parser.add_argument("--listen", required=True)
    parser.add_argument("--addr-file", type=Path, required=True)
    parser.add_argument("--max-body-bytes", type=int, required=True)
    parser.add_argument("--timeout-s", type=float, required=True)
    parser.add_argument("--parent", type=int, required=True)
    options = parser.parse_args()
    sandbox.die_with_parent(options.parent)
    sandbox.prctl(_NO_NEW_PRIVS, 1)
    sandbox.drop_capabilities()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    return asyncio.run(
        serve(
            options.uds,
            options.listen,
            options.addr_file,
            options.max_body_bytes,
            options.timeout_s,
        )
    )


async def serve(
    uds: Path, listen: str, addr_file: Path, max_body_bytes: int, timeout_s: float
) -> int:
    """Listen on a loopback address, write it with its port to `addr_file`, and serve.

    Returns:
        The exit status: 2 if the address cannot be had.
    """
    upstream = Upstream(uds)
    server = grpc.aio.server(
        maximum_concurrent_rpcs=CALLS_AT_A_TIME,
        options=[
            ("grpc.max_receive_message_length", max_body_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),
            ("grpc.max_concurrent_streams", CALLS_A_CONNECTION),
        ],
    )
    server.add_generic_rpc_handlers((Service(upstream, timeout_s).handlers(),))
    try:
        port = server.add_insecure_port(listen)
    except RuntimeError as error:
        sys.stderr.write(f"The gRPC door cannot listen on {listen}: {error}\n")
        return 2
    await server.start()
    part = addr_file.with_suffix(".part")
    part.write_text(f"{listen.rpartition(':')[0]}:{port}")
    part.replace(addr_file)
    over = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, over.set)
    await over.wait()
    await server.stop(_GRACE_S)
    upstream.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
