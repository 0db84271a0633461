"""`python -m edgefleet_agent.gateway`: started by agentd, outlives it."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from edgefleet_agent.gateway.server import Gateway, Options, lock
from edgefleet_shared.errors import EdgeFleetError, UnavailableError

EXIT_RUNNING = 75  # EX_TEMPFAIL: another gateway has the run folder


def parse(arguments: list[str] | None = None) -> Options:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="edgefleet_agent.gateway", description=__doc__)
    parser.add_argument("--control", type=Path, required=True)
    parser.add_argument("--uds", type=Path, required=True)
    parser.add_argument("--tcp", default="")
    parser.add_argument("--addr-file", type=Path, required=True)
    parser.add_argument("--queue-limit", type=int, default=256)
    parser.add_argument("--timeout-s", type=float, default=30.0)
    parser.add_argument("--max-body-bytes", type=int, default=64 * 1024 * 1024)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--orphan-timeout-s", type=float, default=0.0)
    parser.add_argument("--triton-metrics", action="store_true")
    parser.add_argument("--grpc", default="")
    parser.add_argument("--cgroup", default="")
    parser.add_argument("--lend-after", type=int, default=4)
    parser.add_argument("--max-connections", type=int, default=1024)
    parser.add_argument("--idle-timeout-s", type=float, default=3600.0)
    return Options(**vars(parser.parse_args(arguments)))


def main() -> int:
    """Run a gateway; returns the exit status."""
    options = parse()
    try:
        with lock(options.control.parent):
            _run(options)
    except UnavailableError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_RUNNING
    except EdgeFleetError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


def _run(options: Options) -> None:
    async def serve() -> None:
        await Gateway(options).run()

    try:
        import uvloop  # an extra: twice as fast, and not on every platform
    except ImportError:
        asyncio.run(serve())
        return
    uvloop.run(serve())


if __name__ == "__main__":
    sys.exit(main())
